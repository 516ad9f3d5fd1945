"""Llama's layers for training: two regions around the attention, each compiled once for all layers.

A layer is norm → q, k, v → rotary | attention | output → residual → norm → SwiGLU → residual. Run by transformers' modules it is
some sixty small operations and as many passes over memory; the two regions are torch functions that torch.compile turns into a
few loops around the matrix products (AOTAutograd chooses what to keep for the backward). Price: about 20 s of one core the first
time on a machine, 3 s when its cache knows them; gain 1.9 times for a layer of 256 × 704 on a CPU in bf16 (dev/LOG.md).
Only a layer's `forward` is replaced: weights, names, hooks (FSDP, checkpointing) and saved folders are transformers'. Compiled
code runs for one shape only, that of the training micro-batches; all else runs the same functions eagerly.
Not covered: layers with biases or adapters (LoRA) or of other architectures; they run as transformers' own modules.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
# B rows, T tokens a row, D width, H heads, K key/value heads, E head width


def _norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, E), cos and sin (B, T, 1, E / 2)."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


def before_attention(
    x: Tensor, cos: Tensor, sin: Tensor, norm: Tensor, eps: float, q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(B, T, D) → query (B, T, H, E), key and value (B, T, K, E)."""
    E = cos.shape[-1]
    half_cos, half_sin = (table[..., None, : E // 2] for table in (cos, sin))
    h = _norm(x, norm, eps, dtype)
    queries, keys, values = (F.linear(h, weight.to(dtype)).unflatten(-1, (-1, E)) for weight in (q, k, v))
    return _rotate(queries, half_cos, half_sin), _rotate(keys, half_cos, half_sin), values


def after_attention(
    x: Tensor, attended: Tensor, o: Tensor, norm: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """Residual stream (B, T, D) and what the heads found (B, T, H E) → the residual stream after the layer."""
    x = x + F.linear(attended.to(dtype), o.to(dtype))
    h = _norm(x, norm, eps, dtype)
    return x + F.linear(F.silu(F.linear(h, gate.to(dtype))) * F.linear(h, up.to(dtype)), down.to(dtype))


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether all layers are plain Llama (or Mistral) layers: no bias, no adapter, no dropout, SwiGLU."""
    layers = getattr(model.get_decoder(), "layers", [])
    return bool(len(layers)) and all(_plain(layer) for layer in layers)


def _plain(layer: Any) -> bool:
    if type(layer) not in (LlamaDecoderLayer, MistralDecoderLayer):
        return False
    linears = [layer.get_submodule(name) for name in LINEARS]
    config = layer.self_attn.config
    return (
        all(type(linear) is nn.Linear and linear.bias is None for linear in linears)
        and config.hidden_act == "silu"
        and not config.attention_dropout
        and config.rms_norm_eps == layer.input_layernorm.variance_epsilon
    )


class Fused:
    """Puts the two regions into a model's layers; `remove` gives transformers' forward back."""

    def __init__(self, model: PreTrainedModel, shape: tuple[int, int] | None, recompute: bool = False) -> None:
        """`shape` (B, T) of the micro-batches to compile for, None: nothing is compiled. `recompute`: the second region's
        activations are not kept but computed again (selective checkpointing).
        """
        self.layers, self.shape, self.recompute = list(model.get_decoder().layers), shape, recompute
        self.before: Callable[..., Any]
        self.after: Callable[..., Any]
        self.before, self.after = _compiled() if shape else (before_attention, after_attention)
        for layer in self.layers:
            layer.forward = self._forward(layer)

    def remove(self) -> None:
        """Undo."""
        for layer in self.layers:
            layer.__dict__.pop("forward", None)

    def _forward(self, layer: Any) -> Callable[..., Tensor]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attention, mlp, eps = layer.self_attn, layer.mlp, layer.input_layernorm.variance_epsilon

        def once(
            hidden_states: Tensor, attention_mask: Any = None, position_embeddings: Any = None, **kwargs: Any
        ) -> Tensor:
            x, (cos, sin) = hidden_states, position_embeddings
            fits = self.shape == x.shape[:2] and torch.is_grad_enabled()
            before, after = (self.before, self.after) if fits else (before_attention, after_attention)
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
            q, k, v = before(x, cos, sin, layer.input_layernorm.weight, eps, *projections, dtype)
            attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
            heads = (part.transpose(1, 2) for part in (q, k, v))
            attended, _ = attend(attention, *heads, attention_mask, scaling=attention.scaling, dropout=0.0, **kwargs)
            weights = (
                attention.o_proj.weight, layer.post_attention_layernorm.weight, eps, mlp.gate_proj.weight, mlp.up_proj.weight,
                mlp.down_proj.weight, dtype,
            )  # fmt: skip

            def second(x: Tensor, attended: Tensor) -> Tensor:
                """Weights are no inputs here: with offload they would come back as other objects, and be compiled for anew."""
                found: Tensor = after(x, attended, *weights)
                return found

            if self.recompute and torch.is_grad_enabled():
                found = checkpoint(second, x, attended.flatten(2), use_reentrant=False)
                assert isinstance(found, Tensor)
                return found
            return second(x, attended.flatten(2))

        def forward(hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
            """transformers puts full checkpointing into the class's forward, which this one stands in front of."""
            if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
                again = partial(once, attention_mask=attention_mask, **kwargs)
                kept: Tensor = layer._gradient_checkpointing_func(again, hidden_states)
                return kept
            return once(hidden_states, attention_mask, **kwargs)

        return forward


def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return torch.compile(before_attention, dynamic=False), torch.compile(after_attention, dynamic=False)
