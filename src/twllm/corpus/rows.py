"""JSON lines and parquet as rows, for documents and conversations alike: one loop that says what is broken.

A row that cannot be read comes out as `BrokenRow` in its place, so that a caller may stop there (and name the line) or
count it and go on. A line longer than the limit is never held whole: its first bytes are kept to show it, the rest is
read past.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from twllm.corpus.files import File, OnBytes, open_stream
from twllm.corpus.remote import RemoteFile

EXCERPT_BYTES = 400
MAX_LINE_BYTES = 64 << 20
PIECE_BYTES = 1 << 20
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """Stands where a row should be: `reason` is counted, `what` is told to people, `excerpt` shows it."""

    reason: str
    what: str
    excerpt: str = ""


class LongLine(bytes):
    """The first bytes of a line that is longer than the limit."""


def bounded_lines(stream: io.BufferedIOBase, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a stream; one of more than `max_bytes` as a LongLine."""
    piece = min(max_bytes, PIECE_BYTES)
    while line := stream.readline(piece):
        if len(line) < piece or line.endswith(b"\n"):
            yield line
            continue
        whole = bytearray(line)
        while line and not line.endswith(b"\n") and len(whole) < max_bytes:
            line = stream.readline(min(piece, max_bytes - len(whole)))
            whole += line
        if not line or line.endswith(b"\n"):
            yield bytes(whole)
            continue
        excerpt = LongLine(whole[:EXCERPT_BYTES])
        del whole
        while line and not line.endswith(b"\n"):
            line = stream.readline(piece)
        yield excerpt


def jsonl_rows(
    file: File, on_bytes: OnBytes = lambda _: None, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[str, Row | BrokenRow]]:
    """(line number, object) of a .jsonl file, packed or not; blank lines are passed over.

    Raises:
        files.broken_file_errors(): a packed file is damaged.
    """
    with open_stream(file, on_bytes) as stream:
        yield from parse_lines(bounded_lines(stream, max_bytes))


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[str, Row | BrokenRow]]:
    """(line number, object) of lines of JSON objects; a byte order mark on the first one is allowed."""
    for number, line in enumerate(lines, 1):
        if number == 1 and not isinstance(line, LongLine):
            line = line.removeprefix(b"\xef\xbb\xbf")
        if isinstance(line, LongLine):
            what = "這一行太長 (line too long)"
            yield str(number), BrokenRow("long_line", what, line.decode("utf-8", "replace"))
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            what = f"這一行不是 JSON 物件 (broken JSON line): {error}"
            yield str(number), BrokenRow("broken_line", what, line[:EXCERPT_BYTES].decode("utf-8", "replace"))
        else:
            yield str(number), row


def parquet_rows(file: File, batch_size: int = 512) -> Iterator[tuple[str, Row | BrokenRow]]:
    """(row number, row) of a .parquet file, one batch of rows in memory at a time; a damaged file ends with a BrokenRow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file.open() if isinstance(file, RemoteFile) else file) as table:
            for batch in table.iter_batches(batch_size=batch_size):
                for row in batch.to_pylist():
                    number += 1
                    yield str(number), row
    except (pa.ArrowException, OSError) as error:
        what = f"parquet 檔損壞 (damaged parquet): {str(error)[:200]}"
        yield str(number + 1), BrokenRow("broken_file", what)
