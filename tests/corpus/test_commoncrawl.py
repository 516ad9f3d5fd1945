"""Common Crawl from a local server with its real formats: WARC and WET, cluster.idx and cdx blocks, ranges, failures."""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.corpus.test_warc import record
from twllm.corpus.build import build_folder
from twllm.corpus.commoncrawl import cluster_lines, host_range, plan_snapshot, store_of
from twllm.corpus.config import CommonCrawlConfig, CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.http import HttpFile, Retry, read_bytes
from twllm.corpus.read import Reading, read_source
from twllm.corpus.store import read_documents
from twllm.errors import UserError

SNAPSHOT = "CC-MAIN-2024-10"
HOSTS = ("com,example", "jp,co,a", "tw,com,cna", "tw,edu,ntu", "tw,gov,moj", "tv,x", "us,y")
BLOCK = 30  # lines of an index block here; 3,000 in the real one


def surt_to_host(surt: str) -> str:
    return ".".join(reversed(surt.split(",")))


def page(host: str, number: int) -> tuple[str, bytes]:
    url = f"https://www.{host}/p/{number}"
    body = f"<html><head><meta charset=utf-8><title>第{number}頁</title></head><body><p>{host} 的第 {number} 頁，內容在此。</p></body></html>"
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n"
    block = (head + body).encode()
    text = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{host}-{number}>\r\nWARC-Date: 2024-03-01T00:00:00Z\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return url, text.encode() + block + b"\r\n\r\n"


def make_snapshot(root: Path, pages: int = 40) -> None:
    """A small snapshot: WARC, WET, their lists, the sorted index in blocks and its cluster.idx."""
    warc_path = f"crawl-data/{SNAPSHOT}/segments/1.1/warc/{SNAPSHOT}-00000.warc.gz"
    wet_path = f"crawl-data/{SNAPSHOT}/segments/1.1/wet/{SNAPSHOT}-00000.warc.wet.gz"
    lines, members, texts, offset = [], [], [], 0
    for surt in HOSTS:
        host = surt_to_host(surt)
        for number in range(pages):
            url, raw = page(host, number)
            member = gzip.compress(raw, mtime=0)
            told = {
                "url": url, "mime": "text/html", "mime-detected": "text/html" if number % 10 else "application/pdf",
                "status": "200" if number % 7 else "404", "digest": "X", "length": str(len(member)), "offset": str(offset),
                "filename": warc_path, "charset": "UTF-8", "languages": "zho,eng" if number % 4 else "eng",
            }  # fmt: skip
            lines.append(f"{surt})/p/{number} 20240301000000 {json.dumps(told)}")
            members.append(member)
            offset += len(member)
            text = record("conversion", "text/plain", f"{host} 的第 {number} 頁，內容在此。".encode(), number).decode()
            language = "WARC-Identified-Content-Language: " + ("zho,eng" if number % 4 else "eng") + "\r\n"
            text = re.sub(r"WARC-Target-URI: [^\r]+\r\n", f"WARC-Target-URI: {url}\r\n{language}", text)
            texts.append(gzip.compress(text.encode(), mtime=0))
    lines.sort()
    blocks = [lines[start : start + BLOCK] for start in range(0, len(lines), BLOCK)]
    packed = [gzip.compress(("\n".join(block) + "\n").encode(), mtime=0) for block in blocks]
    cluster, place = [], 0
    for number, (block, raw) in enumerate(zip(blocks, packed, strict=True)):
        key, time = block[0].split(" ")[:2]
        cluster.append(f"{key} {time}\tcdx-00000.gz\t{place}\t{len(raw)}\t{number + 1}")
        place += len(raw)
    files = {
        warc_path: b"".join(members),
        wet_path: b"".join(texts),
        f"crawl-data/{SNAPSHOT}/warc.paths.gz": gzip.compress(f"{warc_path}\n".encode()),
        f"crawl-data/{SNAPSHOT}/wet.paths.gz": gzip.compress(f"{wet_path}\n".encode()),
        f"cc-index/collections/{SNAPSHOT}/indexes/cdx-00000.gz": b"".join(packed),
        f"cc-index/collections/{SNAPSHOT}/indexes/cluster.idx": ("\n".join(cluster) + "\n").encode(),
    }
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)


class Server:
    """Files by range, a CDX server, and bad days: `failures` answers 503, `cut` answers broken off half way."""

    def __init__(self, root: Path) -> None:
        self.root, self.failures, self.cut, self.ranges, self.requests = root, 0, 0, True, list[tuple[str, str]]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                outer.requests.append((self.path, self.headers.get("Range", "")))
                if outer.failures:
                    outer.failures -= 1
                    self.answer(503, b"slow down", {"Retry-After": "0"})
                    return
                parts = urlsplit(self.path)
                if parts.path.endswith("-index"):
                    self.answer(*outer.index(parse_qs(parts.query)))
                    return
                file = outer.root / parts.path.lstrip("/")
                if not file.is_file():
                    self.answer(404, b"no such key")
                    return
                raw = file.read_bytes()
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if asked is None or not outer.ranges:
                    self.answer(200, raw)
                    return
                start, stop = int(asked[1]), int(asked[2] or len(raw) - 1)
                if start >= len(raw):
                    self.answer(416, b"")
                    return
                part = raw[start : stop + 1]
                self.answer(206, part, {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(raw)}"})

            def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if outer.cut and status < 400 and len(body) > 200:
                    outer.cut -= 1
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True
                    return
                self.wfile.write(body)

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def index(self, query: dict[str, list[str]]) -> tuple[int, bytes]:
        """The CDX server's answer, two index blocks a page."""
        suffix = query["url"][0].removeprefix("*.")
        low, high = host_range(suffix)
        raw = (self.root / f"cc-index/collections/{SNAPSHOT}/indexes/cdx-00000.gz").read_bytes()
        lines = [line for line in gzip.decompress(raw).decode().splitlines() if low <= line < high]
        if not lines:
            return 404, json.dumps({"message": f"No Captures found for: {query['url'][0]}"}).encode()
        if "showNumPages" in query:
            return 200, json.dumps({"pages": -(-len(lines) // 60), "pageSize": 2, "blocks": 4}).encode()
        number = int(query["page"][0])
        rows = []
        for line in lines[60 * number : 60 * number + 60]:
            key, time, told = line.split(" ", 2)
            rows.append(json.dumps({"urlkey": key, "timestamp": time, **json.loads(told)}))
        return 200, "\n".join(rows).encode()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cc")
    make_snapshot(root)
    return root


@pytest.fixture
def server(snapshot: Path) -> Iterator[Server]:
    from twllm.corpus.http import client

    found = Server(snapshot)
    yield found
    client().close()
    client.cache_clear()
    found.close()


def crawl(server: Server, **settings: Any) -> CorpusSource:
    common = {"snapshot": SNAPSHOT, "base_url": server.url, "index_url": server.url, "wait_s": 0.0}
    return CorpusSource(commoncrawl=CommonCrawlConfig.model_validate(common | settings))


def urls(source: CorpusSource, skip: bool = False) -> list[str]:
    return [item.url if isinstance(item, Document) else f"<{item.reason}>" for item in read_source(source, skip)]


def expected(*surts: str, language: bool = False) -> set[str]:
    """The pages of some hosts that are HTML, status 200 (and Chinese)."""
    found = set()
    for surt in surts:
        for number in range(40):
            if number % 10 and number % 7 and (number % 4 or not language):
                found.add(page(surt_to_host(surt), number)[0])
    return found


TW = ("tw,com,cna", "tw,edu,ntu", "tw,gov,moj")


def test_pages_by_the_index(server: Server) -> None:
    source = crawl(server, hosts=[".tw"])
    found = urls(source)
    assert set(found) == expected(*TW) and len(found) == len(set(found))
    [first, *_] = read_source(source.model_copy(update={"limit": 1}))
    assert isinstance(first, Document)
    assert first.text.endswith("頁，內容在此。") and first.metadata["title"].startswith("第")
    assert first.license.startswith("Common Crawl") and first.id.startswith(f"{SNAPSHOT}/<urn:uuid:")
    assert all(asked for path, asked in server.requests if ".warc.gz" in path)  # ranges only, never whole files


def test_what_the_index_selects(server: Server) -> None:
    assert set(urls(crawl(server, hosts=["www.gov.tw"]))) == expected("tw,gov,moj")
    assert set(urls(crawl(server, hosts=[".tw"], languages=["zho"]))) == expected(*TW, language=True)
    assert urls(crawl(server, hosts=["ntu.edu.tw"], url_pattern="/p/1$")) == ["https://www.ntu.edu.tw/p/1"]
    assert set(urls(crawl(server, hosts=["moj.gov.tw", "tv"]))) == expected("tw,gov,moj", "tv,x")
    with pytest.raises(UserError, match="no hosts"):
        urls(crawl(server))
    with pytest.raises(UserError, match="no such snapshot"):
        urls(crawl(server, hosts=[".tw"], snapshot="CC-MAIN-1999-01"))


def test_the_cdx_server_gives_the_same(server: Server) -> None:
    assert set(urls(crawl(server, hosts=[".tw"], select="api"))) == expected(*TW)
    assert len(plan_snapshot(crawl(server, hosts=[".tw"], select="api").commoncrawl)) == 2  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing selected"):
        urls(crawl(server, hosts=["nobody.tw"], select="api"))
    with pytest.raises(UserError, match="nothing selected"):  # a 416 in the address is not the answer's status
        urls(crawl(server, hosts=["416.tw"], select="api"))


def test_whole_files(server: Server) -> None:
    found = set(urls(crawl(server, hosts=[".tw"], select="files")))
    assert expected(*TW) < found  # also what the index calls another status or type
    wet = crawl(server, hosts=["ntu.edu.tw"], select="files", format="wet", languages=["zho"])
    documents = [item for item in read_source(wet) if isinstance(item, Document)]
    assert {document.url for document in documents} == {page("ntu.edu.tw", n)[0] for n in range(40) if n % 4}
    assert documents[0].text == "ntu.edu.tw 的第 1 頁，內容在此。"
    with pytest.raises(UserError, match="WET has no index"):
        urls(crawl(server, hosts=[".tw"], format="wet"))


def test_a_folder_or_bucket_in_place_of_the_server(server: Server, snapshot: Path) -> None:
    for select in ("index", "files"):
        local = crawl(server, hosts=["ntu.edu.tw"], select=select, base_url=str(snapshot))
        assert expected("tw,edu,ntu") <= set(urls(local))


def test_binary_search_in_a_long_index(tmp_path: Path) -> None:
    """Against a plain walk, for hosts at the ends, in the middle and nowhere."""
    keys = sorted(
        f"{tld},{name}{n:03})/ 2024" for tld in ("aa", "tw", "tw,com", "zz") for name in "abc" for n in range(300)
    )
    lines = [f"{key}\tcdx-00000.gz\t{n}\t1\t{n}" for n, key in enumerate(keys)]
    folder = tmp_path / f"cc-index/collections/{SNAPSHOT}/indexes"
    folder.mkdir(parents=True)
    (folder / "cluster.idx").write_text("\n".join(lines) + "\n")
    assert (folder / "cluster.idx").stat().st_size > 1 << 16
    store = store_of(CommonCrawlConfig(snapshot=SNAPSHOT, base_url=str(tmp_path)))
    for host in (".aa", ".tw", "com.tw", "b007.com.tw", ".mm", ".zz", "c299.zz", ".zzz", ".a"):
        low, high = host_range(host)
        walk = [
            line
            for line, after in zip(keys, [*keys[1:], "~"], strict=True)
            if line.split(" ")[0] < high and after.split(" ")[0] > low
        ]
        found = list(cluster_lines(store, f"cc-index/collections/{SNAPSHOT}/indexes/cluster.idx", low, high))
        assert [line.split("\t")[0] for line in found] == walk, host


def test_bad_days_change_nothing(server: Server, tmp_path: Path) -> None:
    source = crawl(server, hosts=[".tw"], retries=4)
    config = CorpusConfig(sources=(source,), steps=(), held_out=0)
    build_folder(config, tmp_path / "good")
    for failures, cut in ((3, 0), (0, 9), (2, 5)):
        server.failures, server.cut = failures, cut
        build_folder(config, tmp_path / f"bad-{failures}-{cut}")
        assert (server.failures, server.cut) == (0, 0)
        assert list(read_documents(tmp_path / f"bad-{failures}-{cut}")) == list(read_documents(tmp_path / "good"))


def test_a_server_that_stays_down_stops_the_build_which_then_goes_on(server: Server, tmp_path: Path) -> None:
    source = crawl(server, hosts=["ntu.edu.tw"], retries=1)
    config = CorpusConfig(sources=(CorpusSource(path="twllm:knowledge", limit=3), source), steps=(), held_out=0)
    plan_snapshot(source.commoncrawl)  # type: ignore[arg-type]
    server.failures = 10**6
    with pytest.raises(UserError, match="no answer"):
        build_folder(config, tmp_path / "out")
    server.failures = 0
    facts = build_folder(config, tmp_path / "out")
    assert facts and facts["documents"] == 3 + len(expected("tw,edu,ntu"))


def test_http_file(server: Server, snapshot: Path) -> None:
    name = f"cc-index/collections/{SNAPSHOT}/indexes/cdx-00000.gz"
    raw = (snapshot / name).read_bytes()
    retry = Retry(3, 0.0)
    server.cut = 2
    with HttpFile(f"{server.url}/{name}", retry) as file:
        assert file.read() == raw
        assert file.read() == b""
        assert file.seek(100) == 100 and file.read(50) == raw[100:150] and file.tell() == 150
        assert file.seek(-10, 2) == len(raw) - 10 and file.read() == raw[-10:]
        assert file.seek(len(raw) + 5) and file.read() == b""
    server.ranges = False
    assert read_bytes(f"{server.url}/{name}", retry, 70, 30) == raw[70:100]
    server.ranges = True
    with pytest.raises(UserError, match="short answer"):
        read_bytes(f"{server.url}/{name}", retry, len(raw) - 5, 30)
    waits: list[float] = []
    server.failures = 5
    with pytest.raises(UserError, match="HTTP 503"):
        read_bytes(f"{server.url}/{name}", Retry(3, 0.5, waits.append))
    assert waits == [0.5, 1.0, 2.0]


def test_a_missing_page_and_a_broken_one_are_named(server: Server, snapshot: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(snapshot, tmp_path / "cc")
    warc = next((tmp_path / "cc").rglob("*.warc.gz"))
    raw = bytearray(warc.read_bytes())
    index = tmp_path / "cc" / f"cc-index/collections/{SNAPSHOT}/indexes"
    lines = gzip.decompress((index / "cdx-00000.gz").read_bytes()).decode().splitlines()
    chosen = [
        json.loads(line.split(" ", 2)[2]) for line in lines if "tw,edu,ntu)/p/1 " in line or "tw,edu,ntu)/p/2 " in line
    ]
    place = int(chosen[0]["offset"]) + 30
    raw[place : place + 20] = b"\0" * 20
    warc.write_bytes(bytes(raw))
    local = crawl(server, hosts=["ntu.edu.tw"], base_url=str(tmp_path / "cc"))
    found = [item for item in read_source(local, True) if isinstance(item, Dropped)]
    assert [(drop.reason, drop.document.id) for drop in found] == [
        ("broken_file", f"{chosen[0]['filename']}@{chosen[0]['offset']}")
    ]
    warc.unlink()
    assert set(urls(local, skip=True)) == {"<missing>"}
    assert Reading(local).source.terms.startswith("Common Crawl")
