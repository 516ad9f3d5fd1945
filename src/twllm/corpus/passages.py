"""Evaluation texts in files, as passages to look for: what `twllm eval texts` writes, question sets, or plain texts.

A row is read by its keys: `part` and `text` (ours), `question` with `context`, `choices`, `accept`/`references`/`answer`, `turns`
(MT-Bench's), or `text` alone. Of a .txt or .md file each line that is not blank is a text. `twllm:NAME` is a shipped set.
Not covered: MediaTek's TC-Eval folder (write it out with `twllm eval texts` first).
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twllm.corpus.config import CorpusSource
from twllm.corpus.files import broken_file_errors, decode, kind_of, list_files, open_stream
from twllm.corpus.overlap import Passage
from twllm.corpus.rows import BrokenRow, jsonl_rows, parquet_rows
from twllm.errors import UserError

MIN_REFERENCE = 39  # characters of a reference worth looking for alone: three 13-grams; shorter ones are facts
LETTERS = "ABCDE"
REFERENCES = ("references", "reference", "accept", "answer")


def item_passages(
    item: str,
    question: str,
    *,
    context: str = "",
    choices: Iterable[str] = (),
    references: Iterable[str] = (),
) -> Iterator[Passage]:
    """The passages of one item. A reference that is the letter of a choice stands for the choice's text; a long one (such as a
    summary) is a passage of its own."""
    choices, named = tuple(choices), tuple(references)
    letters = dict(zip(LETTERS, choices, strict=False))
    answers = tuple(dict.fromkeys(letters.get(answer, answer) for answer in named))
    if question:
        yield Passage(item, "question", question, answers)
    if context:
        yield Passage(item, "context", context)
    if len("".join(choices)) >= MIN_REFERENCE:
        yield Passage(item, "choices", "\n".join(choices))
    for answer in answers:
        if len(answer) >= MIN_REFERENCE and answer not in choices:
            yield Passage(item, "reference", answer)


def read_passages(path: str) -> Iterator[Passage]:
    """The passages of a file, a folder or `twllm:NAME`, in order.

    Raises:
        UserError: nothing there, a broken file or row, or a row without a text we know.
    """
    source = CorpusSource(path=path)
    for file in list_files(source):
        for place, row in _rows(file):
            where = f"{file}:{place}"
            if isinstance(row, BrokenRow):
                raise UserError(row.what, where, "修正這一列")
            yield from _row_passages(row, f"{source.label}/{row.get('item') or row.get('id') or place}", where)


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any] | BrokenRow]]:
    kind = kind_of(file)
    try:
        if kind in ("jsonl", "parquet"):
            yield from jsonl_rows(file) if kind == "jsonl" else parquet_rows(file)
        else:
            with open_stream(file) as stream:
                lines = decode(stream.read())[0].splitlines()
            yield from ((str(number), {"text": line}) for number, line in enumerate(lines, 1) if line.strip())
    except broken_file_errors() as error:
        raise UserError(f"檔案不完整或損壞 (damaged file): {error}", file, "重新取得這個檔案") from error


def _row_passages(row: Mapping[str, Any], item: str, where: str) -> Iterator[Passage]:
    """The passages of one row; an item that `eval texts` wrote keeps its own name."""
    text = row.get("text")
    if isinstance(row.get("part"), str) and isinstance(text, str):
        yield Passage(str(row.get("item") or item), row["part"], text, strings(row.get("answers")))
        return
    turns = strings(row.get("turns")) or strings(row.get("question"))
    if not turns and not isinstance(text, str):
        what = "這一列沒有題目也沒有文字 (no question, no text)"
        raise UserError(what, where, f'要有 "question" 或 "text"；有的欄位：{"、".join(map(str, row))}')
    for turn in turns or ():
        references = next((found for key in REFERENCES if (found := strings(row.get(key)))), ())
        context, choices = strings(row.get("context")), strings(row.get("choices"))
        yield from item_passages(item, turn, context="\n".join(context), choices=choices, references=references)
    if not turns:
        yield Passage(item, "text", str(text))


def strings(value: Any) -> tuple[str, ...]:
    """The texts in a value: itself, or those of a list.

    >>> strings("甲"), strings(["甲", "乙"]), strings(None), strings(3)
    (('甲',), ('甲', '乙'), (), ())
    """
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(part for part in value if isinstance(part, str) and part) if isinstance(value, list) else ()
