"""Per-item rows of a result as one parquet table: what every suite's rows have as columns, the rest as JSON in `more`."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twllm.artifact import write_bytes

SCHEMA = pa.schema(
    [
        ("suite", pa.string()), ("id", pa.string()), ("topic", pa.string()), ("form", pa.string()), ("question", pa.string()),
        ("answer", pa.string()), ("extracted", pa.string()), ("expected", pa.list_(pa.string())), ("correct", pa.bool_()),
        ("mark", pa.float64()), ("loglikelihoods", pa.list_(pa.float64())), ("too_long", pa.bool_()), ("more", pa.string()),
    ]
)  # fmt: skip


def write_items(result: dict[str, Any], file: Path) -> None:
    """All rows of all suites, in their order. A missing value is null; `mark` is 0 or 1 where a row tells only `correct`."""
    rows = [
        _row(name, row) for name, block in result.items() if isinstance(block, dict) for row in block.get("items", ())
    ]
    buffer = io.BytesIO()
    metadata = {"twllm": json.dumps(result.get("meta", {}), ensure_ascii=False, default=str)}
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(metadata)), buffer, compression="zstd")
    write_bytes(file, buffer.getvalue())


def _row(suite: str, row: dict[str, Any]) -> dict[str, Any]:
    known = {name: row.get(name) for name in SCHEMA.names}
    rest = {key: value for key, value in row.items() if key not in known}
    for name in ("id", "topic", "form", "question", "answer", "extracted"):
        known[name] = None if known[name] is None else str(known[name])
    if isinstance(known["mark"], bool) or not isinstance(known["mark"], int | float):
        known["mark"] = None if known["correct"] is None else float(known["correct"])
    known |= {"suite": suite, "too_long": bool(known["too_long"])}
    return {**known, "more": json.dumps(rest, ensure_ascii=False, default=str) if rest else None}
