"""A deeper model out of a shallower one, to go on training from: fewer tokens than from random weights (docs/models.md).

  solar       the first and the last layers, overlapping in the middle (depth up-scaling, SOLAR, arXiv 2312.15166): 32 layers to 48 are
              layers 0–23 and 8–31. SOLAR leaves out as many at the seam as it doubles.
  interleave  a layer and its copy side by side, spread evenly: the passthrough merge
  expand      as interleave, but the copy's two output projections are zero, so that the new layer adds nothing yet: the logits are the old
              model's to the last bit before training (block expansion, LLaMA-Pro, arXiv 2401.02415, which then trains the new layers only:
              [pretrain] freeze)
Not covered: widening; see layers.py for the kinds of model.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from transformers import PreTrainedModel

from twllm.errors import UserError, did_you_mean
from twllm.model.layers import PREFIX, check_kind, layer_changes, pick_layers, rebuild

Method = Literal["solar", "interleave", "expand"]
OUTPUTS = ("self_attn.o_proj", "mlp.down_proj")


def deepen(model: PreTrainedModel, layers: int, method: str = "solar") -> tuple[PreTrainedModel, list[int]]:
    """(the deeper model, which old layer each of its layers came from).

    Raises:
        UserError: unknown method, a number of layers that it cannot reach, or a model that is not Llama-shaped.
    """
    check_kind(model, "加深")
    sources, new = plan_layers(model.config.num_hidden_layers, layers, method)
    state = pick_layers(model.state_dict(), sources)
    if method == "expand":
        for place in new:
            for part in OUTPUTS:
                for kind in ("weight", "bias"):
                    if (tensor := state.get(f"{PREFIX}{place}.{part}.{kind}")) is not None:
                        state[f"{PREFIX}{place}.{part}.{kind}"] = torch.zeros_like(tensor)
    return rebuild(model, state, **layer_changes(model, sources)), sources


def plan_layers(before: int, after: int, method: str) -> tuple[list[int], list[int]]:
    """(source of each new layer, places of the copies); 4 to 6 layers:

    >>> plan_layers(4, 6, "solar")
    ([0, 1, 2, 1, 2, 3], [3, 4])
    >>> plan_layers(4, 6, "expand")
    ([0, 1, 1, 2, 3, 3], [2, 5])
    """
    if method not in get_args(Method):
        raise UserError("沒有這種加深的方法 (unknown method)", method, did_you_mean(method, get_args(Method)))
    if not before < after <= 2 * before:
        raise UserError(
            f"{before} 層只能加深到 {before + 1} 至 {2 * before} 層 (layers out of reach)",
            f"--layers {after}",
            "要更深就先訓練，再加深一次",
        )
    if method == "solar":
        first = (after + 1) // 2
        sources = [*range(first), *range(before - (after - first), before)]
        return sources, [place for place in range(first, after) if sources[place] < first]
    copied = [(i + 1) * before // (after - before) - 1 for i in range(after - before)]
    sources, new = [], []
    for layer in range(before):
        sources.append(layer)
        if layer in copied:
            new.append(len(sources))
            sources.append(layer)
    return sources, new


def describe(sources: Sequence[int]) -> str:
    """Layers as ranges: [0, 1, 2, 1, 2, 3] is "0–2, 1–3"."""
    runs: list[list[int]] = []
    for source in sources:
        if runs and source == runs[-1][-1] + 1:
            runs[-1].append(source)
        else:
            runs.append([source])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
