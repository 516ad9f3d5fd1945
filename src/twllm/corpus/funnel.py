"""What each stage of a build took, gave and dropped, by source and by reason, with samples.

Everything but the seconds depends on the documents and the seed only, so the same input gives the same bytes, however it
was cut into parts: counts add up, and the samples of a reason are the drops with the smallest hash of (seed, reason, id).
Tokens are estimated as UTF-8 bytes / 4.5 unless a counter is given (measured: 4.48 with a tokenizer of 16,000 pieces). Writing it down is
funnel_files.py's.
"""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

from twllm.corpus.document import Document, Dropped, Noted

EXCERPT_CHARS = 300
BYTES_PER_TOKEN = 4.5
SIZES = ("documents", "chars", "tokens")
BySource = dict[str, Counter[str]]


def estimate_tokens(text: str) -> int:
    """About how many tokens of a Chinese tokenizer."""
    return round(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)


class Samples:
    """A fair sample of the drops of each reason, of fixed size: those whose hash is smallest."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: dict[str, list[tuple[int, int, dict[str, Any]]]] = {}  # heaps of (-hash, -number, row)
        self._number = 0

    def add(self, drop: Dropped) -> None:
        """Maybe keep this one."""
        self._number += 1
        kept = self.kept.setdefault(drop.reason, [])
        if not self.size:
            return
        name = f"{self.seed}\0{drop.reason}\0{drop.document.id}"
        place = int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        if len(kept) < self.size:
            heapq.heappush(kept, (-place, -self._number, sample_row(drop)))
        elif (-place, -self._number) > kept[0][:2]:
            heapq.heapreplace(kept, (-place, -self._number, sample_row(drop)))

    def to_state(self) -> dict[str, list[list[Any]]]:
        """reason → [hash, number, row] in the order they came."""
        return {
            reason: [[-place, -number, row] for place, number, row in sorted(kept, key=lambda item: -item[1])]
            for reason, kept in self.kept.items()
        }


def sample_row(drop: Dropped) -> dict[str, Any]:
    """A dropped document as a row to look at."""
    document = drop.document
    return {
        "id": document.id,
        "source": document.source,
        "url": document.url,
        "step": drop.step,
        "reason": drop.reason,
        "detail": drop.detail,
        "chars": len(document.text),
        "excerpt": document.text[:EXCERPT_CHARS],
    }


class Funnel:
    """Counts what flows through the stages, in the order they are first followed."""

    def __init__(
        self, samples_per_reason: int, seed: int, count_tokens: Callable[[str], int] = estimate_tokens
    ) -> None:
        self.stages: dict[str, BySource] = {}
        self.drops: dict[str, dict[str, BySource]] = {}
        self.notes: dict[str, dict[str, BySource]] = {}  # what was cut from documents that stayed, or only found
        self.seconds: dict[str, float] = {}
        self.samples = Samples(samples_per_reason, seed)
        self._count, self._last = count_tokens, ("", 0)

    def follow(self, stage: str, items: Iterable[Document | Dropped]) -> Iterator[Document]:
        """Pass the documents on; count them and the drops. `seconds[stage]` includes the stages before."""
        self.stages[stage], self.drops[stage], self.notes[stage], self.seconds[stage] = {}, {}, {}, 0.0
        return self._follow(stage, iter(items))

    def _follow(self, stage: str, items: Iterator[Document | Dropped]) -> Iterator[Document]:
        given, drops = self.stages[stage], self.drops[stage]
        start = time.perf_counter()
        for item in items:
            self.seconds[stage] += time.perf_counter() - start
            if isinstance(item, Document):
                self._add(given, item)
                yield item
            else:
                reasons = self.notes[stage] if isinstance(item, Noted) else drops
                self._add(reasons.setdefault(item.reason, {}), item.document)
                self.samples.add(item)
            start = time.perf_counter()
        self.seconds[stage] += time.perf_counter() - start

    def _add(self, counts: BySource, document: Document) -> None:
        if document.text is not self._last[0]:
            self._last = document.text, self._count(document.text)
        count = counts.get(document.source)
        if count is None:
            count = counts[document.source] = Counter()
        count["documents"] += 1
        count["chars"] += len(document.text)
        count["tokens"] += self._last[1]

    def own_seconds(self) -> dict[str, float]:
        """Seconds of each stage without the stages before it."""
        before, own = 0.0, {}
        for stage, seconds in self.seconds.items():
            own[stage], before = round(seconds - before, 3), seconds
        return own

    def to_state(self) -> dict[str, Any]:
        """Everything as JSON, for `merge_states`."""
        return {
            "stages": self.stages,
            "drops": self.drops,
            "notes": self.notes,
            "seconds": self.own_seconds(),
            "samples": self.samples.to_state(),
        }


def merge_states(states: Iterable[dict[str, Any]], samples_per_reason: int) -> dict[str, Any]:
    """The states of all parts as one; the parts in their order."""
    merged: dict[str, Any] = {"stages": {}, "drops": {}, "notes": {}, "seconds": Counter()}
    samples: dict[str, list[tuple[int, int, int, dict[str, Any]]]] = {}
    for part, state in enumerate(states):
        for stage, counts in state["stages"].items():
            _merge_counts(merged["stages"].setdefault(stage, {}), counts)
            for kind in ("drops", "notes"):
                reasons = merged[kind].setdefault(stage, {})
                for reason, by_source in state[kind].get(stage, {}).items():
                    _merge_counts(reasons.setdefault(reason, {}), by_source)
        merged["seconds"].update(state["seconds"])
        for reason, kept in state["samples"].items():
            samples.setdefault(reason, []).extend((place, part, number, row) for place, number, row in kept)
    chosen = {
        reason: heapq.nsmallest(samples_per_reason, found, key=lambda item: item[:3])
        for reason, found in samples.items()
    }
    merged["samples"] = {
        reason: [row for _, _, _, row in sorted(kept, key=lambda item: item[1:3])] for reason, kept in chosen.items()
    }
    return merged


def _merge_counts(into: BySource, counts: dict[str, dict[str, int]]) -> None:
    for source, count in counts.items():
        into.setdefault(source, Counter()).update(count)


def dropped(state: dict[str, Any]) -> dict[str, int]:
    """Documents by reason, most first, of a merged state."""
    total: Counter[str] = Counter()
    for reasons in state["drops"].values():
        total.update({reason: size(counts)["documents"] for reason, counts in reasons.items()})
    return dict(total.most_common())


def size(counts: dict[str, Any]) -> dict[str, int]:
    """Documents, chars and tokens over all sources as plain numbers."""
    return {name: sum(count.get(name, 0) for count in counts.values()) for name in SIZES}


def to_rows(state: dict[str, Any], sources: Iterable[str]) -> list[dict[str, Any]]:
    """One row a stage: what it gave, by source, and the drops by reason and source; `sources` sets the order."""
    order = list(sources)

    def told(counts: dict[str, Any]) -> dict[str, Any]:
        names = [*(name for name in order if name in counts), *sorted(set(counts) - set(order))]
        by_source = {name: {key: counts[name].get(key, 0) for key in SIZES} for name in names}
        return {**size(counts), "sources": by_source}

    rows = []
    for stage, counts in state["stages"].items():
        row = {"stage": stage, **told(counts)}
        row["drops"] = {reason: told(found) for reason, found in sorted(state["drops"][stage].items())}
        if notes := state["notes"][stage]:
            row["notes"] = {reason: told(found) for reason, found in sorted(notes.items())}
        rows.append(row)
    return rows
