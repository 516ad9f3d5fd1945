"""Running text to measure a model on: a file, a folder, the held-out part of a corpus folder, or what ships.

One jsonl or parquet row (`text`), and one txt or md file, is one document. Nothing is cleaned: what is measured is what stands in
the file. Items carry the text in `prompt` and what it belongs to (language, file or source) in `topic`.
Not covered: WARC (build a corpus from it first).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twllm import data
from twllm.corpus.config import CorpusSource
from twllm.corpus.document import Document
from twllm.corpus.read import read_source
from twllm.corpus.store import HELD_OUT, read_documents
from twllm.errors import UserError
from twllm.evaluate.task import Item, Task


class Text(NamedTuple):
    """One document; `group` is its language or where it came from."""

    id: str
    text: str
    group: str


def read_texts(source: str | Path) -> list[Text]:
    """All documents of `twllm:NAME`, a file, a folder, or a corpus folder (of that, the held-out part), in order.

    Raises:
        UserError: nothing there, a broken file, or no document has any text.
    """
    texts = [text for text in _read(source) if text.text.strip()]
    if not texts:
        raise UserError("沒有文字 (no text)", source, "指到有內容的 .txt、.md、.jsonl、.parquet 或語料資料夾")
    return texts


def _read(source: str | Path) -> Iterator[Text]:
    folder = data.resolve(source)
    if (folder / HELD_OUT).is_file():
        yield from (Text(document.id, document.text, "held_out") for document in read_documents(folder, "held_out"))
        return
    for document in read_source(CorpusSource(path=str(source), license="unknown; measured only")):
        if isinstance(document, Document):
            yield Text(document.id, document.text, str(document.metadata.get("language") or document.source))


def text_items(task: Task, source: Path | None) -> list[Item]:
    """The documents as items of a task; `source` None: what its `text` option names, of its `language` if it has one."""
    texts = read_texts(source or str(task.options["text"]))
    language = "" if source else task.options.get("language", "")
    return [
        Item(
            id=text.id, task=task.name, question=_opening(text.text), prompt=text.text, references=(), topic=text.group
        )
        for text in texts
        if language in ("", text.group)
    ]


def _opening(text: str, length: int = 40) -> str:
    line = " ".join(text[: 2 * length].split())
    return line if len(line) <= length else line[:length] + "…"
