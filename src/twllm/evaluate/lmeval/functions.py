"""What the exported YAML files call: items as lm-eval's documents, our marks, the mean over topics.

lm-eval hands a task's `metadata` to `load`, together with the model's arguments and what `--metadata` says: another data folder is
`--metadata '{"twllm_data": "DIR"}'`. Of equally likely answers the first counts.
"""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from twllm.evaluate.lmeval.export import DATA, DEFAULT_QUESTIONS
from twllm.evaluate.score import group_of
from twllm.evaluate.scorers import SCORERS
from twllm.evaluate.sources import read_items
from twllm.evaluate.task import LETTERS, Item, Task, tasks

BRACKETED = re.compile(r"[(（]([A-E])[)）]")
NUM_LETTERS = 4  # of a question that lists no letters: A to D


def load(
    twllm_task: str, twllm_data: str = "", twllm_topic: str = "", twllm_scored: bool = False, **_: Any
) -> dict[str, Any]:
    """{"test": the items of a task (of one topic)}; with `twllm_scored` only those answered by a letter or a label."""
    from datasets import Dataset

    task = tasks()[twllm_task]
    items = _items(task, twllm_data or os.environ.get(DATA, ""))
    chosen = [item for item in items if not twllm_topic or group_of(item.topic) == twllm_topic]
    return {"test": Dataset.from_list([d for d in (document(task, i, twllm_scored) for i in chosen) if d])}


@lru_cache(maxsize=32)
def _items(task: Task, data: str) -> list[Item]:
    """Read once for all topics of a task."""
    return read_items(task, DEFAULT_QUESTIONS, Path(data) if data else None)


def document(task: Task, item: Item, scored: bool) -> dict[str, Any] | None:
    """An item as lm-eval's document, None where it has no answers to choose from."""
    row: dict[str, Any] = {
        "id": item.id, "prompt": item.prompt, "target": item.references[0] if item.references else "",
        "topic": group_of(item.topic), "twllm_task": task.label, "item": item.model_dump_json(),
    }  # fmt: skip
    if not scored:
        return row
    answers = candidates(task, item)
    if item.references[0] not in answers:
        return None
    return {**row, "answers": answers, "gold": answers.index(item.references[0])}


def candidates(task: Task, item: Item) -> list[str]:
    """The answers whose likelihood is compared: the labels, the choices' letters, or the letters in the question's brackets."""
    if task.labels:
        return list(task.labels)
    if item.choices:
        return list(LETTERS[: len(item.choices)])
    listed = BRACKETED.findall(item.question)
    last = max([LETTERS.index(letter) for letter in [*listed, *item.references] if letter in list(LETTERS)], default=0)
    return list(LETTERS[: max(last + 1, NUM_LETTERS)])


def mark_answer(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Our scorer's mark of a generated answer, under the benchmark's names; (topic, mark) where topics are averaged."""
    task = tasks()[doc["twllm_task"]]
    mark = SCORERS[task.scorer](Item.model_validate_json(doc["item"]), results[0].strip())
    return {name: _valued(task, doc, mark.scores.get(name, mark.value)) for name in task.metrics}


def mark_choice(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """lm-eval's acc and acc_norm: 1 where the right answer is the most likely one, as it is or for each of its characters."""
    sums = [float(logprob) for logprob, _ in results]
    norms = [logprob / len(answer) for logprob, answer in zip(sums, doc["answers"], strict=True)]
    task = tasks()[doc["twllm_task"]]
    marks = {"acc": sums, "acc_norm": norms}
    return {name: _valued(task, doc, float(found.index(max(found)) == doc["gold"])) for name, found in marks.items()}


def _valued(task: Task, doc: dict[str, Any], value: float) -> Any:
    return _Mark(value, doc["topic"]) if task.average == "topics" else value


class _Mark(float):
    """A mark that remembers its topic, so that one task can be averaged either way."""

    topic: str

    def __new__(cls, value: float, topic: str = "") -> "_Mark":
        """The number `value`; pickling puts the topic back afterwards."""
        mark = super().__new__(cls, value)
        mark.topic = topic
        return mark


def mean_of_topics(marks: Sequence[_Mark]) -> float:
    """Unweighted mean over topics of the topics' means."""
    topics: dict[str, list[float]] = {}
    for mark in marks:
        topics.setdefault(mark.topic, []).append(mark)
    return sum(sum(values) / len(values) for values in topics.values()) / len(topics)
