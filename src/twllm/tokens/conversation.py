"""Conversations of a data set: files → rows → messages, each with source, licence, address and author.

A row that is no conversation stops the reader with file and line, or with `on_broken = "skip"` is counted in `Tally` by
reason; what a format's own rule leaves out (a deleted OASST message, a window of a transcript without a question) is
always counted. Reading the same data set again gives the same conversations in the same order.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint
from twllm.corpus.rows import BrokenRow
from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.rows import broken_error, file_rows, list_files, read_rows
from twllm.tokens.shapes import USED, BadRow, parse_messages

__all__ = ["Conversation", "Tally", "list_files", "parse_messages", "read_conversations", "read_dataset", "read_rows"]
OURS = USED | {"id", "source", "license", "licence", "url", "author", "rating"}
PRIVATE = {"ip", "user_id", "user", "email"}  # never kept: training needs no person's address


@dataclass(frozen=True)
class Conversation:
    """One dialogue. `rating` is +1, -1 or None (not rated); `license` and `source` go along into every artifact."""

    messages: tuple[dict[str, str], ...]
    id: str = ""
    source: str = ""
    license: str = ""
    rating: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    author: str = ""

    @property
    def generator(self) -> str:
        """The model that wrote the answers, where the row names one (`model`, `model_name`, `generator`); else ""."""
        names = (self.metadata.get(key) for key in ("model", "model_name", "generator"))
        return next((name for name in names if isinstance(name, str) and name), "")


@dataclass
class Tally:
    """What reading a data set met: rows, and by reason what was left out and what was put right; one example each."""

    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, where: str = "", count: int = 1) -> None:
        """Count something left out; the first place of each reason is kept to be shown."""
        self.skipped[reason] += count
        if where:
            self.examples.setdefault(reason, where)


def conversations_of(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows a row stands for: a fact (`questions` + one `answer`) is one conversation per wording, any other is itself."""
    if isinstance(row.get("questions"), list) and "answer" in row:
        for number, question in enumerate(row["questions"]):
            pair = [{"role": "user", "content": question}, {"role": "assistant", "content": row["answer"]}]
            yield {**row, "id": f"{row.get('id', '')}/{number}", "messages": pair}
    else:
        yield dict(row)


def read_conversations(source: str | Path, format: str = "messages") -> Iterator[Conversation]:
    """All conversations of a source with the default settings.

    Raises:
        UserError: see `read_dataset`.
    """
    return read_dataset(DatasetConfig.model_validate({"path": str(source), "format": format}))


def read_dataset(dataset: DatasetConfig, tally: Tally | None = None) -> Iterator[Conversation]:
    """The conversations of a data set, in file order; the row's own licence wins over the data set's.

    Raises:
        UserError: no such source, or (unless `on_broken = "skip"`) a row that is no conversation; file and line are named.
    """
    tally = Tally() if tally is None else tally
    for file, place, item in unread_conversations(dataset, tally):
        found = conversation_of(item, dataset, tally, f"{file}:{place}")
        if found is not None:
            yield found


def unread_conversations(dataset: DatasetConfig, tally: Tally) -> Iterator[tuple[Path, str, Mapping[str, Any]]]:
    """(file, place, conversation as it stands there) of a data set, in file order; broken rows are counted.

    Raises:
        UserError: no such source, or (unless `on_broken = "skip"`) a broken row.
    """
    for file in list_files(dataset.path, dataset.format):
        for place, row in rows_of(file, dataset, tally):
            tally.rows += 1
            if isinstance(row, BrokenRow):
                if dataset.on_broken == "stop":
                    raise broken_error(file, place, row, may_skip=True)
                tally.skip(row.reason, f"{file}:{place}")
                continue
            for item in conversations_of(row):
                yield file, place, item


def rows_of(file: Path, dataset: DatasetConfig, tally: Tally) -> Iterator[tuple[str, dict[str, Any] | BrokenRow]]:
    """(place, row) of one file by the data set's format, or by the shape of its first row."""
    from twllm.tokens.adapters import READERS, detect

    format = detect(file) if dataset.format == "messages" else dataset.format
    return file_rows(file) if format == "messages" else READERS[format](file, dataset, tally)


def conversation_of(row: Mapping[str, Any], dataset: DatasetConfig, tally: Tally, where: str) -> Conversation | None:
    """The row as a Conversation, or None where it is skipped and counted."""
    if not language_fits(row.get("language") or row.get("lang"), dataset.languages):
        tally.skip("language", where)
        return None
    keys = ("", "") if "messages" in row else (dataset.question_key, dataset.answer_key)
    try:
        messages = parse_messages(row, *keys, tally.repaired)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error.reason if isinstance(error, BadRow) else "unknown_shape"
        if dataset.on_broken == "skip":
            tally.skip(reason, where)
            return None
        what = f"不是對話格式 (not a conversation): {error}"
        fix = '修正這一列，或設 on_broken = "skip" 略過並計數；各種格式見 docs/conversations.md'
        raise UserError(what, where, fix) from error
    if dataset.max_leak_rate < 1 and _leak_rate(messages) > dataset.max_leak_rate:
        tally.skip("not_zh_tw", where)
        return None
    own = str(row.get("license") or row.get("licence") or "")
    return Conversation(
        messages=tuple(messages),
        id=str(row.get("id") or row.get("conversation_id") or fingerprint(messages)),
        source=str(row.get("source") or label_of(dataset.path)),
        license=own or dataset.license,
        rating=row["rating"] if row.get("rating") in (1, -1) else None,
        metadata={k: v for k, v in row.items() if k not in OURS and k not in PRIVATE and k != dataset.question_key},
        url=str(row.get("url") or ""),
        author=str(row.get("author") or ""),
    )


def _leak_rate(messages: list[dict[str, str]]) -> float:
    """How much of what the assistant says is not written as Taiwan writes."""
    from twllm.corpus.check import leak_rate

    return leak_rate(message["content"] for message in messages if message["role"] == "assistant")


def label_of(path: str) -> str:
    """The data set's name: `twllm:NAME` as it is, else the last part of the path without its suffixes."""
    return path if path.startswith("twllm:") else Path(path).name.split(".")[0] or path


def language_fits(tag: Any, wanted: tuple[str, ...]) -> bool:
    """Whether a row's language tag is one of those wanted; no tag and no wish fit always.

    >>> language_fits("zh-TW", ("zh",)), language_fits("en", ("zh",)), language_fits(None, ("zh",))
    (True, False, True)
    """
    plain = str(tag or "").lower().replace("_", "-")
    return not wanted or not plain or any(plain == w.lower() or plain.startswith(f"{w.lower()}-") for w in wanted)
