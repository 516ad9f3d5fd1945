"""Alarms on jumps of the loss, with the shard and the documents at fault.

Two things are held against the last ones, both known anyway from the forward pass, before the update:
  each document's mean loss, against those of its own shard (data sets are not equally hard), of all while the shard is new: it is named
      when it lies alarm_z × TAILS times as far above the median of the last NEAR as 95 % of the last FAR did above theirs. In the
      mean of a micro-batch one document hardly shows;
  each micro-batch's mean loss, by a robust z-score (x − median of the last RECENT) ÷ scale, with the scale from the median step from one
      value to the next, which a falling loss does not widen.
A jump that most documents share is told as what it mostly is, a learning rate that is too high. The weights are untouched. Price: a few
medians a step. How often the right document is named: docs/watching.md, `benchmarks/alarms.py`.
Not covered: DPO and KTO (their loss has no usual height); bad documents that are no more surprising than the good ones: repetitions, and
all that comes while the model knows nothing yet.
"""

import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from twllm.train.rows import cut_rows

if TYPE_CHECKING:
    from torch import Tensor

    from twllm.train.data import Batch

WINDOW, RECENT = 128, 16  # micro-batches that the scale and the usual height are taken from; chosen, not tuned
LEAST = 20  # before so many are known nothing is judged
NOISE = 0.03  # the scale is never less than this share of the median: a very steady loss may move a little
FLOOR = 0.02  # nor than so many nats
FAR, NEAR = 512, 64  # documents
TAIL = 0.95
TAILS = (
    3.5 / 8
)  # with alarm_z 8, 3.5 times as far out as TAIL lies: 5.8 σ of a normal distribution; looked for in dev/LOG.md
ROOM = 1.5  # nats: a document nearer to the median is never named; losses near 0 vary by many times themselves
SHOWN = 10
Document = tuple[int, float, int]  # number, mean loss, labelled tokens


@dataclass(frozen=True)
class Suspect:
    """A document and its mean loss."""

    shard: str
    document: str
    loss: float
    tokens: int
    usual: float  # the median of its shard, of all where that is new


@dataclass(frozen=True)
class Alarm:
    """One line of alarms.jsonl."""

    step: int
    loss: float  # of the micro-batch that jumped most
    usual: float
    z: float
    grad_norm: float
    documents: list[Suspect]  # the worst of those that stand out
    odd: int  # how many stand out
    of: int  # of so many documents in this process's micro-batches

    def text(self) -> str:
        """For people."""
        return as_text(asdict(self))


def as_text(alarm: dict[str, Any]) -> str:
    """A line of alarms.jsonl for people."""
    jump = f"損失 {alarm['loss']:.2f}，平常 {alarm['usual']:.2f}（z {alarm['z']:.0f}）" if alarm["z"] >= 4 else ""
    return f"第 {alarm['step']} 步{jump}：{at_fault(alarm)}"


def at_fault(alarm: dict[str, Any]) -> str:
    """The documents, or what else it mostly is."""
    documents = alarm["documents"]
    odd = alarm.get("odd", len(documents))  # lines of older runs do not say
    of = alarm.get("of", 2 * odd)
    if not documents:
        return "沒有特別高的文件，多半是學習率 (no document stands out: the learning rate?)"
    usual = [f"，平常 {d['usual']:.2f}" if "usual" in d else "" for d in documents]
    told = [f"{d['shard']} 的 {d['document']}（{d['loss']:.2f}{u}）" for d, u in zip(documents, usual, strict=True)]
    names = "、".join(told[:3]) + (f" 等 {odd} 份" if odd > 3 else "")
    if odd >= 4 and 2 * odd > of:
        return f"{of} 份裡 {odd} 份都高，多半是學習率，或整個分片壞了 (most documents: the learning rate, or a bad shard?)：{names}"
    return names


def series_z(value: float, series: Sequence[float], noise: float) -> float:
    """How far `value` lies above what is usual in a series that may be falling: σ of its noise is 1.4826 × median |difference| ÷ √2.

    >>> round(series_z(9.0, [3.0, 3.1, 2.9, 3.0, 3.2], 0.03), 1)
    38.2
    """
    middle = median(series[-RECENT:])
    steps = [abs(b - a) for a, b in pairwise(series)]
    return (value - middle) / max(1.4826 * median(steps) / math.sqrt(2), noise * abs(middle), FLOOR)


class Heights:
    """How high the losses of a shard's documents are, and how far above that they come."""

    def __init__(self) -> None:
        self.near: deque[float] = deque(maxlen=NEAR)
        self.above: deque[float] = deque(maxlen=FAR)  # loss − median of those before

    @property
    def usual(self) -> float | None:
        """The median; None while too few are known."""
        return median(self.near) if len(self.near) == NEAR else None

    @property
    def tail(self) -> float | None:
        """How far above the median 95 % lie; None while too few are known."""
        return sorted(self.above)[int(TAIL * len(self.above))] if len(self.above) >= NEAR else None


class SpikeDetector:
    """Remembers what is usual and says what is not. `shard_of`: a document's shard."""

    def __init__(self, limit: float, shard_of: Callable[[int], int] = lambda document: 0) -> None:
        self.limit, self.shard_of = limit, shard_of
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.documents: defaultdict[int | None, Heights] = defaultdict(Heights)  # of each shard; None: of all

    def remember(self, losses: Iterable[float], documents: Sequence[Document] = ()) -> None:
        """Values of a step. A document counts as no worse than what is named: many bad ones hide the next only slowly."""
        self.losses += [x for x in losses if math.isfinite(x)]
        shards, tops = self._tops(documents)
        middles = {shard: self.documents[shard].usual for shard in {None, *shards}}
        for (_, loss, _), own, top in zip(documents, shards, tops, strict=True):
            value = min(loss, top)
            for shard in (None, own):
                heights, middle = self.documents[shard], middles[shard]
                heights.near.append(value)
                if middle is not None:
                    heights.above.append(value - middle)

    def score(self, losses: Sequence[float]) -> float:
        """The highest z; 0 before enough is known."""
        known = list(self.losses)
        return max((series_z(x, known, NOISE) for x in losses), default=0.0) if len(known) >= LEAST else 0.0

    def odd(self, documents: Sequence[Document], jumped: bool = False) -> list[Document]:
        """Those that stand out, worst first. `jumped`: there is something to explain, and ROOM above the median is enough."""
        _, tops = self._tops(documents, 0.0 if jumped else None)
        found = [row for row, top in zip(documents, tops, strict=True) if row[1] > top]
        return sorted(found, key=lambda row: -row[1])

    def _tops(self, documents: Sequence[Document], tails: float | None = None) -> tuple[list[int], list[float]]:
        """The shard of each document, and the loss from which on it stands out; nothing does in the first steps."""
        shards = [self.shard_of(document) for document, _, _ in documents]
        tops = {shard: self._top(shard, self.limit * TAILS if tails is None else tails) for shard in set(shards)}
        return shards, [tops[shard] for shard in shards]

    def _top(self, shard: int, tails: float) -> float:
        own, of_all = self.documents[shard], self.documents[None]
        tail = of_all.tail if own.tail is None else own.tail
        if tail is None or len(self.losses) < LEAST:
            return math.inf
        return self.usual_of(shard) + max(tails * tail, ROOM)

    def usual_of(self, shard: int) -> float:
        """The median of a shard, of all while it is new."""
        known = (self.documents[shard].usual, self.documents[None].usual)
        return next((usual for usual in known if usual is not None), math.nan)

    def usual(self) -> float:
        """The height of a micro-batch's loss now."""
        return median(list(self.losses)[-RECENT:]) if self.losses else math.nan


def document_losses(batches: "Iterable[Batch]", told: "Iterable[Tensor]") -> list[Document]:
    """What each document of these micro-batches cost, from the losses of their labelled tokens."""
    found = []
    for batch, tokens in zip(batches, told, strict=True):
        sums = np.append(0.0, np.cumsum(tokens.cpu().numpy(), dtype=np.float64))
        for document, (first, end) in zip(batch.documents, batch.label_spans(), strict=True):
            if end > first:
                found.append((document, float(sums[end] - sums[first]) / int(end - first), int(end - first)))
    return found


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
