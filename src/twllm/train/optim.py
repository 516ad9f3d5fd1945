"""AdamW or Muon, the learning-rate schedules, and rates of their own for parts of the model.

Muon (arXiv 2502.16982) moves a matrix along the orthogonal factor of its averaged gradient, so that all directions learn at the same pace,
scaled to the size of AdamW's usual step: both take the same `lr`. It is for the matrices between embedding and head; those two and
the vectors stay with AdamW. In half of the tokens a tiny model answered twice as many questions (dev/LOG.md, one seed). Price: five rounds of three
products a matrix and step; one moment less to keep. Several processes share the matrices out (muon.py). Not covered: adapters; tensor
parallel; matrices kept as one tensor for several experts (AdamW).
"""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from twllm.errors import UserError
from twllm.train import muon
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


class Muon(torch.optim.Optimizer):
    """torch's Muon for the groups that say so, its AdamW for the others, as one optimizer with one state."""

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig) -> None:
        parts = {flag: [group for group in groups if group["muon"] == flag] for flag in (True, False)}
        self.muon = muon.Muon(parts[True], lr=config.lr, adjust_lr_fn="match_rms_adamw")
        self.rest = _adamw(parts[False], config)
        super().__init__([*self.muon.param_groups, *self.rest.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both."""
        for part in (self.muon, self.rest):  # groups and state are other objects after load_state_dict
            part.param_groups = [group for group in self.param_groups if group["muon"] == (part is self.muon)]
            part.state = self.state
            part.step()


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW, fused, or Muon; weight decay (if any) on matrices only; groups (matrices, vectors) for each factor, 1 first.

    Raises:
        UserError: `lr_factors` names no part of the model that is trained; Muon with tensor parallel, or with nothing to do.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    check_patterns(config.lr_factors, (name for name, _ in named), "lr_factors")
    hidden = hidden_matrices(model) if config.optimizer == "muon" else set()
    kinds = {name: (factor_of(name, config.lr_factors), p.ndim >= 2, name in hidden) for name, p in named}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for name, p in named if kinds[name] == (factor, matrices, muon)],
            "weight_decay": config.weight_decay if matrices else 0.0,
            "factor": factor,
            "muon": muon,
        }
        for factor in sorted({1.0, *(kind[0] for kind in kinds.values())}, key=lambda factor: (factor != 1, factor))
        for matrices, muon in ((True, False), (False, False), (True, True))
        if not muon or hidden
    ]
    return Muon(groups, config) if hidden else _adamw(groups, config)


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the trained matrices that are neither embedding nor head.

    Raises:
        UserError: there are none, or they are cut along two dimensions.
    """
    if any(isinstance(p, DTensor) and "tensor" in (p.device_mesh.mesh_dim_names or ()) for p in model.parameters()):
        what = "Muon 不能和 tensor parallel 一起用 (no Muon with tensor parallel)"
        raise UserError(what, 'optimizer = "muon"', 'tensor_parallel = 1，或 optimizer = "adamw"')
    tables = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in module.parameters()
    }
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tables |= {id(weight) for weight in head.parameters()} if head is not None else set()
    found = {n for n, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and id(p) not in tables}
    if not found:
        raise UserError("沒有 Muon 能訓練的矩陣 (no matrix for Muon)", 'optimizer = "muon"', 'optimizer = "adamw"')
    return found
