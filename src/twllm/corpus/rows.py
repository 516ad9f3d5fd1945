"""JSON lines and parquet as rows, for documents and conversations alike: one loop that says what is broken.

A row that cannot be read comes out as `BrokenRow` in its place, so that a caller may stop there (and name the line) or
count it and go on.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm.corpus.files import OnBytes, open_stream

EXCERPT_BYTES = 400
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """Stands where a row should be: `reason` is counted, `what` is told to people, `excerpt` shows it."""

    reason: str
    what: str
    excerpt: str = ""


def jsonl_rows(file: Path, on_bytes: OnBytes = lambda _: None) -> Iterator[tuple[str, Row | BrokenRow]]:
    """(line number, object) of a .jsonl file, packed or not; blank lines are passed over.

    Raises:
        files.broken_file_errors(): a packed file is damaged.
    """
    with open_stream(file, on_bytes) as lines:
        yield from parse_lines(lines)


def parse_lines(lines: Iterable[bytes]) -> Iterator[tuple[str, Row | BrokenRow]]:
    """(line number, object) of lines of JSON objects; a byte order mark on the first one is allowed."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
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


def parquet_rows(file: Path, batch_size: int = 512) -> Iterator[tuple[str, Row | BrokenRow]]:
    """(row number, row) of a .parquet file, one batch of rows in memory at a time; a damaged file ends with a BrokenRow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=batch_size):
                for row in batch.to_pylist():
                    number += 1
                    yield str(number), row
    except (pa.ArrowException, OSError) as error:
        what = f"parquet 檔損壞 (damaged parquet): {str(error)[:200]}"
        yield str(number + 1), BrokenRow("broken_file", what)
