"""The forward pass of Llama-shaped models (Llama, Mistral, Qwen 2 and 3, …) in few operations, on the weights of transformers' model.

transformers' modules take 38 ms for a token of a 87 M model on two cores, most of it outside the products; this takes about a quarter.
A model is taken if its layers have exactly the parts named here and its logits are then those that transformers computes
(`same_logits`); any other model is run by transformers' own code.
N rows of a step, H heads, K key/value heads, E head width, D model width.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twllm.serve.engines.torch.linear import can_pack, pack

Embed = Callable[[Tensor], Tensor]  # ids (N,) → (N, D)
ROPE = {"default", "linear", "llama3", "yarn"}  # those whose angles do not depend on the length of the text
ATTENTION = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"})
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


class Attends(Protocol):
    """Looks at what the slots hold (slots.Step)."""

    ids: list[int]
    positions: list[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query (N, H, E), key and value (N, K, E) → (N, H, E)."""
        ...


def is_llama_shaped(model: Any) -> bool:
    """Whether the parts are those that `LeanLlama` knows."""
    base: Any = getattr(model, "model", None)
    layers = getattr(base, "layers", None)
    if not layers or not all(hasattr(base, name) for name in ("embed_tokens", "norm", "rotary_emb")):
        return False
    if any(kind != "full_attention" for kind in getattr(model.config, "layer_types", None) or ()):
        return False
    if not getattr(model.config, "layer_types", None) and getattr(model.config, "sliding_window", None):
        return False
    layer = layers[0]
    parts = {name for name, _ in layer.named_children()}
    mlp = (
        {name for name, module in layer.mlp.named_children() if isinstance(module, nn.Linear)}
        if parts == LAYER
        else set()
    )
    own = (
        {name for name, _ in layer.self_attn.named_children()}
        if mlp == {"gate_proj", "up_proj", "down_proj"}
        else set()
    )
    return (
        own in ATTENTION
        and all(
            isinstance(getattr(layer.self_attn, name), nn.Linear) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        and getattr(model.config, "hidden_act", None) in ("silu", "swish")
        and getattr(base.rotary_emb, "rope_type", None) in ROPE
        and isinstance(model.lm_head, nn.Linear)
    )


class _Fused:
    """Several linear layers as one product where nothing can be packed (GPUs): their weights become views of one."""

    def __init__(self, parent: nn.Module, names: Sequence[str]) -> None:
        layers = [getattr(parent, name) for name in names]
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        start = 0
        for layer in layers:
            layer.weight.data = self.weight[start : start + layer.out_features]
            start += layer.out_features

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class _Layer:
    def __init__(self, layer: Any, packed: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        fuse: Any = pack if packed else _Fused
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.width, self.scaling = attention.head_dim, attention.scaling
        self.heads = attention.q_proj.out_features // self.width
        self.groups = attention.k_proj.out_features // self.width
        self.qkv = fuse(attention, ("q_proj", "k_proj", "v_proj"))
        self.out = fuse(attention, ("o_proj",))
        self.gate_up = fuse(mlp, ("gate_proj", "up_proj"))
        self.down = fuse(mlp, ("down_proj",))


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


class LeanLlama:
    """Weights of the model, regrouped (and on CPUs packed); the model itself goes on working with them."""

    def __init__(self, model: Any, context: int, embed: Embed | None = None) -> None:
        base = model.model
        packed = can_pack(model)
        self.dtype, self.device = model.dtype, model.device
        self._norm = base.norm
        self._embed: Embed = embed or (lambda ids: F.embedding(ids, base.embed_tokens.weight))
        with torch.inference_mode():
            positions = torch.arange(context, device=self.device)[None]
            cos, sin = base.rotary_emb(torch.zeros(1, 1, dtype=self.dtype, device=self.device), positions)
            half = sin.shape[-1] // 2
            self._cos = cos[0, :, None].contiguous()  # (C, 1, E)
            self._sin = torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1)
            self._half = half
            self._layers = [_Layer(layer, packed) for layer in base.layers]
            self._head: Any = model.lm_head
            if packed:
                self._head = pack(model, ("lm_head",))

    @torch.inference_mode()
    def __call__(self, step: Attends, rows: Sequence[int]) -> Tensor:
        """Logits (rows, V) in fp32."""
        hidden = self._embed(torch.tensor(step.ids, device=self.device))  # (N, D)
        places = torch.tensor(step.positions, device=self.device)
        cos, sin = self._cos[places], self._sin[places]  # (N, 1, E)
        N = hidden.shape[0]
        for number, layer in enumerate(self._layers):
            H, K, E = layer.heads, layer.groups, layer.width
            qkv = layer.qkv(_norm(hidden, layer.before)).view(N, H + 2 * K, E)
            looking = qkv[:, : H + K]
            if layer.query_norm is not None:
                looking = torch.cat(
                    [_norm(qkv[:, :H], layer.query_norm), _norm(qkv[:, H : H + K], layer.key_norm)], dim=1
                )
            looking = torch.addcmul(looking * cos, looking.roll(self._half, -1), sin)
            seen = step.attend(number, looking[:, :H], looking[:, H:], qkv[:, H + K :], layer.scaling)
            hidden = hidden + layer.out(seen.reshape(N, H * E))
            gate_up = layer.gate_up(_norm(hidden, layer.after))
            middle = gate_up.shape[-1] // 2
            hidden = hidden + layer.down(F.silu(gate_up[:, :middle]).mul_(gate_up[:, middle:]))
        if len(rows) < N:
            hidden = hidden[torch.tensor(rows, device=self.device)]
        logits: Tensor = self._head(_norm(hidden, self._norm))
        return logits.float()
