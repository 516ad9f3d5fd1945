"""How many bits a model needs for a text: its log-likelihood in windows, by blocks of characters, with an interval.

A document is BOS (or, where the tokenizer has none, the end token, which is what precedes it in packed training data), then its tokens, each
scored once. The first window starts at the beginning; each further one moves on by `stride` tokens and scores only
what is new, so every token but the first window's has at least `window - stride` tokens before it. Windows go through the
model one at a time: the numbers cannot depend on a batch size, at the price of an idle GPU on short documents.
Per character, not per token, since only so can models with different tokenizers be compared. Bits are told by blocks of
100 characters (a token belongs to the block it starts in), which lets two models be compared place by place.
In bf16 (engines use it where the hardware multiplies it) a sum is good to about three digits; in fp32 to six.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from twllm.errors import UserError

BLOCK_CHARS = 100  # chosen, not tuned: about a paragraph of news
MANY_DOCUMENTS = 30  # from here on documents, not blocks, are drawn: blocks of one document are alike
RESAMPLES = 2000
SEED = 1
LOGIT_ROWS = 256  # positions whose logits are turned to fp32 at a time


class Windows(NamedTuple):
    """How a document is cut: tokens a forward pass sees, and tokens by which it moves on."""

    window: int
    stride: int

    def within(self, context: int | None) -> "Windows":
        """The same, no longer than the model's context."""
        window = min(self.window, context) if context else self.window
        return Windows(window, min(self.stride, max(1, window // 2) if window < self.window else window))


class TextBits(NamedTuple):
    """Of one document: tokens scored, characters, and the bits of each block of `BLOCK_CHARS` characters."""

    tokens: int
    chars: int
    blocks: list[float]

    @property
    def bits(self) -> float:
        """All of them."""
        return math.fsum(self.blocks)

    def units(self) -> list[tuple[float, int]]:
        """(bits, characters) of each block."""
        return [(bits, min(BLOCK_CHARS, self.chars - number * BLOCK_CHARS)) for number, bits in enumerate(self.blocks)]


def engine_of(model: Any, name: str) -> Any:
    """The torch engine behind a model.

    Raises:
        UserError: it has none: a server (few tell the log-likelihood of a given text), or a file of answers.
    """
    engine = getattr(model, "engine", None) or getattr(model, "_engine", None)
    if engine is None or not hasattr(engine, "model") or not hasattr(engine, "tokenizer"):
        what = "伺服器與回答檔給不出文字的對數機率，每字位元數只能量本機模型 (log-likelihoods need a local model)"
        raise UserError(what, name, "改給模型資料夾或 hub 名稱")
    return engine


def text_bits(engine: Any, text: str, windows: Windows) -> TextBits:
    """The bits of a whole text, BOS not counted."""
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(text)
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    bits = token_bits(engine.model, [start, *ids], windows.within(engine.context))
    blocks = [0.0] * max(1, math.ceil(len(text) / BLOCK_CHARS))
    stream, done = tokenizer.stream(), 0
    for id, value in zip(ids, bits, strict=True):
        blocks[min(done // BLOCK_CHARS, len(blocks) - 1)] += value
        done += len(stream.push(id))
    return TextBits(len(ids), len(text), blocks)


def token_bits(model: Any, ids: Sequence[int], windows: Windows) -> list[float]:
    """Bits of ids[1:], each given what stands before it in its window. `ids` at least one."""
    found: list[float] = []
    start, last = 0, len(ids) - 1  # the last id is predicted, never an input
    while len(found) < last:
        end = min(start + windows.window, last)
        bits = _window_bits(model, ids[start : end + 1])  # of ids[start + 1 : end + 1]
        found += bits[len(found) - start :]
        start += windows.stride
    return found


def _window_bits(model: Any, ids: Sequence[int]) -> list[float]:
    """Bits of ids[1:] in one forward pass of ids[:-1], batch 1."""
    import torch

    with torch.inference_mode():
        row = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=row[:, :-1], use_cache=False).logits[0]  # (T, V)
        wanted = row[0, 1:, None]  # (T, 1)
        parts = [
            logits[at : at + LOGIT_ROWS].float().log_softmax(-1).gather(1, wanted[at : at + LOGIT_ROWS])[:, 0]
            for at in range(0, len(logits), LOGIT_ROWS)
        ]
        values: list[float] = (torch.cat(parts).double() / -math.log(2)).tolist()
    if not all(map(math.isfinite, values)):
        raise UserError("模型算出 NaN 或無限大 (non-finite logits)", model.name_or_path, "檢查權重；量化或 bf16 溢位")
    return values


def interval(units: Sequence[tuple[float, int]]) -> tuple[float, float] | None:
    """95 % bootstrap interval of all bits / all characters, from (bits, characters) of each unit; None with fewer than two.

    >>> interval([(2.0, 1), (2.0, 1), (2.0, 1)])
    (2.0, 2.0)
    """
    if len(units) < 2:
        return None
    values = np.asarray(units, dtype=np.float64)
    draws = np.random.default_rng(SEED).integers(0, len(units), (RESAMPLES, len(units)))
    ratios = values[draws, 0].sum(1) / values[draws, 1].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def units_of(texts: Sequence[TextBits]) -> tuple[list[tuple[float, int]], str]:
    """What the bootstrap draws, and its name: documents where there are many, else their blocks."""
    if len(texts) >= MANY_DOCUMENTS:
        return [(text.bits, text.chars) for text in texts], "documents"
    return [unit for text in texts for unit in text.units()], f"blocks of {BLOCK_CHARS} characters"
