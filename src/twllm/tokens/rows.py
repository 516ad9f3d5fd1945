"""Files of conversations and their rows: .jsonl, .json, .parquet, .csv, .tsv, each also packed (.gz, .zst).

Every row comes with its place (line or row number). One that cannot be read comes out as `BrokenRow` in its place;
whether that stops the reader or is counted is decided by the caller (tokens/conversation.py: `on_broken`).
CSV and TSV may be in UTF-8, Big5 or GB 18030, as the government's open data is.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from twllm import data
from twllm.corpus.files import PACKED, broken_file_errors, decode, open_stream
from twllm.corpus.rows import BrokenRow, Row, jsonl_rows, parquet_rows
from twllm.errors import UserError, require_file

Rows = Iterator[tuple[str, Row | BrokenRow]]
KINDS = {"jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "parquet": "parquet", "csv": "csv", "tsv": "csv"}
SUFFIXES = {"squad": ("json",), "chatterbot": ("yml", "yaml"), "xml": ("xml",)}
CSV_FIELD_CHARS = 1 << 24  # Python's default limit of 128 Ki characters a cell is too small for answers with markup


def suffix_of(path: Path) -> str:
    """`x.jsonl.gz` → "jsonl"."""
    parts = path.name.lower().split(".")[1:]
    if parts and parts[-1] in PACKED:
        parts.pop()
    return parts[-1] if parts else ""


def list_files(source: str | Path, format: str = "messages") -> list[Path]:
    """The data files a source names (`twllm:NAME`, a file, a folder).

    Raises:
        UserError: nothing is there.
    """
    path = require_file(data.resolve(source), "找不到資料 (no such data)")
    if path.is_file():
        return [path]
    suffixes = SUFFIXES.get(format, tuple(KINDS))
    files = sorted(p for p in path.rglob("*") if suffix_of(p) in suffixes and p.is_file() and p.name != "manifest.json")
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        names = "、".join(f".{suffix}" for suffix in suffixes)
        raise UserError(f"資料夾裡沒有 {names} 檔 (no data files)", path, "指到含資料檔的資料夾；可加 .gz 或 .zst")
    return files


def file_rows(path: Path) -> Rows:
    """(place, row) of one file, by its suffix; an unknown suffix is read as JSON lines."""
    kind = KINDS.get(suffix_of(path), "jsonl")
    try:
        if kind == "parquet":
            yield from parquet_rows(path)
        elif kind == "json":
            yield from _json_rows(path)
        elif kind == "csv":
            yield from _csv_rows(path)
        else:
            yield from jsonl_rows(path)
    except broken_file_errors() as error:
        yield "", BrokenRow("broken_file", f"檔案不完整或損壞 (damaged file): {error}")


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line or row number, object) of one file.

    Raises:
        UserError: a row cannot be read; its place is named.
    """
    for place, row in file_rows(path):
        if isinstance(row, BrokenRow):
            raise broken_error(path, place, row)
        yield int(place), row


def broken_error(path: Path, place: str, row: BrokenRow, may_skip: bool = False) -> UserError:
    """The error that names a row that cannot be read; with `may_skip` it says that such rows can be skipped."""
    whole = row.reason == "broken_file"
    fix = "重新下載或重建這個檔案" if whole else "修正或刪除這一行"
    fix += '，或設 on_broken = "skip" 略過並計數' if may_skip else ""
    return UserError(row.what, path if whole or not place else f"{path}:{place}", fix)


def read_text(path: Path) -> str:
    """The text of a file, unpacked, of whatever usual charset.

    Raises:
        UserError: a packed file is damaged.
    """
    try:
        with open_stream(path) as stream:
            return decode(stream.read())[0]
    except broken_file_errors() as error:
        raise UserError(f"檔案不完整或損壞 (damaged file): {error}", path, "重新下載這個檔案") from error


def _json_rows(path: Path) -> Rows:
    """The objects of a JSON list (or of an object's `data` list)."""
    try:
        with open_stream(path) as stream:
            rows = json.loads(stream.read().decode("utf-8-sig"))
        if isinstance(rows, dict) and isinstance(rows.get("data"), list):
            rows = rows["data"]
        if not isinstance(rows, list) or (rows and not any(isinstance(row, dict) for row in rows)):
            raise ValueError("not a list of objects")
    except (ValueError, RecursionError) as error:
        what = f"不是由 JSON 物件組成的清單 (not a JSON list of objects): {error}"
        yield "", BrokenRow("broken_file", f"{what}；改用一行一個物件的 .jsonl 也可以")
        return
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield str(number), row
        else:
            yield str(number), BrokenRow("broken_line", f"第 {number} 項不是 JSON 物件 (not an object)", str(row)[:400])


def _csv_rows(path: Path) -> Rows:
    """The rows under a header line, cells as text; the place is the line the row ends on."""
    text = read_text(path)
    csv.field_size_limit(CSV_FIELD_CHARS)
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix_of(path) == "tsv" else ",")
    header: list[str] = []
    try:
        for cells in table:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) > len(header):
                what = f"這一列有 {len(cells)} 格，標題只有 {len(header)} 格 (more cells than the header)"
                yield str(table.line_num), BrokenRow("broken_line", what, "|".join(cells)[:400])
            else:
                yield str(table.line_num), dict(zip(header, cells, strict=False))
    except csv.Error as error:
        yield str(table.line_num), BrokenRow("broken_line", f"CSV 壞了 (broken CSV): {error}")
