"""Common Crawl by snapshot: pages picked from its index by byte ranges, or whole WARC and WET files.

`select = "index"` (default) reads the snapshot's sorted URL index as it lies beside the data: a binary search in
`cluster.idx` finds the blocks of a host suffix such as `.tw` (about 3,000 pages each; a block is one part), and each page is one
ranged request of 10–40 kB. `"api"` asks the CDX server for the same lines: for small selections, it is slow and shared by
all. `"files"` streams the files of `warc.paths.gz` or `wet.paths.gz` and keeps what matches: for most of a snapshot, and the
only way to WET. Which pages: status 200, HTML, host, URL pattern, and with the index the language that Common Crawl
detected. `base_url` may be a mirror, a bucket (s3://commoncrawl/) or a folder.
Not covered: the columnar (parquet) index, ports in host names, robots.txt after the fact (use a take-down list).
"""

import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from twllm.corpus.config import CommonCrawlConfig
from twllm.corpus.document import Document, Dropped
from twllm.corpus.http import HttpFile, Missing, Retry, head, read_bytes
from twllm.corpus.remote import HTTP, RemoteFile, filesystem, is_url
from twllm.corpus.takedown import host_of
from twllm.corpus.warc import documents_of, read_warc
from twllm.corpus.warc_records import read_records
from twllm.errors import UserError

if TYPE_CHECKING:
    from twllm.corpus.read import Reading

PROBE_BYTES = 1 << 13  # longer than any line of cluster.idx
SCAN_BYTES = 1 << 16
CONNECTIONS = 8  # ranged requests under way at a time, in each task


@dataclass(frozen=True)
class Store:
    """Files under a base: http(s), another store, or a folder."""

    base: str
    retry: Retry

    def url(self, path: str) -> str:
        """Where a file lies."""
        return f"{self.base.rstrip('/')}/{path}"

    def open(self, path: str, start: int = 0) -> Any:
        """A stream of its bytes from `start`."""
        if self.base.startswith(HTTP):
            return HttpFile(self.url(path), self.retry, start)
        fs, inner = filesystem(self.url(path))
        stream = fs.open(inner, "rb")
        stream.seek(start)
        return stream

    def read(self, path: str, start: int | None = None, length: int | None = None) -> bytes:
        """Its bytes, or a range of them.

        Raises:
            Missing: it is not there.
        """
        if self.base.startswith(HTTP):
            return read_bytes(self.url(path), self.retry, start, length)
        fs, inner = filesystem(self.url(path))
        stop = None if length is None else (start or 0) + length
        try:
            return bytes(fs.cat_file(inner, start=start, end=stop))
        except FileNotFoundError as error:
            raise Missing(inner, 404) from error

    def size(self, path: str) -> int:
        """Its bytes."""
        if self.base.startswith(HTTP):
            return int(head(self.url(path), self.retry)["size"] or 0)
        fs, inner = filesystem(self.url(path))
        return int(fs.info(inner)["size"])


def store_of(settings: CommonCrawlConfig) -> Store:
    """Where the snapshot lies."""
    return Store(settings.base_url, Retry(settings.retries, settings.wait_s))


# -- which parts ------------------------------------------------------------------------------------------------


def plan_snapshot(settings: CommonCrawlConfig) -> list[dict[str, Any]]:
    """The parts of a selection: files, index blocks or pages of the CDX server.

    Raises:
        UserError: no such snapshot, settings that do not go together, nothing selected.
    """
    if settings.format == "wet" and settings.select != "files":
        raise UserError("WET 沒有索引 (WET has no index)", settings.snapshot, 'select = "files"，或 format = "warc"')
    if settings.select != "files" and not settings.hosts:
        raise UserError("要說明選哪些網站 (no hosts)", settings.snapshot, 'hosts = [".tw"]，或 select = "files"')
    planners = {"files": _plan_files, "index": _plan_index, "api": _plan_api}
    try:
        found = planners[settings.select](settings)
    except (Missing, FileNotFoundError) as error:
        fix = "檢查 snapshot 的名字（https://index.commoncrawl.org/ 列出全部）與 base_url"
        raise UserError("沒有這個快照 (no such snapshot)", f"{settings.snapshot}: {error}", fix) from error
    if not found:
        raise UserError("這個選擇是空的 (nothing selected)", f"{settings.snapshot} {settings.hosts}", "檢查 hosts")
    return found


def _plan_files(settings: CommonCrawlConfig) -> list[dict[str, Any]]:
    listing = store_of(settings).read(f"crawl-data/{settings.snapshot}/{settings.format}.paths.gz")
    paths = gzip.decompress(listing).decode().split()
    stop = None if settings.max_files is None else settings.first_file + settings.max_files
    return [{"file": path} for path in paths[settings.first_file : stop]]


def index_folder(settings: CommonCrawlConfig) -> str:
    """Where a snapshot's sorted index lies."""
    return f"cc-index/collections/{settings.snapshot}/indexes"


def host_range(host: str) -> tuple[str, str]:
    """The index keys of a host and what is under it lie in [low, high).

    >>> host_range(".tw"), host_range("www.gov.tw")
    (('tw)', 'tw-'), ('tw,gov)', 'tw,gov-'))
    """
    labels = host.lower().strip(".").removeprefix("*.").removeprefix("www.").split(".")
    key = ",".join(reversed(labels))
    return f"{key})", f"{key}-"


def _plan_index(settings: CommonCrawlConfig) -> list[dict[str, Any]]:
    store, path = store_of(settings), f"{index_folder(settings)}/cluster.idx"
    blocks: dict[tuple[str, int], dict[str, Any]] = {}
    for host in settings.hosts:
        for line in cluster_lines(store, path, *host_range(host)):
            _, name, offset, length, *_ = line.split("\t")
            row = {"cdx": name, "offset": int(offset), "length": int(length), "size": int(length)}
            blocks[name, int(offset)] = row
    found = [blocks[key] for key in sorted(blocks)]
    most = settings.max_blocks
    return found if most is None or most >= len(found) else [found[n * len(found) // most] for n in range(most)]


def cluster_lines(store: Store, path: str, low: str, high: str) -> Iterator[str]:
    """The lines of cluster.idx whose blocks may hold keys of [low, high): a binary search, then a short walk."""
    first, last = 0, store.size(path)
    while last - first > SCAN_BYTES:
        middle = (first + last) // 2
        probe = store.read(path, middle, min(PROBE_BYTES, last - middle)).split(b"\n")
        if len(probe) > 2 and _key(probe[1].decode()) < low:
            first = middle
        else:
            last = middle
    before = None
    with io.BufferedReader(store.open(path, first), SCAN_BYTES) as lines:
        if first:
            lines.readline()  # the rest of a line
        for raw in lines:
            line = raw.decode().rstrip("\n")
            if _key(line) >= high:
                break
            if _key(line) > low and before:
                yield before
            before = line
        if before:
            yield before


def _key(line: str) -> str:
    return line.partition(" ")[0]


def _plan_api(settings: CommonCrawlConfig) -> list[dict[str, Any]]:
    found = []
    for host in settings.hosts:
        try:
            told = read_bytes(_api_url(settings, host, showNumPages="true"), store_of(settings).retry)
        except Missing:
            continue
        answer = json.loads(told)
        pages = int(answer["pages"] if isinstance(answer, dict) else answer)
        found += [{"host": host, "page": page} for page in range(min(pages, settings.max_blocks or pages))]
    return found


def _api_url(settings: CommonCrawlConfig, host: str, **more: str) -> str:
    asked = {"url": f"*.{host.strip('.').removeprefix('*.')}", "output": "json", **more}
    return f"{settings.index_url.rstrip('/')}/{settings.snapshot}-index?{urlencode(asked)}"


# -- reading them -----------------------------------------------------------------------------------------------


def read_block(part: dict[str, Any], reading: "Reading") -> Iterator[Document | Dropped]:
    """The documents of one part.

    Raises:
        UserError: the network fails for good: the part stays unfinished and is read again by the next run.
    """
    settings = reading.source.commoncrawl
    assert settings
    store = store_of(settings)
    if path := part.get("file"):
        url = store.url(path)
        file = RemoteFile(url) if is_url(url) else Path(url)
        from twllm.corpus.files import broken_file_errors

        try:
            yield from read_warc(file, reading, wanted_by(settings))
        except (Missing, FileNotFoundError):
            yield reading.broken("missing", "抓不到這個檔案 (file not found)", url)
        except broken_file_errors() as error:
            yield reading.broken("broken_file", f"檔案不完整或損壞 (damaged file): {error}", url)
        return
    lines = api_lines(settings, part) if "page" in part else block_lines(store, settings, part)
    rows = [row for row in _index_rows(lines, reading) if isinstance(row, Dropped) or is_page(row, settings)]
    yield from _fetch_pages(store, rows, reading)


def block_lines(store: Store, settings: CommonCrawlConfig, part: dict[str, Any]) -> list[str]:
    """The lines of an index block; a damaged block gives what can be unpacked, and one line that says so."""
    packed = store.read(f"{index_folder(settings)}/{part['cdx']}", part["offset"], part["length"])
    unpack = zlib.decompressobj(31)
    try:
        return unpack.decompress(packed).decode("utf-8", "replace").splitlines()
    except zlib.error as error:
        return [f"{part['cdx']}@{part['offset']}: {error}"]


def api_lines(settings: CommonCrawlConfig, part: dict[str, Any]) -> list[str]:
    """The lines of a page of the CDX server."""
    try:
        url = _api_url(settings, part["host"], page=str(part["page"]))
        return read_bytes(url, store_of(settings).retry).decode("utf-8", "replace").splitlines()
    except Missing:
        return []


def _index_rows(lines: list[str], reading: "Reading") -> Iterator[dict[str, Any] | Dropped]:
    for line in lines:
        try:
            row = json.loads(line[line.index("{") :])
            yield row | {"offset": int(row["offset"]), "length": int(row["length"]), "filename": str(row["filename"])}
        except (ValueError, KeyError, TypeError) as error:
            yield reading.broken("broken_line", f"索引的壞行 (broken index line): {error}", line[:200], line[:400])


def is_page(row: dict[str, Any], settings: CommonCrawlConfig) -> bool:
    """Whether an index line is of a page that the settings select."""
    if str(row.get("status")) != "200" or "html" not in str(row.get("mime-detected") or row.get("mime") or ""):
        return False
    main_language = str(row.get("languages") or "").split(",")[0]
    if settings.languages and main_language not in settings.languages:
        return False
    return matches(str(row.get("url") or ""), settings)


def matches(url: str, settings: CommonCrawlConfig) -> bool:
    """Whether a URL is of the hosts and the pattern that the settings name."""
    if settings.url_pattern and not _pattern(settings.url_pattern).search(url):
        return False
    host = host_of(url)
    ends = [host_.lower().strip(".").removeprefix("*.").removeprefix("www.") for host_ in settings.hosts]
    return not ends or any(host == end or host.endswith(f".{end}") for end in ends)


def wanted_by(settings: CommonCrawlConfig) -> Callable[[dict[str, str]], bool]:
    """What is kept of whole files; of WET also by the language in its records."""

    def wanted(found: dict[str, str]) -> bool:
        told = found.get("warc-identified-content-language", "").split(",")[0]
        if settings.languages and told and told not in settings.languages:
            return False
        return matches(found.get("warc-target-uri", ""), settings)

    return wanted


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"url_pattern 不是正規表示式 (bad pattern): {error}", pattern, "修正 url_pattern") from error


def _fetch_pages(
    store: Store, rows: list[dict[str, Any] | Dropped], reading: "Reading"
) -> Iterator[Document | Dropped]:
    """The pages of index lines, in their order, some requests ahead."""
    waiting: deque[tuple[dict[str, Any] | Dropped, Future[bytes] | None]] = deque()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for row in rows:
            task = (
                None
                if isinstance(row, Dropped)
                else pool.submit(store.read, row["filename"], row["offset"], row["length"])
            )
            waiting.append((row, task))
            if len(waiting) > 2 * CONNECTIONS:
                yield from _page(*waiting.popleft(), reading)
        while waiting:
            yield from _page(*waiting.popleft(), reading)


def _page(
    row: dict[str, Any] | Dropped, task: "Future[bytes] | None", reading: "Reading"
) -> Iterator[Document | Dropped]:
    if isinstance(row, Dropped):
        yield row
        return
    assert task
    where = f"{row['filename']}@{row['offset']}"
    try:
        raw = io.BufferedReader(io.BytesIO(task.result()))
    except Missing:
        yield reading.broken("missing", f"抓不到這一頁 (page not found): {row.get('url')}", where)
        return
    for record in read_records(raw, packed=True, max_bytes=reading.max_bytes):
        yield from documents_of(record, reading, where)
