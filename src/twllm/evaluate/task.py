"""Tasks as data: one TOML a task in `tasks/`, with a version; items are what is asked, responses what came back.

A changed prompt, extraction or average is a new `version`. One task asked and marked in several published ways has a
[protocol.NAME] table for each. What the model is made to begin its answer with (`答案：`) is `answer_prefix`, never part of
the question. Adding a task of a known shape is one TOML file; a new shape
is also a reader in `sources.py` or a scorer in `scorers.py`. A group (`tceval`) names all its tasks.
"""

import re
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from twllm.config import Config
from twllm.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent / "tasks"
LETTERS = "ABCDE"


class Task(Config):
    """One benchmark: where its items come from, how they are asked, how answers are marked and averaged."""

    name: str
    protocol: str = Field("", description="which published way of asking and marking; a file may have several")
    first: bool = Field(True, description="the file's first protocol: what the plain name means")
    kind: str = Field("generate", description="how it is run: a module of evaluate/kinds")
    version: int
    title: str
    source: str = Field(description="where task and prompt come from, and what differs from there")
    prompt: str = Field(description="user message; {context}, {question} and {choices} are filled in")
    choice_prompt: str = Field("", description="the same for an item with choices, where both kinds are in one task")
    scorer: Literal[
        "keywords",
        "keywords_or_choice",
        "prefix_exact_match",
        "mediatek_choice",
        "substring_match",
        "exact_match",
        "first_character",
        "strict_choice",
        "mediatek_sentiment",
        "strict_sentiment",
        "rouge",
        "judge",
        "none",
    ]
    average: Literal["items", "topics"] = Field(description="mean of the items, or unweighted mean of the topics")
    group: str = ""
    options: dict[str, int | float | str] = Field(default_factory=dict, description="numbers and names for the kind")
    published: str = Field("", description="name in MediaTek's result files")
    reader: Literal[
        "questions", "drcd", "choices", "tmmlu", "texts", "needle", "turns", "fgc", "xsum", "imdb", "tmmluplus"
    ] = "questions"
    files: tuple[str, ...] = Field((), description="glob patterns in the data folder, the first that matches counts")
    config: str = Field("", description="configuration name of a `datasets` data set")
    metrics: tuple[str, ...] = Field(("accuracy",), description="what the benchmark calls its scores")
    answer_prefix: str = Field("", description="what the model's answer is made to begin with; marked is what follows")
    labels: tuple[str, ...] = Field((), description="what a numbered label of the data is called in an answer")
    context_chars: int = Field(
        0, description="newlines of the context become spaces and what is longer is cut; 0: as it is"
    )
    question_drop: str = Field("", description="expression for what is taken out of a question before asking")
    question_ending: str = Field("", description="ending of a question that is taken off before asking")
    question_rstrip: str = Field(
        "", description="then all these characters, not only the ending (the seed's str.rstrip)"
    )

    def __hash__(self) -> int:
        return hash(self.label)

    @property
    def label(self) -> str:
        """What results and suites call it."""
        return self.name if self.first else f"{self.name}@{self.protocol}"


class Item(Config):
    """One question of a task. `references` are right answers: texts, keywords, or one letter when there are choices."""

    id: str
    task: str
    question: str
    prompt: str
    references: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    topic: str = ""
    turns: tuple[str, ...] = Field((), description="all turns of the user, where answers are judged turn by turn")
    form: str = Field("", description="kind of question, where a task has several: scores are also told by form")
    answer_prefix: str = Field("", description="what the model's answer is made to begin with")
    context: str = Field(
        "", description="the passage the question is about, as published (for overlap with training text)"
    )

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that is sent to the model; an assistant's message at its end is one the model goes on with."""
        asked = [{"role": "user", "content": self.prompt}]
        return [*asked, {"role": "assistant", "content": self.answer_prefix}] if self.answer_prefix else asked

    @property
    def wording(self) -> str:
        """Everything that is asked, in one text: what hashes of prompts are taken of."""
        return f"{self.prompt}\0{self.answer_prefix}" if self.answer_prefix else self.prompt


class Response(Config):
    """One answer: the row of a responses file. `key` says from which model, prompt and settings ('' : unknown)."""

    task: str
    id: str
    output: str
    prompt: str = ""
    key: str = ""
    too_long: bool = Field(False, description="not asked: the prompt leaves the model no room for an answer")
    scores: tuple[float, ...] = Field((), description="log-likelihoods of the choices, where these were asked for")


@cache
def tasks() -> dict[str, Task]:
    """All tasks by label: `drcd` is the first protocol of its file, `drcd@twllm` a named one."""
    return {task.label: task for file in sorted(FOLDER.glob("*.toml")) for task in load_tasks(file)}


def load_tasks(file: Path) -> list[Task]:
    """The tasks of a TOML file: one, or one for each of its [protocol.NAME] tables, whose keys win over the file's.

    Raises:
        UserError: not TOML, or a key is unknown, missing or of the wrong kind.
    """
    try:
        shared = tomllib.loads(file.read_text(encoding="utf-8"))
        protocols: dict[str, dict[str, object]] = shared.pop("protocol", {}) or {"": {}}
        first = next(iter(protocols))
        return [
            Task(name=file.stem, protocol=name, first=name == first, **_tuples({**shared, **own}))
            for name, own in protocols.items()
        ]
    except (tomllib.TOMLDecodeError, ValidationError, TypeError) as error:
        raise UserError(f"題組設定有誤 (broken task file)：{error}", file, "對照 evaluate/task.py 的 Task") from error


def _tuples(values: dict[str, object]) -> dict[str, object]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def find_tasks(suites: Iterable[str], protocol: str = "") -> list[Task]:
    """The tasks that names of tasks and groups stand for, each once, in the order named.

    `tceval` is a group, `tceval-twllm` the group under one protocol, `drcd@twllm` one task; `protocol` is meant where a name
    has none and the task knows it.

    Raises:
        UserError: a name is neither, or no task of it has the protocol.
    """
    known = tasks()
    groups: dict[str, list[str]] = {}
    for task in known.values():
        if task.first:
            groups.setdefault(task.group or task.name, []).append(task.name)
    names = {
        *known,
        *groups,
        *(f"{task.group}-{task.protocol}" for task in known.values() if task.group and task.protocol),
    }
    found: dict[str, Task] = {}
    for suite in (name.strip() for name in suites):
        group, _, named = suite.partition("-") if suite not in groups and suite not in known else (suite, "", "")
        members = [suite] if suite in known else groups.get(group)
        if members is None or suite not in names:
            raise UserError("沒有這個題組 (unknown suite)", suite, did_you_mean(suite, names))
        chosen = [
            known.get(f"{name}@{named or protocol}") or _under(known[name], named or protocol) for name in members
        ]
        if not any(chosen):
            have = sorted({task.protocol for task in known.values() if task.name in members} - {""})
            raise UserError(
                f"{suite} 沒有「{named or protocol}」這個評法 (unknown protocol)",
                suite,
                did_you_mean(named or protocol, have),
            )
        found.update({task.label: task for task in chosen if task})
    if not found:
        raise UserError("沒有指定題組 (no suite)", "--suite", did_you_mean("", names))
    return list(found.values())


def _under(task: Task, protocol: str) -> Task | None:
    """The task itself where no protocol is asked for, where it is the one asked for, or where the task knows none."""
    return task if not protocol or protocol in ("", task.protocol) or not task.protocol else None


def make_item(
    task: Task, id: str, question: str, references: Iterable[str], *, context: str = "", topic: str = "",
    choices: Iterable[str] = (), rejected: Iterable[str] = (), form: str = "",
) -> Item:  # fmt: skip
    """An item with its prompt filled in."""
    choices = tuple(choices)
    listed = ";".join(f"({letter}) {text}" for letter, text in zip(LETTERS, choices, strict=False))
    if task.context_chars:
        context = context.replace("\n", " ")[: task.context_chars]
    template = task.choice_prompt if choices and task.choice_prompt else task.prompt
    prompt = template.format(context=context, question=_clean(task, question), choices=listed)
    return Item(
        id=id, task=task.label, question=question, prompt=prompt, references=tuple(references), topic=topic,
        choices=choices, rejected=tuple(rejected), form=form, answer_prefix=task.answer_prefix,
        context=context,
    )  # fmt: skip


def _clean(task: Task, question: str) -> str:
    """The question as it is asked."""
    if task.question_drop:
        question = re.sub(task.question_drop, "", question)
    if task.question_rstrip:  # MediaTek's only after the ending, the seed's always
        return question.rstrip(task.question_rstrip) if question.endswith(task.question_ending) else question
    return question.removesuffix(task.question_ending)
