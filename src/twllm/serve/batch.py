"""Greedy decoding of many known prompts together: left-padded, one KV cache, finished rows leave the batch.

Used by evaluation. Rows are sorted by length, so that little is padding. Padding is masked and positions start at
each row's first token, so a row's numbers differ from those of a lone request by float rounding only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

ROWS = 32  # 100 prompts, 30 new tokens, 2.9 M model, 1 thread: 8 rows 2.8 s, 32 rows 1.8 s, 100 rows 1.6 s
# B rows, T tokens of the longest prompt


def decode_batch(
    model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int], end_ids: frozenset[int]
) -> list[list[int]]:
    """Greedy ids for each prompt, at most `limits[i]` of them, without the end token; in the order of the prompts."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: (len(prompts[i]), limits[i]))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        found = _decode(model, [prompts[i] for i in rows], [limits[i] for i in rows], end_ids)
        for i, ids in zip(rows, found, strict=True):
            answers[i] = ids
    return answers


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (B, T); the mask is 0 on padding."""
    T = max(len(ids) for ids in prompts)
    ids = torch.tensor([[0] * (T - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@torch.inference_mode()
def _decode(
    model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int], end_ids: frozenset[int]
) -> list[list[int]]:
    ids, mask = (x.to(model.device) for x in pad_left(prompts))
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # which prompt each batch row is
    while True:
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        new = out.logits[:, -1].argmax(-1)  # (B,)
        kept = []
        for at, id in enumerate(new.tolist()):
            if id in end_ids:
                continue
            answers[rows[at]].append(id)
            if len(answers[rows[at]]) < limits[rows[at]]:
                kept.append(at)
        if not kept:
            return answers
        if len(kept) < len(rows):
            keep = torch.tensor(kept, device=new.device)
            cache.batch_select_indices(keep)
            new, mask, positions = new[keep], mask[keep], positions[keep]
            rows = [rows[at] for at in kept]
        ids = new[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1
