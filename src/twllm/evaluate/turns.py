"""zh_tw_bench and MT-Bench-TW: questions of one or more turns, their reference answers, and files of published answers.

Layout of FastChat's llm_judge (lm-sys/FastChat, fastchat/llm_judge): `question.jsonl` with {question_id, category, turns},
`reference_answer/NAME.jsonl` beside it and `model_answer/NAME.jsonl` with {question_id, choices: [{turns}]}. Taiwan-LLM's
own answers are {id, generated_text} where id counts from 0 and question_id from 1 (its evaluation/llm_eval.py adds 1).
Answers may also be a responses file of ours. Not covered: several choices per answer (the first counts, as in FastChat).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint, hash_path
from twllm.errors import UserError, require_file
from twllm.evaluate.model import Messages
from twllm.evaluate.task import Item, Task, make_item

Turns = list[list[str]]  # for each item its answers, one a turn


class TurnItem(Item):
    """One turn of a conversation. `prompt` is the whole chat as JSON, so that a changed earlier answer asks the turn again."""

    @property
    def messages(self) -> Messages:
        """The chat that is sent to the model."""
        chat: Messages = json.loads(self.prompt)
        return chat


def turn_item(item: Item, answers: Sequence[str]) -> TurnItem:
    """The turn that comes after `answers`, with the item's earlier turns and these answers before it."""
    chat: Messages = []
    for question, answer in zip(item.turns, answers, strict=False):
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question = item.turns[len(answers)]
    prompt = json.dumps([*chat, {"role": "user", "content": question}], ensure_ascii=False)
    number = len(answers) + 1
    return TurnItem(
        id=f"{item.id}/{number}", task=item.task, question=question, prompt=prompt, references=(), topic=item.topic
    )


def needs_reference(task: Task, topic: str) -> bool:
    """Whether questions of this category are judged against a reference answer."""
    return topic in str(task.options["reference_topics"]).split(",")


def read_turns(task: Task, file: Path) -> Iterator[Item]:
    """The questions; `references` has one reference answer a turn, for the categories that are judged with one.

    Raises:
        ValueError, LookupError, TypeError: another layout, another number of turns, or a reference answer is missing.
    """
    references = dict(_references(file.parent / "reference_answer"))
    seen: set[str] = set()
    for row in _rows(file):
        id, turns, topic = str(row["question_id"]), tuple(row["turns"]), str(row["category"])
        if len(turns) != task.options["turns"] or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise ValueError(f"question {id}: {len(turns)} turns, expected {task.options['turns']}")
        if id in seen:
            raise ValueError(f"question {id} stands there twice")
        seen.add(id)
        reference = references.get(id, ()) if needs_reference(task, topic) else ()
        if needs_reference(task, topic) and (len(reference) != len(turns) or not all(map(str.strip, reference))):
            raise ValueError(f"question {id} ({topic}): no reference answer in {file.parent.name}/reference_answer")
        yield make_item(task, id, turns[0], reference, topic=topic).model_copy(update={"turns": turns})


def _references(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    files = sorted(folder.glob("*.jsonl"))
    if len(files) > 1:
        raise ValueError(f"several files in {folder.name}: {'、'.join(file.name for file in files)}; keep one")
    for row in _rows(files[0]) if files else ():
        yield str(row["question_id"]), tuple(row["choices"][0]["turns"])


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8-sig").split("\n"):
        if line.strip():
            yield json.loads(line)


# -- files of answers ---------------------------------------------------------------------------------------------


class AnswerFile:
    """Published answers in a model's place: `twllm eval model_answer/v1.0.jsonl --suite zh_tw_bench …`. It answers by id."""

    template_fingerprint = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fingerprint = fingerprint(["answers", hash_path(path)])

    def __call__(self, chats: Sequence[Messages]) -> list[str | None]:
        """Raises UserError: a file cannot be asked."""
        what = "這是回答檔，不能拿來問 (a file of answers cannot be asked)"
        raise UserError(what, self.path, "這個題組要用模型；回答檔只能配 zh_tw_bench、mt_bench_tw，或 twllm eval score")

    def turns(self, items: Sequence[Item]) -> Turns:
        """Each item's answers, one a turn.

        Raises:
            UserError: another format, an item without answer, or two different answers to one.
        """
        found: dict[str, dict[int, str]] = {}
        task = items[0].task
        try:
            for row in _rows(self.path):
                for id, turn, text in _answers_in(row, task):
                    if found.setdefault(id, {}).setdefault(turn, text) != text:
                        raise ValueError(f"two answers to {id}, turn {turn + 1}")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"看不懂的回答檔 (unknown format)：{type(error).__name__}: {error}"
            fix = '每行一筆 {"question_id", "choices"}、{"id", "generated_text"}，或我們的 {"task", "id", "output"}'
            raise UserError(what, self.path, fix) from error
        missing = [item.id for item in items if not found.get(item.id, {}).keys() >= set(range(len(item.turns)))]
        if missing:
            what = f"{task} 有 {len(missing)} 題沒有回答 (answers missing)，例如 {missing[0]}"
            raise UserError(what, self.path, "題目與回答要是同一份，每一輪都要有回答")
        return [[found[item.id][turn] for turn in range(len(item.turns))] for item in items]


def _answers_in(row: dict[str, Any], task: str) -> Iterator[tuple[str, int, str]]:
    """(question id, turn from 0, answer) of one row of any of the three formats."""
    if "choices" in row:
        for turn, text in enumerate(row["choices"][0]["turns"]):
            yield str(row["question_id"]), turn, _text(text)
    elif "generated_text" in row:
        yield str(int(row["id"]) + 1), 0, _text(row["generated_text"])
    elif row["task"] == task:
        id, _, number = str(row["id"]).rpartition("/")
        yield id, int(number) - 1, _text(row["output"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"an answer is {type(value).__name__}, not text")
    return value.strip()


def is_answer_file(name: str) -> bool:
    """Whether the name means a file of answers (.json, .jsonl) rather than a model.

    Raises:
        UserError: it does, but no such file is there.
    """
    if name.startswith(("http://", "https://")) or not name.endswith((".json", ".jsonl")):
        return False
    return require_file(Path(name)).is_file()
