"""WARC (web pages as crawled) and WET (their text) as documents.

A WARC gives its HTML responses with status 200; the charset is the header's, else the page's own, else guessed
(files.py). A WET gives its conversion records as they are. Metadata keeps the charset, title, date and record id. What is
damaged is told by file and offset and the rest is read on (warc_records.py). warcio undoes chunks and packing of HTTP
bodies. Not covered: PDF, `Content-Encoding: br` without the brotli package (such a page comes out garbled and quality
drops it), revisit records.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import File, decode, open_raw, open_stream
from twllm.corpus.html import meta_charset, read_html
from twllm.corpus.warc_records import Broken, Record, read_records

if TYPE_CHECKING:
    from twllm.corpus.read import Reading

CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w:.-]+)", re.IGNORECASE)
Wanted = Callable[[dict[str, str]], bool]  # by the header of a record


def read_warc(file: File, reading: "Reading", wanted: Wanted = lambda _: True) -> Iterator[Document | Dropped]:
    """Documents of a .warc or .wet file (plain, .gz or .zst), one a record that is `wanted`."""
    packed = file.name.endswith(".gz")
    opened = open_raw(file, reading.on_bytes) if packed else open_stream(file, reading.on_bytes)
    with opened as stream:
        records = read_records(stream, packed, reading.max_bytes)
        for record in records:
            yield from documents_of(record, reading, str(file), wanted)


def documents_of(
    record: Record | Broken, reading: "Reading", where: str, wanted: Wanted = lambda _: True
) -> Iterator[Document | Dropped]:
    """The document of a record, what stands for a broken one, or nothing."""
    place = f"{where}@{record.offset}"
    if isinstance(record, Broken):
        if record.last:
            fix = '重新下載這個檔案，或設 corpus.on_broken = "skip" 用讀得到的部分'
            told = f"檔案不完整或損壞 (damaged file): {record.what}"
            yield reading.broken("broken_file", told, where, fix=fix)
        else:
            yield reading.broken("broken_record", f"這一筆紀錄損壞 (broken record): {record.what}", place)
        return
    if not wanted(record.head):
        return
    try:
        row = reading.bounded(lambda: read_record(record, reading.max_bytes), place)
    except TooLarge:
        what = f"這一頁太大 (page too large): {record.head.get('warc-target-uri', '')}"
        yield reading.broken("too_large", what, place)
        return
    if isinstance(row, Dropped):
        yield row
    elif row:
        yield reading.document(without_text(row), row["text"], where.rpartition("/")[2])


class TooLarge(Exception):
    """A page, unpacked, is larger than the limit."""


def read_record(record: Record, max_bytes: int) -> dict[str, Any] | None:
    """The row of one record: text, id, url, date, title, charset. None: not a page.

    Raises:
        TooLarge: it is a page, and too large.
    """
    head = record.head
    row = {"id": head.get("warc-record-id"), "url": head.get("warc-target-uri"), "date": head.get("warc-date")}
    kind = head.get("warc-type")
    if kind == "conversion":
        if record.too_large:
            raise TooLarge
        text, charset = decode(record.block)
        return row | {"text": text, "charset": charset}
    if kind != "response":
        return None
    status, http, body = split_http(record.block)
    if status != "200" or "html" not in http.get("content-type", "").lower():
        return None
    if record.too_large:
        raise TooLarge
    return row | page_row(unpacked(http, body, max_bytes), http.get("content-type", ""))


def without_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its text."""
    return {key: value for key, value in row.items() if key != "text"}


def page_row(page: bytes, content_type: str) -> dict[str, Any]:
    """Text, title and charset of an HTML page with its HTTP content type."""
    header = CHARSET.search(content_type)
    declared = [name for name in (header and header[1], meta_charset(page)) if name]
    html, charset = decode(page, declared)
    title, text = read_html(html)
    return {"text": text, "title": title or None, "charset": charset}


def split_http(block: bytes) -> tuple[str, dict[str, str], bytes]:
    """(status, headers with names in lower case, body) of an HTTP answer; an empty status where it is none."""
    end = re.search(rb"\r?\n\r?\n", block[: 1 << 20])
    if not block.startswith(b"HTTP/") or end is None:
        return "", {}, b""
    first, *lines = block[: end.start()].decode("latin-1").splitlines()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return [*first.split(" ", 2), ""][1], headers, block[end.end() :]


def unpacked(http: dict[str, str], body: bytes, max_bytes: int) -> bytes:
    """The body without chunks and packing.

    Raises:
        TooLarge: it unpacks to more than `max_bytes`.
    """
    packing = http.get("content-encoding", "").lower()
    chunked = "chunked" in http.get("transfer-encoding", "").lower()
    if not chunked and packing in ("", "identity"):
        return body
    from warcio.bufferedreaders import BufferedReader, ChunkedDataReader

    stream: Any = ChunkedDataReader(io.BytesIO(body)) if chunked else io.BytesIO(body)
    if packing not in ("", "identity"):
        if packing not in BufferedReader.get_supported_decompressors():
            packing = ""
        stream = BufferedReader(stream, decomp_type=packing or None)
    found = bytearray()
    while chunk := stream.read(1 << 16):
        found += chunk
        if len(found) > max_bytes:
            raise TooLarge
    return bytes(found)
