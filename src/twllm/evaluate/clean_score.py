"""Flags in results: which items of a suite stand in training data, and the score without them.

A block gets `flagged` (in each row, and their count) and `clean` {score, n, interval}, computed as its own score was: shares with
Wilson's interval or that of a mean of topics, ROUGE marks, verdicts, ratings, bits per character. It is told only where the
same computation over all rows gives the block's score again; else `clean` is None and `clean_why` says so.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from twllm.evaluate.score import group_of, mean_interval, sample_interval, wilson
from twllm.evaluate.suite_overlap import Overlap
from twllm.evaluate.suite_passages import item_name
from twllm.evaluate.verdicts import mean_rating, pair_score

BY_TOPIC = re.compile(r"mean of \d+ (topics|groups)$")
NO_TELLING = "題組的得分不是各題的平均，不含汙染題的得分算不出來 (the score is no mean of its items)"
NOTHING_LEFT = {"score": None, "n": 0, "interval": [None, None]}


def flag_blocks(blocks: Mapping[str, dict[str, Any]], meta: dict[str, Any], overlap: Overlap | None) -> None:
    """Flag all blocks of a result, and tell in its meta what they were compared with; nothing where there is no overlap."""
    if overlap is None:
        return
    summary = overlap.summary()
    meta["contamination"] = {key: summary[key] for key in ("against", "limits", "suites")}
    for suite, block in blocks.items():
        flag_items(block, suite, overlap.flagged(suite))


def flag_items(block: dict[str, Any], suite: str, flagged: set[str]) -> None:
    """Mark a suite's block; `flagged` holds names of items (`suite_passages.item_name`). Blocks without rows stay as they are."""
    rows = block.get("items")
    if not rows:
        return
    for row in rows:
        id = str(row["id"]).rpartition("/")[0] if "turn" in row else str(row["id"])
        row["flagged"] = item_name(suite, id) in flagged
    block["flagged"] = sum(row["flagged"] for row in rows)
    by_topic = bool(BY_TOPIC.match(str(block.get("average", ""))))
    again = _score_of(rows, by_topic)
    same = again and None not in (again["score"], block["score"])
    if not same or not math.isclose(again["score"], block["score"], rel_tol=1e-9, abs_tol=1e-9):
        block["clean"], block["clean_why"] = None, NO_TELLING
        return
    left = [row for row in rows if not row["flagged"]]
    block["clean"] = _score_of(left, by_topic) if left else NOTHING_LEFT


def _score_of(rows: Sequence[Mapping[str, Any]], by_topic: bool) -> dict[str, Any]:
    """Score, n and interval of rows with an `outcome`, `rating`, `mark`, `correct` or `score`; of none of these no score."""
    if "outcome" in rows[0]:
        return _told(pair_score(row["outcome"] for row in rows))
    if "rating" in rows[0]:
        questions: dict[str, list[float | None]] = {}
        for row in rows:
            questions.setdefault(str(row["id"]).rpartition("/")[0], []).append(row["rating"])
        return _told(mean_rating(list(questions.values())))
    for key in ("mark", "correct", "score"):
        if all(isinstance(row.get(key), int | float) for row in rows):
            return _mean_of(rows, key, by_topic)
    return NOTHING_LEFT


def _told(block: Mapping[str, Any]) -> dict[str, Any]:
    return {"score": block["score"], "n": block["n"], "interval": block["interval"] or [None, None]}


def _mean_of(rows: Sequence[Mapping[str, Any]], key: str, by_topic: bool) -> dict[str, Any]:
    """The mean of the rows, weighted by `chars` where they have them, or of their topics' means. Bits have no interval here."""
    groups: dict[str, list[tuple[float, float]]] = {}  # topic -> (value, weight) of each row
    for row in rows:
        topic = group_of(str(row.get("topic", ""))) if by_topic else ""
        groups.setdefault(topic, []).append((float(row[key]), float(row.get("chars", 1))))
    means = [math.fsum(v * w for v, w in pairs) / math.fsum(w for _, w in pairs) for pairs in groups.values()]
    sums = [(math.fsum(v for v, _ in pairs), len(pairs)) for pairs in groups.values()]
    interval: Sequence[float | None] = (None, None)
    if key == "correct":
        interval = mean_interval(sums) if by_topic else wilson(*sums[0])
    elif key == "mark" and not by_topic:
        interval = sample_interval([float(row[key]) for row in rows])
    bounds = [None if bound is None else round(bound, 6) for bound in interval]
    return {"score": math.fsum(means) / len(means), "n": len(rows), "interval": bounds}
