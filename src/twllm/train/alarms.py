"""Alarms on jumps of the loss, with the shard and the documents at fault.

Each micro-batch's mean loss (and the step's gradient norm) is held against the last ones by a robust z-score, (x − median of the last
RECENT) ÷ scale, with the scale from the median step from one value to the next, which a falling loss does not widen. Only a jump costs anything: the step's micro-batches are then run once more without
gradient, before the update, and each document gets its own loss; those that stand out from the others are named.
The weights are untouched either way. Price: nothing but two medians a step; a jump costs about a third of a step.
Not covered: DPO and KTO (their loss has no usual height); documents that are bad but not worse than `alarm_z` deviations.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from twllm.train.rows import cut_rows

WINDOW, RECENT = 128, 16  # values that the scale and the usual height are taken from; chosen, not tuned
LEAST = 20  # before so many are known nothing is judged
NOISE = 0.03  # the scale is never less than this share of the median: a very steady loss may move a little
NORM_Z = 12.0  # gradient norms swing more; they only make us look
DOCUMENT_Z = 6.0  # a document is named from here on
SHOWN = 10


@dataclass(frozen=True)
class Suspect:
    """A document and its mean loss."""

    shard: str
    document: str
    loss: float
    tokens: int


@dataclass(frozen=True)
class Alarm:
    """One line of alarms.jsonl."""

    step: int
    loss: float  # of the micro-batch that jumped
    usual: float
    z: float
    grad_norm: float
    documents: list[Suspect]

    def text(self) -> str:
        """For people."""
        names = "、".join(f"{d.shard} 的 {d.document}（{d.loss:.2f}）" for d in self.documents[:3])
        more = f" 等 {len(self.documents)} 份" if len(self.documents) > 3 else ""
        return f"第 {self.step} 步損失 {self.loss:.2f}，平常 {self.usual:.2f}（z {self.z:.0f}）：{names}{more}"


def robust_z(value: float, usual: Sequence[float], noise: float = NOISE) -> float:
    """How far `value` lies above the median, in robust standard deviations.

    >>> round(robust_z(9.0, [3.0, 3.1, 2.9, 3.0, 3.2]), 1)
    40.5
    """
    middle = median(usual)
    spread = 1.4826 * median(abs(x - middle) for x in usual)
    return (value - middle) / max(spread, noise * abs(middle), 1e-6)


def series_z(value: float, series: Sequence[float], noise: float) -> float:
    """The same for the next value of a series that may be falling: σ of its noise is 1.4826 × median |difference| ÷ √2."""
    middle = median(series[-RECENT:])
    steps = [abs(b - a) for a, b in pairwise(series)]
    return (value - middle) / max(1.4826 * median(steps) / math.sqrt(2), noise * abs(middle), 1e-6)


class SpikeDetector:
    """Remembers what is usual and says what is not."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)

    def remember(self, losses: Sequence[float], norm: float) -> None:
        """Values of a step; a few wild ones move no median."""
        self.losses += [x for x in losses if math.isfinite(x)]
        if norm > 0 and math.isfinite(norm):
            self.norms.append(math.log(norm))

    def score(self, losses: Sequence[float], norm: float) -> tuple[float, float]:
        """(highest z of the losses, z of the norm); 0 before enough is known."""
        known, norms = list(self.losses), list(self.norms)
        of_loss = max((series_z(x, known, NOISE) for x in losses), default=0.0) if len(known) >= LEAST else 0.0
        of_norm = series_z(math.log(max(norm, 1e-12)), norms, 0.0) if len(norms) >= LEAST else 0.0
        return of_loss, of_norm

    def recent(self) -> list[float]:
        """What is usual now."""
        return list(self.losses)[-RECENT:]

    def jumps(self, z: tuple[float, float]) -> bool:
        """Whether the step deserves a look."""
        return z[0] >= self.limit or z[1] >= NORM_Z


def guilty(losses: Sequence[tuple[int, float, int]], usual: Sequence[float]) -> list[tuple[int, float, int]]:
    """Of (document, mean loss, tokens): those that stand out from the step's other documents and from what is usual, worst first."""
    means = [loss for _, loss, _ in losses]
    known = means if len(means) >= 8 else [*means, *usual]
    found = [row for row in losses if robust_z(row[1], known, 0.05) >= DOCUMENT_Z]
    return sorted(found, key=lambda row: -row[1])


class AlarmLog:
    """alarms.jsonl of a phase; lines of steps that were lost are cut off when it resumes (None: another process does that)."""

    def __init__(self, file: Path, step: int | None) -> None:
        self.file = file
        if step is not None:
            cut_rows(file, step)

    def write(self, alarm: Alarm) -> None:
        """One line, in one write: several processes may share the file."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(alarm), ensure_ascii=False) + "\n")


def as_suspects(rows: Sequence[tuple[int, float, int]], name_of: Callable[[int], tuple[str, str]]) -> list[Suspect]:
    """With names, at most SHOWN."""
    return [Suspect(*name_of(document), round(loss, 4), tokens) for document, loss, tokens in rows[:SHOWN]]
