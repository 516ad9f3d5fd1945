"""Documents of a source's files as a stream: jsonl, parquet, txt and md here, other kinds in the modules that formats.py names.

What cannot be read (a broken line, a cut-off file, a row without text) stops the build with a UserError that names
the place, or with `on_broken = "skip"` comes out as `Dropped` and is counted. A row or source without a licence
always stops it, and so does a text key that the first row of a file does not have. One txt or md file is one
document, read whole into memory; what is larger than `max_bytes` counts as broken.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twllm import data
from twllm.corpus.config import CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import File, OnBytes, broken_file_errors, decode, kind_of, open_stream, size_of
from twllm.corpus.formats import reader_of
from twllm.corpus.html import TooMuch
from twllm.corpus.limits import TooSlow, time_limit
from twllm.corpus.remote import RemoteFile
from twllm.corpus.rows import MAX_LINE_BYTES, BrokenRow, jsonl_rows, parquet_rows
from twllm.corpus.takedown import Takedown
from twllm.errors import UserError, did_you_mean

STEP = "read"
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\r?\n)---[ \t]*\r?\n", re.DOTALL)
TITLE = re.compile(r"^title:[ \t]*[\"']?(.*?)[\"']?[ \t\r]*$", re.MULTILINE)
OURS = ("id", "url", "license", "metadata", "history")


@dataclass(frozen=True)
class Reading:
    """One source being read: turns raw rows into documents, and trouble into an error or a drop."""

    source: CorpusSource
    skip_broken: bool = False
    on_bytes: OnBytes = lambda _: None
    max_bytes: int = MAX_LINE_BYTES  # of a line, a page, a file that is one document
    max_seconds: float = 60.0  # a page, docx, epub or pdf takes longer: dropped
    takedown: Takedown | None = None
    on_takedown: Callable[[Document], None] = lambda _: None

    def document(self, row: Mapping[str, Any], text: str, place: str) -> Document:
        """A document of this source; the row's own licence wins. `place` names a row without id.

        Raises:
            UserError: neither the row nor the source has a licence.
        """
        terms = str(row.get("license") or self.source.terms)
        if not terms:
            fix = '在 [[corpus.sources]] 加上 license = "…"（例如 "CC-BY-4.0"），或在每一列寫 license'
            raise UserError("這份語料沒有授權資訊 (no licence)", f"{self.source.origin} {place}", fix)
        name = self.source.label
        more = {key: value for key, value in row.items() if key not in OURS and value is not None}
        inner = row.get("metadata")
        more |= inner if isinstance(inner, dict) else {"metadata": inner} if inner else {}
        own_id = row.get("id")
        identity = f"{name}/{place if own_id is None or own_id == '' else own_id}"
        history = tuple(row.get("history") or ())
        return Document(identity, text, name, str(row.get("url") or ""), terms, more, history)

    def broken(self, reason: str, what: str, where: str, excerpt: str = "", fix: str = "") -> Dropped:
        """The drop that stands for it, if broken input is skipped.

        Raises:
            UserError: it is not.
        """
        if not self.skip_broken:
            raise UserError(what, where, fix or '修正它，或設 corpus.on_broken = "skip" 略過並計數')
        return Dropped(Document(where, excerpt, self.source.label), STEP, reason, what)

    def whole(self, file: File) -> bytes | Dropped:
        """The unpacked bytes of a file that is one document, or the drop of one that is too large.

        Raises:
            UserError: it is too large, and broken input is not skipped.
        """
        with open_stream(file, self.on_bytes) as stream:
            raw = stream.read(self.max_bytes + 1)
        if len(raw) <= self.max_bytes:
            return raw
        return self.too_large(file)

    def too_large(self, file: File) -> Dropped:
        """The drop of a file that is larger than the limit, or unpacks to more.

        Raises:
            UserError: broken input is not skipped.
        """
        what = f"檔案太大 (file too large): > {self.max_bytes / 2**20:.0f} MB"
        return self.broken("too_large", what, str(file), fix="分成幾個檔案，或提高 corpus.max_document_mb")

    def bounded(self, make: Callable[[], Mapping[str, Any] | None], where: str) -> Mapping[str, Any] | Dropped | None:
        """The row that `make` gives, or the drop of a page that takes too long or is nested too deep.

        Raises:
            UserError: it is one, and broken input is not skipped.
        """
        try:
            with time_limit(self.max_seconds):
                return make()
        except TooSlow as error:
            fix = '提高 corpus.max_document_seconds，或設 corpus.on_broken = "skip" 略過並計數'
            return self.broken("too_slow", f"處理太久 (takes too long): > {error}", where, fix=fix)
        except TooMuch as error:
            return self.broken("too_deep", f"標籤太多或巢狀太深 (too costly to parse): {error}", where)

    def place(self, file: File) -> str:
        """The file's path below the source's folder, or its name."""
        if isinstance(file, RemoteFile):
            below = file.url.removeprefix(self.source.path.split("*")[0].rstrip("/") + "/")
            return below if below != file.url and "*" not in self.source.path else file.name
        root = data.resolve(self.source.path)
        return file.relative_to(root).as_posix() if file.is_relative_to(root) and file != root else file.name

    def rows(
        self, rows: Iterator[tuple[str, Mapping[str, Any] | Dropped]], file: File | str
    ) -> Iterator[Document | Dropped]:
        """Documents of (place, row) pairs whose text is under the source's text key."""
        key, first = self.source.text_key, True
        for place, row in rows:
            if isinstance(row, Dropped):
                yield row
                continue
            text = row.get(key)
            if first and key not in row:
                raise UserError(
                    f"沒有「{key}」這個欄位 (no such text key)", f"{file}:{place}", missing_key_fix(key, row)
                )
            first = False
            if isinstance(text, str):
                yield self.document(
                    {k: v for k, v in row.items() if k != key},
                    text,
                    f"{file if isinstance(file, str) else file.name}:{place}",
                )
            else:
                what = f"這一列沒有文字 (no text under {key!r})"
                yield self.broken("no_text", what, f"{file}:{place}", json.dumps(row, ensure_ascii=False, default=str))


def missing_key_fix(key: str, row: Mapping[str, Any]) -> str:
    """Which keys there are, and the setting to change."""
    texts = [name for name, value in row.items() if isinstance(value, str)]
    return f'這一列的欄位：{"、".join(row)}。{did_you_mean(key, texts)} 設 text_key = "…"'


def read_source(
    source: CorpusSource, skip_broken: bool = False, on_bytes: OnBytes = lambda _: None
) -> Iterator[Document | Dropped]:
    """The documents of a source in file and line order, at most `source.limit` of them (drops not counted).

    Raises:
        UserError: no such source, no licence, or (unless `skip_broken`) broken input; the place is named.
    """
    from twllm.corpus.sources import plan_source, read_part

    reading = Reading(source, skip_broken, on_bytes)
    for part in plan_source(source):
        yield from read_part(part, reading)


def read_file(file: File, reading: Reading) -> Iterator[Document | Dropped]:
    """The documents of one file, by its kind; a damaged file ends with a drop or an error."""
    try:
        yield from reader_of(kind_of(file) or "")(file, reading)
    except broken_file_errors() as error:
        fix = '重新下載這個檔案，或設 corpus.on_broken = "skip" 用讀得到的部分'
        yield reading.broken("broken_file", f"檔案不完整或損壞 (damaged file): {error}", str(file), fix=fix)


def read_jsonl(file: File, reading: Reading) -> Iterator[Document | Dropped]:
    """One JSON object a line."""
    rows = jsonl_rows(file, reading.on_bytes, reading.max_bytes)
    yield from reading.rows(_told(rows, file, reading), file)


def read_parquet(file: File, reading: Reading) -> Iterator[Document | Dropped]:
    """One document a row; row groups are read one batch at a time."""
    yield from reading.rows(_told(parquet_rows(file), file, reading), file)
    reading.on_bytes(size_of(file))


def _told(
    rows: Iterable[tuple[str, Mapping[str, Any] | BrokenRow]], file: File, reading: Reading
) -> Iterator[tuple[str, Mapping[str, Any] | Dropped]]:
    """The rows, each broken one as the drop (or the error) that `reading` makes of it."""
    for place, row in rows:
        if isinstance(row, BrokenRow):
            where = str(file) if row.reason == "broken_file" else f"{file}:{place}"
            yield place, reading.broken(row.reason, row.what, where, row.excerpt)
        else:
            yield place, row


def read_text(file: File, reading: Reading) -> Iterator[Document | Dropped]:
    """A whole txt or md file as one document; an md file's YAML front matter goes, but for its title."""
    raw = reading.whole(file)
    if isinstance(raw, Dropped):
        yield raw
        return
    text, charset = decode(raw)
    row: dict[str, Any] = {} if charset == "utf-8-sig" else {"charset": charset}
    if kind_of(file) == "markdown" and (front := FRONT_MATTER.match(text)):
        text = text[front.end() :]
        if title := TITLE.search(front[1]):
            row["title"] = title[1]
    yield reading.document(row, text, reading.place(file))
