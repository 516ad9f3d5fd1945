"""A mixture's experts in the precision of the other products: torch's grouped product takes no part in autocast, so it would run in fp32.

Their weights are cast as autocast casts a linear layer's, and what an expert reads with them: fp32 weights, bf16 products, fp32 sums over the chosen experts. On
an H100 the fp32 product has 67 TFLOP/s, the bf16 one 989 (NVIDIA's figures). Price: the casts are kept until the backward pass, 2 bytes a parameter.
Registered under a name of its own among transformers' ways to run experts; a saved model does not know it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "twllm_grouped_mm"


class _Cast:
    """An expert module whose weights are seen in another precision."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return found.to(self._dtype) if isinstance(found, Tensor) and found.is_floating_point() else found


def grouped(module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """transformers' signature: (tokens, D) hidden states, (tokens, k) experts and their weights → (tokens, D)."""
    device = hidden.device.type
    seen: Any = _Cast(module, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else module
    found: Tensor = grouped_mm_experts_forward(seen, hidden, chosen, weights)
    return found


ALL_EXPERTS_FUNCTIONS.register(NAME, grouped)


def choose(model: PreTrainedModel, precision: str) -> str | None:
    """Let the experts run as `precision` says; gives the way before, None where nothing was changed."""
    before: str | None = model.config.get_text_config()._experts_implementation
    if precision != "bf16" or before != "grouped_mm" or not model._can_set_experts_implementation():
        return None
    model.set_experts_implementation(NAME)
    return before
