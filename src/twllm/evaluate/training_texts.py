"""What a model was trained on, as a stream of texts: a corpus folder, corpus files, or conversations (SFT data).

Each file is read for what it holds: rows with `text` as documents, any other rows as conversations (all messages of one are one
text, so that question and answer stand together). Of a corpus folder the held-out part is left out: nobody trains on it.
Formats that must be named (`transcript`, `squad`, `xml`, …) come as a recipe's DatasetConfig.
Not covered: these on the command line, token shards (their text is gone).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from twllm import data
from twllm.corpus.config import CorpusSource
from twllm.corpus.document import Document
from twllm.corpus.files import OUTPUT, SHARDS, broken_file_errors, document_files, kind_of, list_files
from twllm.corpus.read import Reading, read_file
from twllm.corpus.rows import jsonl_rows, parquet_rows
from twllm.errors import UserError, require_file
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import read_dataset
from twllm.tokens.rows import KINDS, suffix_of

UNKNOWN = "unknown"  # licence of a source that names none: nothing is released here, only compared


class TrainingText(NamedTuple):
    """One document or conversation: its id, and the source that its row or file names."""

    id: str
    source: str
    text: str


Source = str | DatasetConfig  # a data set as a recipe reads it, or a path


def training_files(path: str) -> list[Path]:
    """The files that a path stands for: `twllm:NAME`, a corpus folder, a folder, a file, a glob.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    root = data.resolve(path)
    if not root.is_dir():
        if any(sign in path for sign in "*?["):
            return list_files(CorpusSource(path=path))
        return [require_file(root, "找不到訓練資料 (no such training data)")]
    if documents := document_files(root):
        return documents
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    files = [file for file in files if file.name != "manifest.json" and (kind_of(file) or suffix_of(file) in KINDS)]
    if not files:
        raise UserError(
            "資料夾裡沒有可讀的檔案 (no data files)", root, "指到語料資料夾、.jsonl、.parquet、.txt、.md 或 .csv"
        )
    return files


def training_texts(path: Source, on_bytes: Callable[[int], None] = lambda _: None) -> Iterator[TrainingText]:
    """All texts, in file order.

    Raises:
        UserError: nothing there, or a broken row; the place is named.
    """
    if isinstance(path, DatasetConfig):
        yield from _conversations(path)
        return
    for file in training_files(path):
        if holds_documents(file):
            source = CorpusSource(path=str(file), license=UNKNOWN)
            ours = (
                f"{source.label}/" if file.name == OUTPUT or file.parent.name == SHARDS else ""
            )  # a corpus folder's documents keep their ids
            for item in read_file(file, Reading(source, on_bytes=on_bytes)):
                if isinstance(item, Document):
                    yield TrainingText(
                        item.id.removeprefix(ours), str(item.metadata.get("source") or item.source), item.text
                    )
        else:
            yield from _conversations(DatasetConfig(path=str(file)))
            on_bytes(file.stat().st_size)


def _conversations(dataset: DatasetConfig) -> Iterator[TrainingText]:
    for chat in read_dataset(dataset):
        yield TrainingText(chat.id, chat.source, "\n".join(message["content"] for message in chat.messages))


def holds_documents(file: Path) -> bool:
    """Whether a file's first row is a text (a broken file is left to its reader to tell)."""
    kind = kind_of(file)
    if kind not in ("jsonl", "parquet"):
        return kind is not None
    try:
        _, row = next(iter(jsonl_rows(file) if kind == "jsonl" else parquet_rows(file)), ("", {}))
    except broken_file_errors():
        return True
    return not isinstance(row, dict) or isinstance(row.get("text"), str)
