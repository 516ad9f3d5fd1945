"""From marks to numbers: score, 95 % interval, topics; the block that a suite has in a result."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twllm.artifact import fingerprint
from twllm.evaluate.scorers import SCORERS
from twllm.evaluate.task import Item, Task

Z = 1.959964  # 95 %


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


def prompt_hash(items: Iterable[Item]) -> str:
    """Hash of ids and prompts: two results are comparable when it is equal."""
    return fingerprint([[item.id, item.prompt] for item in items])


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
    groups: dict[str, list[Any]] = {}  # topic -> [sum of marks, number of items]
    for item in items:
        mark = SCORERS[task.scorer](item, outputs[item.id])
        rows.append(_row(task, item, outputs[item.id], mark.value, mark.extracted, item.id in skipped))
        group = groups.setdefault(group_of(item.topic), [0.0, 0])
        group[0], group[1] = group[0] + mark.value, group[1] + 1
    right, n = sum(row["correct"] for row in rows), len(rows)
    forms = {
        form: _share([row["correct"] for row in rows if row.get("form") == form])
        for form in dict.fromkeys(i.form for i in items)
        if form
    }
    topics = {name: {"score": x / k, "correct": round(x), "n": k} for name, (x, k) in groups.items() if name}
    if task.average == "topics":
        score = sum(topic["score"] for topic in topics.values()) / len(topics)
        interval = mean_interval([(x, k) for x, k in groups.values()])
    else:
        score, interval = sum(x for x, _ in groups.values()) / n, wilson(right, n)
    return {
        "score": score,
        "correct": right,
        "n": n,
        "interval": [round(bound, 6) for bound in interval],
        "average": f"mean of {len(topics)} topics" if task.average == "topics" else "mean of items",
        "too_long": len(skipped),
        "task": {"name": task.name, "version": task.version, "title": task.title, "scorer": task.scorer},
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


def _row(task: Task, item: Item, output: str, value: float, extracted: str, too_long: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": item.id,
        "question": item.question,
        "answer": output,
        "correct": value == 1.0,
        "expected": list(dict.fromkeys(item.references)),
    }
    if item.topic:
        row["topic"] = item.topic
    if item.form:
        row["form"] = item.form
    if item.choices and "choice" in task.scorer:
        row["extracted"] = extracted
    if too_long:
        row["too_long"] = True
    return row
