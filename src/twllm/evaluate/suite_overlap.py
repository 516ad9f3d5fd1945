"""Whole suites against whole corpora and SFT data: which items stand there, how much of each, where, and how it reads.

The n-grams are corpus/overlap.py's; here its matches become one row an item (the best match of all texts, its document, source and
excerpt, the number of texts that reach the threshold) and counts by suite. Texts come as a stream: memory is the suites' index
and one batch. Speed and false positives: docs/decontamination.md.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from twllm.corpus.overlap import FLAGGING, Limits, Match, OverlapIndex, Passage, batches, nfc
from twllm.evaluate.suite_passages import Suites, task_passages
from twllm.evaluate.task import Item, Task
from twllm.evaluate.training_texts import Source, TrainingText, training_texts

EXCERPT_CHARS = 160


@dataclass
class Found:
    """What was found of one passage: the best match, where, and in how many texts it reaches the threshold."""

    match: Match
    text: TrainingText  # with the excerpt for its text
    against: str
    texts: int = 0


@dataclass
class Overlap:
    """Suites compared with training data. `items` has one row an item: see `item_row`."""

    suites: Suites
    limits: Limits
    items: list[dict[str, Any]] = field(default_factory=list)
    against: dict[str, dict[str, int]] = field(default_factory=dict)  # path -> texts and chars read
    num_common: int = 0
    seconds: float = 0.0

    def flagged(self, suite: str) -> set[str]:
        """Names of the suite's items that were found."""
        return {row["item"] for row in self.items if row["suite"] == suite and row["flagged"]}

    def summary(self) -> dict[str, Any]:
        """Counts by suite, the limits, and what was read."""
        suites = {}
        for suite in self.suites:
            rows = [row for row in self.items if row["suite"] == suite]
            how = Counter(row["part"] if row["how"] == "share" else row["how"] for row in rows if row["flagged"])
            suites[suite] = {
                "n": len(rows),
                "flagged": sum(row["flagged"] for row in rows),
                "by": dict(how.most_common()),
                "some_share": sum(row["share"] > 0 for row in rows),
                "not_searchable": sum(not row["searchable"] for row in rows),
            }
        read = sum(facts["chars"] for facts in self.against.values())
        return {
            "suites": suites,
            "against": self.against,
            "limits": asdict(self.limits),
            "common_ngrams": self.num_common,
            "seconds": round(self.seconds, 2),
            "chars_per_s": round(read / self.seconds) if self.seconds else 0,
        }


def find_overlap(
    suites: Suites,
    against: Iterable[Source],
    limits: Limits = Limits(),
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Overlap:
    """Look for the suites' passages in all texts of the paths `against`; memory does not grow with these.

    Raises:
        UserError: a path cannot be read.
    """
    started = time.perf_counter()
    index = OverlapIndex((passage for passages in suites.values() for passage in passages), limits)
    result = Overlap(suites, limits, num_common=index.num_common)
    best: dict[tuple[str, str], Found] = {}  # (item, part) -> what was found
    seen, floor = index.new_seen(), [1e-9] * len(index.keys)
    for source in against:
        path = source if isinstance(source, str) else source.path
        counts = result.against.setdefault(path, {"texts": 0, "chars": 0})
        for batch in batches(training_texts(source, on_bytes)):
            counts["texts"] += len(batch)
            counts["chars"] += sum(len(text.text) for text in batch)
            for match in index.find([text.text for text in batch], floor, seen):
                _keep_best(best, match, batch[match.text], path, limits.threshold)
                floor[match.passage] = max(floor[match.passage], min(match.share, limits.threshold))
    anywhere = index.share_anywhere(seen)
    numbers = {passage: number for number, members in enumerate(index.members) for passage in members}
    for suite, passages in suites.items():
        by_item: dict[str, list[Passage]] = {}
        for passage in passages:
            by_item.setdefault(passage.item, []).append(passage)
        for item, own in by_item.items():
            places = [numbers[passage] for passage in own if passage in numbers]
            row = item_row(item, own, best, limits)
            row["share_anywhere"] = round(max((float(anywhere[place]) for place in places), default=0.0), 4)
            row["searchable"] = bool(any(index.searchable[place] for place in places))
            result.items.append({"suite": suite, **row})
    result.seconds = time.perf_counter() - started
    return result


def item_row(
    item: str, passages: Sequence[Passage], best: Mapping[tuple[str, str], Found], limits: Limits
) -> dict[str, Any]:
    """An item's row: whether it is flagged, the part and text where most of it stands, share, run, excerpt, number of texts."""
    founds = [found for part in dict.fromkeys(p.part for p in passages) if (found := best.get((item, part)))]
    founds.sort(key=lambda found: (is_flag(found.match, limits), found.match.share, found.match.run), reverse=True)
    row: dict[str, Any] = {"item": item, "flagged": False, "share": 0.0, "run": 0, "part": "", "how": "", "texts": 0}
    row |= {"document": "", "source": "", "against": "", "excerpt": "", "question": passages[0].text[:EXCERPT_CHARS]}
    if founds:
        found = founds[0]
        match, text = found.match, found.text
        row |= {"flagged": is_flag(match, limits), "share": round(match.share, 4), "run": match.run, "part": match.part}
        row |= {"how": match.how, "texts": found.texts, "document": text.id, "source": text.source}
        row |= {"against": found.against, "excerpt": text.text}
    return row


def is_flag(match: Match, limits: Limits) -> bool:
    """Whether a match says that the item was in the training data."""
    return match.part in FLAGGING and match.share >= limits.threshold


def _keep_best(
    best: dict[tuple[str, str], Found], match: Match, text: TrainingText, path: str, threshold: float
) -> None:
    for item in match.items:
        old = best.get((item, match.part))
        texts = (old.texts if old else 0) + (match.share >= threshold)
        if old is None or (match.share, match.run) > (old.match.share, old.match.run):
            excerpt = " ".join(nfc(text.text)[match.start : match.stop].split())[:EXCERPT_CHARS]
            best[(item, match.part)] = Found(match, text._replace(text=excerpt), path, texts)
        else:
            old.texts = texts


def suites_overlap(asked: Mapping[Task, Sequence[Item]], against: Iterable[Source] | None) -> Overlap | None:
    """What of the items asked stands in training data; None where none is named.

    Raises:
        UserError: a path cannot be read.
    """
    paths = list(dict.fromkeys(against or ()))  # no path twice
    return (
        find_overlap({t.label: list(task_passages(t, items)) for t, items in asked.items()}, paths) if paths else None
    )
