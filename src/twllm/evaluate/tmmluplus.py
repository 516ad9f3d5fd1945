"""TMMLU+ (ikala/tmmluplus, 66 subjects): one CSV a subject and split with question, A, B, C, D, answer.

Files are `SUBJECT_test.csv` as on the hub (or SUBJECT.csv in a folder `test`), and for `options.shots` examples `SUBJECT_train.csv` beside it.
The prompt is lm-evaluation-harness 0.4.13's task `tmmluplus`: a sentence that names the subject, the examples (the first of the
training split, an empty line between), the question without outer white space, one choice a line, `Answer:`; a choice is a space and
its letter. Subjects and the four fields that lm-eval groups them in: tasks/tmmluplus_subjects.tsv, from its subject.tsv and
_generate_configs.py. A subject that is not in that list keeps its file's name. The hub could not be reached when this was
written: the layout is from lm-eval and the data set's card.
"""

import csv
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from twllm.evaluate.task import FOLDER, Item, Task

CHOICES = "ABCD"
SPLIT_ENDINGS = ("_test", "_train", "_val", "_dev")


class Subject(NamedTuple):
    """What a subject is called in the prompt, and the field that lm-eval counts it under."""

    title: str
    field: str


@cache
def subjects() -> dict[str, Subject]:
    """By the name in the data set."""
    with (FOLDER / "tmmluplus_subjects.tsv").open(encoding="utf-8", newline="") as stream:
        return {row["subject"]: Subject(row["title"], row["field"]) for row in csv.DictReader(stream, delimiter="\t")}


def read_tmmluplus(task: Task, file: Path) -> Iterator[Item]:
    """One subject's test questions.

    Raises:
        ValueError: the training split lacks examples, or an answer is no letter; `read_items` names the file.
    """
    subject = _subject_of(file)
    title = subjects()[subject].title if subject in subjects() else subject
    head = f"以下為{title}的單選題，請提供正確答案的選項。\n\n"
    shots = int(task.options.get("shots", 0))
    if shots:
        head += "".join(
            f"{_ask(task, row)} {_answer(number, row)}\n\n" for number, row in _examples(file, subject, shots)
        )
    for number, row in enumerate(_rows(file)):
        yield Item(
            id=f"{subject}/{number}", task=task.label, question=row["question"], prompt=head + _ask(task, row),
            references=(_answer(number, row),), choices=tuple(row[letter] for letter in CHOICES), topic=subject,
        )  # fmt: skip


def _subject_of(file: Path) -> str:
    """`accounting` of `accounting_test.csv`; `tve_design` has no split at its end."""
    return next((file.stem.removesuffix(end) for end in SPLIT_ENDINGS if file.stem.endswith(end)), file.stem)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


def _examples(file: Path, subject: str, shots: int) -> list[tuple[int, dict[str, str]]]:
    beside = [file.with_name(f"{subject}_train.csv"), file.parent.with_name("train") / f"{subject}.csv"]
    train = next((path for path in beside if path.is_file()), None)
    rows = _rows(train) if train else []
    if len(rows) < shots:
        raise ValueError(f"{shots} examples are asked for, {beside[0].name} has {len(rows)}")
    return list(enumerate(rows[:shots]))


def _ask(task: Task, row: dict[str, str]) -> str:
    listed = "\n".join(f"{letter}. {row[letter]}" for letter in CHOICES)
    return task.prompt.format(context="", question=row["question"].strip(), choices=listed)


def _answer(number: int, row: dict[str, str]) -> str:
    answer = row["answer"].strip()
    if answer not in list(CHOICES):
        raise ValueError(f"row {number}: answer {answer!r} is not one of {CHOICES}")
    return answer


def fields(items: list[Item], marks: list[float]) -> dict[str, dict[str, float]]:
    """Share of right answers in each of lm-eval's four fields, questions counted equally."""
    found: dict[str, list[float]] = {}
    for item, mark in zip(items, marks, strict=True):
        if item.topic in subjects():
            found.setdefault(subjects()[item.topic].field, []).append(mark)
    return {name: {"score": sum(marks) / len(marks), "n": len(marks)} for name, marks in sorted(found.items())}
