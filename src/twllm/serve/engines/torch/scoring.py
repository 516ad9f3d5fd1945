"""Log-probabilities of given ids: several sequences in one forward pass, right-padded, nothing generated.

Row t of a sequence predicts id t + 1; the last row predicts what would come next, so a request for a prompt's
log-probabilities and one greedy token is a single pass. Rows are causal and padding stands on the right, so no mask is
needed and a row's numbers differ from those of the sequence alone by float rounding only (fp32: below 1e-5).
The logits of a slice of positions at a time are held, the rest of a long sequence goes through a KV cache.
Not covered: prefixes shared between sequences (evaluation has its own way), quantised engines.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from twllm.serve.engines.interface import FLOOR, PromptScores

TOKENS = 8192  # of a batch, padding included; chosen, not tuned
LOGITS = 1 << 26  # held at a time, 256 MB in fp32: with 128k ids 512 positions; chosen
# B rows, T tokens of the longest sequence, V vocabulary, K best


def score(model: Any, sequences: Sequence[Sequence[int]], top: int = 1) -> list[PromptScores]:
    """Scores of each sequence, in the order given; `top` (at least 1) ids are told for each position.

    Raises:
        FloatingPointError: the model produced NaN.
    """
    found: dict[int, PromptScores] = {}
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
    while order:
        rows = max(1, TOKENS // len(sequences[order[0]]))
        batch, order = order[:rows], order[rows:]
        found.update(zip(batch, _score(model, [sequences[i] for i in batch], top), strict=True))
    return [found[i] for i in range(len(sequences))]


@torch.inference_mode()
def _score(model: Any, sequences: Sequence[Sequence[int]], top: int) -> list[PromptScores]:
    longest = max(len(ids) for ids in sequences)
    padded = torch.tensor([[*ids, *[0] * (longest + 1 - len(ids))] for ids in sequences], device=model.device)
    width = max(1, LOGITS // (len(sequences) * model.config.get_text_config().vocab_size))
    cache = DynamicCache(config=model.config) if width < longest else None
    parts = [_slice(model, padded, at, min(at + width, longest), cache, top) for at in range(0, longest, width)]
    given, best, ids = (torch.cat(column, dim=1).cpu() for column in zip(*parts, strict=True))
    if given.isnan().any():
        raise FloatingPointError("the model produced non-finite logits")
    return [_unpad(len(s), *row) for s, *row in zip(sequences, given, best, ids, strict=True)]


def _slice(model: Any, padded: Tensor, start: int, end: int, cache: Any, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions start to end: log-probability of the next id (B, T), the K best log-probabilities and their ids (B, T, K)."""
    out = model(input_ids=padded[:, start:end], cache=cache, use_cache=cache is not None)
    logprobs = out.logits.float().log_softmax(-1)  # (B, T, V)
    given = logprobs.gather(-1, padded[:, start + 1 : end + 1, None])[..., 0].clamp(min=FLOOR)
    best, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    return given, best.clamp(min=FLOOR), ids


def _unpad(length: int, given: Tensor, best: Tensor, ids: Tensor) -> PromptScores:
    tops = [tuple(zip(*row, strict=True)) for row in zip(ids[:length].tolist(), best[:length].tolist(), strict=True)]
    return PromptScores(given[: length - 1].tolist(), tops)
