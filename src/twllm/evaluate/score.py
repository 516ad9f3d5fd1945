"""From marks to numbers: score, 95 % interval, topics; the block that a suite has in a result."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twllm.artifact import fingerprint
from twllm.evaluate.scorers import SCORERS, Mark
from twllm.evaluate.sources import edition_of
from twllm.evaluate.task import Item, Task

Z = 1.959964  # 95 %
RESAMPLES = 2000  # of the bootstrap: chosen; the bounds of 500 marks move by less than 0.002 from seed to seed
SEED = 1


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (JASA 22:209, 1927): sensible also for 0 or all of few questions.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]
    """
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + Z * Z / (2 * n)
    spread = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_interval(groups: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """95 % interval of the unweighted mean of the groups' shares, from (correct, n) of each.

    Normal approximation; each share's variance is taken at Agresti and Coull's (x + 2)/(n + 4), so that a small group that
    is all right or all wrong still adds some.
    """
    mean = sum(correct / n for correct, n in groups) / len(groups)
    adjusted = [((correct + 2) / (n + 4), n) for correct, n in groups]
    spread = Z * math.sqrt(sum(p * (1 - p) / n for p, n in adjusted)) / len(groups)
    return max(0.0, mean - spread), min(1.0, mean + spread)


def sample_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean of marks that are not just right or wrong (ROUGE): items drawn anew RESAMPLES times.

    Reproducible (fixed seed). Source: Efron, Annals of Statistics 7:1 (1979).
    """
    drawn, marks = np.random.default_rng(SEED), np.asarray(values, dtype=np.float64)
    means = [marks[drawn.integers(0, len(marks), len(marks))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def averages(task: Task, items: Sequence[Item], values: Sequence[float]) -> dict[str, Any]:
    """Score, interval and which interval it is, from one mark an item; with topics also their macro and the items' micro average."""
    groups: dict[str, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        groups.setdefault(group_of(item.topic), []).append(value)
    micro = _mean(values)
    if len(groups) < 2:
        return micro
    macro = {
        "score": sum(sum(marks) / len(marks) for marks in groups.values()) / len(groups),
        "interval": [round(x, 6) for x in mean_interval([(sum(marks), len(marks)) for marks in groups.values()])],
        "interval_by": "normal, 95 %, variances as Agresti-Coull",
    }
    whole = macro if task.average == "topics" else micro
    return {**whole, "macro": macro, "micro": micro}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    right = all(value in (0.0, 1.0) for value in values)
    interval = wilson(sum(values), len(values)) if right else sample_interval(values)
    return {
        "score": sum(values) / len(values),
        "interval": [round(x, 6) for x in interval],
        "interval_by": "Wilson, 95 %" if right else f"bootstrap over items, {RESAMPLES}, 95 %",
    }


def prompt_hash(items: Iterable[Item]) -> str:
    """Hash of ids and prompts: two results are comparable when it is equal."""
    return fingerprint([[item.id, item.wording] for item in items])


def gold_hash(items: Iterable[Item]) -> str:
    """Hash of what counts as right."""
    return fingerprint([[item.id, item.references, item.rejected, item.choices] for item in items])


def group_of(topic: str) -> str:
    """`地理/地形` → `地理`: what topics are counted under."""
    return topic.split("/")[0]


def score_task(
    task: Task, items: Sequence[Item], outputs: Mapping[str, str], too_long: Iterable[str] = ()
) -> dict[str, Any]:
    """A suite's block: score, correct, n, interval, topics, one row an item (in the items' order).

    `outputs` maps item id → answer. An item in `too_long` was not asked, since its prompt does not fit the model, and is wrong.
    """
    skipped = set(too_long)
    rows: list[dict[str, Any]] = []
    values: list[float] = []
    groups: dict[str, list[Any]] = {}  # topic -> [sum of marks, number of items]
    for item in items:
        mark = SCORERS[task.scorer](item, outputs[item.id])
        values.append(mark.value)
        rows.append(_row(task, item, outputs[item.id], mark, item.id in skipped))
        group = groups.setdefault(group_of(item.topic), [0.0, 0])
        group[0], group[1] = group[0] + mark.value, group[1] + 1
    right, n = sum(row["correct"] for row in rows), len(rows)
    forms = {
        form: _share([row["correct"] for row in rows if row.get("form") == form])
        for form in dict.fromkeys(i.form for i in items)
        if form
    }
    topics = {name: {"score": x / k, "correct": round(x), "n": k} for name, (x, k) in groups.items() if name}
    several = [row["scores"] for row in rows if "scores" in row]
    edition = {"edition": name} if (name := edition_of(task, items)) else {}
    return {
        "correct": right,
        "n": n,
        **averages(task, items, values),
        "average": f"mean of {len(topics)} topics" if task.average == "topics" else "mean of items",
        "too_long": len(skipped),
        "task": {
            "name": task.name,
            "version": task.version,
            "title": task.title,
            "scorer": task.scorer,
            "protocol": task.protocol,
            "metrics": list(task.metrics),
            **edition,
        },
        **({"scores": {name: sum(x[name] for x in several) / n for name in several[0]}} if several else {}),
        "prompt_hash": prompt_hash(items),
        "gold_hash": gold_hash(items),
        "topics": topics,
        **({"forms": forms} if len(forms) > 1 else {}),
        "items": rows,
    }


def _share(correct: list[bool]) -> dict[str, Any]:
    """Score, count and interval of some of the items."""
    low, high = wilson(sum(correct), len(correct))
    return {
        "score": sum(correct) / len(correct),
        "correct": sum(correct),
        "n": len(correct),
        "interval": [round(low, 6), round(high, 6)],
    }


def _row(task: Task, item: Item, output: str, mark: Mark, too_long: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": item.id,
        "question": item.question,
        "answer": output,
        "correct": mark.value == 1.0,
        "expected": list(dict.fromkeys(item.references)),
    }
    if mark.scores:
        row |= {"mark": mark.value, "scores": dict(mark.scores)}
    if item.topic:
        row["topic"] = item.topic
    if item.form:
        row["form"] = item.form
    if "choice" in task.scorer and (item.choices or task.scorer != "keywords_or_choice"):
        row["extracted"] = mark.extracted
    if too_long:
        row["too_long"] = True
    return row
