"""Written questions in three forms: open and trap, marked by keywords (right when the answer holds an accepted keyword and
no rejected one; a trap is an open question whose usual wrong answer is another region's), and choice, marked by letter.

Both sides are compared after NFKC, case folding, 臺→台 and without white space, so that 「ＮＴＵ」 = 「ntu」 and 「臺 北」 =
「台北」. Price of so simple a rule: 「不是玉山」 counts as 玉山, and a right answer in words nobody listed is wrong.
Not covered: negation, numbers spelled otherwise (3,952 for 3952), a judge model.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm.corpus.similar import normalise as normalise  # the form in which answers and keywords are compared
from twllm.errors import UserError
from twllm.tokens.conversation import list_files, read_rows


@dataclass(frozen=True)
class Question:
    """One question with its keywords; `topic` is free text, its part before the slash is what reports group by."""

    id: str
    question: str
    accept: tuple[str, ...]
    reject: tuple[str, ...] = ()
    topic: str = ""
    form: str = "open"
    choices: tuple[str, ...] = ()  # then `accept` is one letter


def is_correct(answer: str, accept: Iterable[str], reject: Iterable[str] = ()) -> bool:
    """Whether the answer holds at least one accepted and no rejected keyword."""
    text = normalise(answer)
    return any(normalise(key) in text for key in accept) and not any(normalise(key) in text for key in reject)


def read_questions(source: str | Path) -> list[Question]:
    """All questions of `twllm:NAME`, a file or a folder, in file order.

    Raises:
        UserError: nothing there, a broken row or an id used twice; file and line are named.
    """
    questions: dict[str, Question] = {}
    for file in list_files(source):
        for number, row in _rows(file):
            where = f"{file}:{number}"
            question = _question(row, where)
            if question.id in questions:
                raise UserError(f"題號重複 (duplicate id)：{question.id}", where, "每題的 id 要不同")
            questions[question.id] = question
    if not questions:
        raise UserError(
            "裡面沒有題目 (no questions)", source, '每行一題：{"id", "question", "accept": […], "reject": […]}'
        )
    return list(questions.values())


def _rows(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        yield from read_rows(file)
    except ValueError as error:  # a .json file is parsed as a whole
        raise UserError(f"不是 JSON (broken JSON)：{error}", file, "修正這個檔案") from error


def _question(row: dict[str, Any], where: str) -> Question:
    """The row as a Question, or a UserError that says which field is wrong."""

    def wrong(what: str, fix: str) -> UserError:
        return UserError(what, where, fix)

    texts = {key: row.get(key) for key in ("id", "question")}
    for key, value in texts.items():
        if not isinstance(value, str | int) or not str(value).strip():
            raise wrong(f"少了 {key} ({key} missing)", f'加上 "{key}"')
    if "choices" in row:
        return _choice(row, where)
    keys: dict[str, tuple[str, ...]] = {}
    for name in ("accept", "reject"):
        value = row.get(name, [])
        if not isinstance(value, list) or not all(isinstance(key, str) and normalise(key) for key in value):
            raise wrong(f"{name} 要是非空白字串的清單 (a list of non-blank strings)", f'例如 "{name}": ["玉山"]')
        keys[name] = tuple(value)
    if not keys["accept"]:
        raise wrong("少了 accept，這題永遠不會對 (accept missing)", '至少一個關鍵詞，例如 "accept": ["玉山"]')
    if all(any(normalise(bad) in normalise(good) for bad in keys["reject"]) for good in keys["accept"]):
        raise wrong("每個 accept 都含有 reject 的詞，這題永遠不會對 (accept contains reject)", "修正 accept 或 reject")
    topic, form = str(row.get("topic") or ""), str(row.get("form") or "open")
    return Question(str(row["id"]), str(row["question"]), keys["accept"], keys["reject"], topic, form)


def _choice(row: dict[str, Any], where: str) -> Question:
    """A four-choice row: `choices` and the letter of the right one."""
    choices, answer = row["choices"], row.get("answer")
    if (
        not isinstance(choices, list)
        or not all(isinstance(text, str) and text.strip() for text in choices)
        or not 2 <= len(choices) <= 5
    ):
        raise UserError(
            "choices 要是二到五個非空白字串 (two to five non-blank strings)", where, '例如 "choices": ["玉山", "雪山"]'
        )
    if answer not in list("ABCDE"[: len(choices)]):
        raise UserError("answer 要是選項的代號 (a letter of the choices)", where, '例如 "answer": "A"')
    return Question(
        str(row["id"]), str(row["question"]), (answer,), (), str(row.get("topic") or ""), "choice", tuple(choices)
    )
