"""Structured pruning: a smaller model of the same class out of a larger one, cut where it matters least on calibration text.

Layers go by block influence, heads, feed-forward units and channels by what they contribute (importance.py). Heads are cut within the
groups of grouped-query attention, equally many in each, or by whole groups. A norm over fewer channels sees another mean square: its weight
is set right for the calibration text. What is left is a plain Llama folder, to be trained on (Minitron, arXiv 2407.14679: with
distillation; Sheared-LLaMA, arXiv 2310.06694). Everything is scored once, before anything is cut.
Not covered: mixtures, unequal widths by layer (transformers' Llama has one), iterated pruning (call it again on the result).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.model.importance import mean_loss, measure
from twllm.model.layers import PREFIX, check_kind, layer_changes, pick_layers, rebuild
from twllm.model.shape_config import PruneConfig, kept_kv_heads

READERS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
)  # of the residual stream; o_proj and down_proj write to it


def prune(
    model: PreTrainedModel, cut: PruneConfig, rows: Sequence[Sequence[int]], held_out: Sequence[Sequence[int]]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """(the smaller model, a report: what was cut, parameters, loss before and after on `held_out`).

    Raises:
        UserError: more asked for than there is, heads that do not come out even, or a model that is not Llama-shaped.
    """
    check_kind(model, "剪")
    heads, kv_heads = check_cut(model.config, cut)
    found = measure(model, rows)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    config = model.config
    changes: dict[str, Any] = {}
    report: dict[str, Any] = {"calibration_tokens": found.tokens}
    if cut.width and cut.width < config.hidden_size:
        kept = _top(found.channels, cut.width)
        state = _cut_channels(state, kept, found.squares)
        changes |= {"hidden_size": cut.width, "head_dim": _head_dim(config)}
        report["channels_cut"] = config.hidden_size - cut.width
        report["channel_importance_kept"] = _share(found.channels, kept)
    if cut.intermediate and cut.intermediate < config.intermediate_size:
        chosen = [_top(scores, cut.intermediate) for scores in found.neurons]
        state = _cut_units(state, chosen)
        changes["intermediate_size"] = cut.intermediate
        report["neuron_importance_kept"] = [_share(s, k) for s, k in zip(found.neurons, chosen, strict=True)]
    if heads < config.num_attention_heads or kv_heads < config.num_key_value_heads:
        groups = [_pick_heads(scores, config.num_key_value_heads, heads, kv_heads) for scores in found.heads]
        state = _cut_heads(state, groups, _head_dim(config))
        changes |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": _head_dim(config)}
        report["heads_kept"] = [kept for kept, _ in groups]
        report["head_importance_kept"] = [
            _share(s, torch.tensor(k)) for s, (k, _) in zip(found.heads, groups, strict=True)
        ]
    report["block_influence"] = [round(score, 4) for score in found.layers]
    if cut.layers and cut.layers < config.num_hidden_layers:
        left = _top(torch.tensor(found.layers), cut.layers).tolist()
        state = pick_layers(state, left)
        changes |= layer_changes(model, left)
        report["layers_cut"] = sorted(set(range(config.num_hidden_layers)) - set(left))
    pruned = rebuild(model, state, **changes)
    report["parameters"] = [sum(p.numel() for p in m.parameters()) for m in (model, pruned)]
    report["loss"] = [round(mean_loss(m, held_out), 4) for m in (model, pruned)]
    return pruned, report


def check_cut(config: Any, cut: PruneConfig) -> tuple[int, int]:
    """(query heads, key/value heads) that are left.

    Raises:
        UserError: see `prune`.
    """
    for name, key in (
        ("layers", "num_hidden_layers"), ("heads", "num_attention_heads"), ("kv_heads", "num_key_value_heads"),
        ("intermediate", "intermediate_size"), ("width", "hidden_size"),
    ):  # fmt: skip
        asked, there = getattr(cut, name), getattr(config, key)
        if asked and asked > there:
            raise UserError(f"模型只有 {there}，剪不成 {asked} (more than there is)", name, f"給 {there} 以下的數")
    H, K = config.num_attention_heads, config.num_key_value_heads
    heads = cut.heads or H
    kv_heads = cut.kv_heads or kept_kv_heads(H, K, heads)
    if not kv_heads or heads % kv_heads or heads // kv_heads > H // K:
        raise UserError(
            f"{H} 個查詢頭分成 {K} 組，剪不成 {heads} 個{f'、{kv_heads} 組' if kv_heads else ''} (heads do not come out even)",
            "heads",
            f"每組留一樣多：{K} 的倍數，或 {H // K} 的倍數（剪掉整組）",
        )
    return heads, kv_heads


def _top(scores: Tensor, count: int) -> Tensor:
    """Places of the best, in their old order."""
    return scores.topk(count).indices.sort().values


def _share(scores: Tensor, kept: Tensor) -> float:
    return round(float(scores[kept].sum() / scores.sum()), 4) if float(scores.sum()) else 1.0


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _pick_heads(scores: Tensor, before: int, heads: int, groups: int) -> tuple[list[int], list[int]]:
    """(query heads, key/value heads) kept in a layer: the best groups, and in each its best heads."""
    each = heads // groups
    by_group = scores.view(before, -1)  # (K, H / K)
    best, places = by_group.topk(each, dim=1)
    kept = _top(best.sum(1), groups).tolist()
    width = by_group.shape[1]
    return [group * width + place for group in kept for place in sorted(places[group].tolist())], kept


def _cut_channels(state: dict[str, Tensor], kept: Tensor, squares: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        part = module.rpartition(".")[2]
        where = kept.to(value.device)
        if module in squares:  # a norm of the stream; norms on query and key are not
            right = (squares[module][kept].mean() / squares[module].mean()).sqrt()
            found[name] = value[where] * right.to(value)
        elif part in READERS:
            found[name] = value[:, where] if kind == "weight" else value
        elif part in ("embed_tokens", "lm_head"):
            found[name] = value[:, where]
        elif part in ("o_proj", "down_proj"):
            found[name] = value[where]
        else:
            found[name] = value
    return found


def _cut_units(state: dict[str, Tensor], chosen: Sequence[Tensor]) -> dict[str, Tensor]:
    found = dict(state)
    for number, kept in enumerate(chosen):
        for part in ("gate_proj", "up_proj"):
            for kind in ("weight", "bias"):
                _pick(found, f"{PREFIX}{number}.mlp.{part}.{kind}", kept, 0)
        _pick(found, f"{PREFIX}{number}.mlp.down_proj.weight", kept, 1)
    return found


def _cut_heads(state: dict[str, Tensor], groups: Sequence[tuple[list[int], list[int]]], E: int) -> dict[str, Tensor]:
    found = dict(state)
    for number, chosen in enumerate(groups):
        wide = [torch.cat([torch.arange(head * E, (head + 1) * E) for head in part]) for part in chosen]
        for part, kept in (("q_proj", wide[0]), ("k_proj", wide[1]), ("v_proj", wide[1])):
            for kind in ("weight", "bias"):
                _pick(found, f"{PREFIX}{number}.self_attn.{part}.{kind}", kept, 0)
        _pick(found, f"{PREFIX}{number}.self_attn.o_proj.weight", wide[0], 1)
    return found


def _pick(state: dict[str, Tensor], name: str, kept: Tensor, dimension: int) -> None:
    if name in state:
        state[name] = state[name].index_select(dimension, kept.to(state[name].device))
