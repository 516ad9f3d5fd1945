"""A dense Llama or Mistral becomes a mixture of experts of transformers' Mixtral class (sparse upcycling, arXiv 2212.05055).

Every expert begins as a copy of the dense feed-forward layer. The weights of the chosen experts sum to one, so the logits are the
dense model's to the last rounding, whatever the router says. With `granularity` G a copy is cut into G experts of 1/G of the width
whose router rows begin equal (arXiv 2410.07524): the G parts of the best copies are chosen together, and with top_k = G a token passes
through exactly as many parameters as in the dense model.
`reinit` draws that share of each expert's inner units anew, from the layer's own distribution (Drop-Upcycling, arXiv 2502.19261), and
`noise` adds that share of the weights' spread: experts differ sooner, and the logits are no longer the dense model's.
Not covered: biases, norms on query and key (Qwen), which Mixtral has no place for; shared experts.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from twllm.errors import UserError
from twllm.model.moe_config import MoeShape

# X experts, G parts of a copy, D model width, F width of the dense layer
KEPT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps",
    "max_position_embeddings", "initializer_range", "tie_word_embeddings", "attention_dropout", "rope_parameters", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip


def upcycle(dense: PreTrainedModel, shape: MoeShape, seed: int = 1) -> PreTrainedModel:
    """A Mixtral with the dense model's weights (the embedding and attention are shared with it, not copied).

    Raises:
        UserError: not a plain Llama or Mistral, or a width that granularity does not divide.
    """
    config = moe_config(dense, shape)
    with torch.device("meta"):
        model = MixtralForCausalLM(config)
    state = _state(dense, shape, config, torch.Generator().manual_seed(seed))
    model.load_state_dict(state, strict=not config.tie_word_embeddings, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its angles are no weights
    model.get_input_embeddings().padding_idx = None
    return model.requires_grad_(True).train(dense.training)


def moe_config(dense: PreTrainedModel, shape: MoeShape) -> MixtralConfig:
    """The Mixtral's config.

    Raises:
        UserError: see `upcycle`.
    """
    config = dense.config
    odd = sorted({name.rsplit(".", 2)[-2] for name in dense.state_dict() if name.endswith(".bias") or "_norm." in name})
    if config.model_type not in ("llama", "mistral") or odd:
        raise UserError(
            f"只能把 Llama 或 Mistral 型的密集模型改成專家混合 (cannot upcycle): {config.model_type} {'、'.join(odd)}",
            "config.json",
            "換一個沒有偏置項的 Llama 或 Mistral 型模型",
        )
    if config.intermediate_size % shape.granularity:
        raise UserError(
            f"前饋層寬 {config.intermediate_size} 不能切成 {shape.granularity} 份 (width not divisible)",
            "granularity",
            "換一個能整除的數",
        )
    return MixtralConfig(
        **{key: getattr(config, key) for key in KEPT},
        head_dim=getattr(config, "head_dim", None),
        sliding_window=getattr(config, "sliding_window", None),
        intermediate_size=config.intermediate_size // shape.granularity,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        router_aux_loss_coef=shape.balance,
    )


def _state(
    dense: PreTrainedModel, shape: MoeShape, config: MixtralConfig, random: torch.Generator
) -> dict[str, Tensor]:
    state = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    for number, layer in enumerate(dense.get_decoder().layers):
        name, mlp = f"model.layers.{number}.mlp", layer.mlp
        gate, up, down = (part.weight.detach() for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        experts = [_copy(gate, up, down, shape, random) for _ in range(shape.experts // shape.granularity)]
        state[f"{name}.experts.gate_up_proj"] = torch.cat([first for first, _ in experts])  # (X, 2 F / G, D)
        state[f"{name}.experts.down_proj"] = torch.cat([second for _, second in experts])  # (X, D, F / G)
        router = torch.empty(shape.experts // shape.granularity, gate.shape[1])
        router.normal_(0, config.initializer_range, generator=random)
        state[f"{name}.gate.weight"] = router.repeat_interleave(shape.granularity, 0).to(gate)
    return state


def _copy(gate: Tensor, up: Tensor, down: Tensor, shape: MoeShape, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """One copy as G experts: (G, 2 F / G, D) and (G, D, F / G). Their sum, each weighted 1/G, is the dense layer."""
    G = shape.granularity
    parts = [part.clone() for part in (gate, up, down.T)]  # inner units are rows
    chosen = torch.rand(len(gate), generator=random) < shape.reinit
    for part in parts:
        spread = part.std()
        if shape.reinit:
            drawn = torch.randn(int(chosen.sum()), part.shape[1], generator=random)
            part[chosen.to(part.device)] = (drawn * spread.cpu() + part.mean().cpu()).to(part)
        if shape.noise:
            part += (torch.randn(part.shape, generator=random) * shape.noise * spread.cpu()).to(part)
    gates, ups, downs = (part.view(G, -1, part.shape[1]) for part in parts)
    return torch.cat([gates, ups], dim=1), downs.transpose(1, 2).contiguous() * G


def count_active(model: PreTrainedModel) -> tuple[int, int]:
    """(all parameters, those a token passes) of a mixture of experts; twice the same number of a dense model."""
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    config: Any = model.config
    if not experts:
        return total, total
    return total, total - experts + experts * config.num_experts_per_tok // config.num_local_experts
