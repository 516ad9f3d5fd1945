"""AdamW, the learning-rate schedules, and rates of their own for parts of the model."""

import math

import torch
from torch import nn

from twllm.train.config import OptimConfig
from twllm.train.parts import check_patterns, factor_of


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (from 0) of `steps`: linear up to lr, then the schedule down to lr × min_lr_share.

    >>> [round(learning_rate(OptimConfig(lr=1.0, warmup_share=0.5), s, 4), 2) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    share = config.min_lr_share + (1 - config.min_lr_share) * _height(config, progress)
    return config.lr * share


def _height(config: OptimConfig, progress: float) -> float:
    """1 at the peak, 0 at the floor, at `progress` (0 to 1) of what follows the warmup."""
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":  # arXiv 2405.18392: 1 - sqrt is the best of the shapes tried there
        done = (progress - (1 - config.decay_share)) / config.decay_share
        return 1 - math.sqrt(max(0.0, done))
    if config.schedule == "restarts":
        progress = progress * config.cycles % 1.0
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate: `lr`, times the factor of its part."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW, fused; weight decay (if any) on matrices only; a pair of groups (matrices, vectors) for each factor, 1 first.

    Raises:
        UserError: `lr_factors` names no part of the model that is trained.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    check_patterns(config.lr_factors, (name for name, _ in named), "lr_factors")
    factors = {name: factor_of(name, config.lr_factors) for name, _ in named}
    groups = [
        {
            "params": [p for name, p in named if factors[name] == factor and (p.ndim >= 2) == matrices],
            "weight_decay": config.weight_decay if matrices else 0.0,
            "factor": factor,
        }
        for factor in sorted({1.0, *factors.values()}, key=lambda factor: (factor != 1, factor))
        for matrices in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)
