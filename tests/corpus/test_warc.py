"""WARC and WET files written by hand, and readable text of HTML."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from twllm.corpus.build import build_corpus
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.html import read_html
from twllm.corpus.read import Reading, read_source
from twllm.corpus.sources import plan_source, read_part
from twllm.errors import UserError

PAGE = """<html><head><meta charset="{charset}"><title>士林 夜市</title><style>p{{}}</style></head><body>
<header><a href="/">首頁</a></header><nav>關於我們</nav>
<article><header><h1>士林夜市</h1></header><p>「夜市」是台灣人的<b>廚房</b>，<br>人人都愛。</p></article>
<ul><li><a href="/1">相關文章一</a></li></ul><script>alert("x")</script><footer>版權所有</footer></body></html>"""
TEXT = "士林夜市\n「夜市」是台灣人的廚房，\n人人都愛。"


def record(kind: str, content_type: str, block: bytes, number: int = 0) -> bytes:
    """One WARC record, written by hand."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Target-URI: https://example.tw/{number}\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n"
    )
    return head.encode() + b"\r\n" + block + b"\r\n\r\n"


def response(status: str, headers: dict[str, str], body: bytes, number: int = 0) -> bytes:
    """A response record with its HTTP head."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return record("response", "application/http", f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body, number)


def write_warc(path: Path, *records: bytes) -> None:
    """A .warc, or a .gz of one member a record."""
    path.write_bytes(b"".join(gzip.compress(one) if path.suffix == ".gz" else one for one in records))


def read(path: Path, skip: bool = False) -> list[Document | Dropped]:
    return list(read_source(CorpusSource(path=str(path), license="CC0-1.0"), skip))


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_warc_gives_html_pages(tmp_path: Path, name: str) -> None:
    big5 = PAGE.format(charset="big5").encode("big5")
    pages = (
        ("200 OK", "text/html; charset=utf-8", PAGE.format(charset="x").encode()),
        ("200 OK", "text/html", big5),
        ("200 OK", 'text/html; charset="utf-8"', big5),  # the header lies
        ("404 Not Found", "text/html", b"<p>\xe6\xb2\x92\xe6\x9c\x89</p>"),
        ("200 OK", "image/png", b"\x89PNG"),
    )
    info = record("warcinfo", "application/warc-fields", b"software: test\r\n", 9)
    records = [response(status, {"Content-Type": kind}, body, n) for n, (status, kind, body) in enumerate(pages)]
    write_warc(tmp_path / name, info, *records)
    items = read(tmp_path / name)
    assert [item.text for item in items if isinstance(item, Document)] == [TEXT] * 3
    first = items[0]
    assert isinstance(first, Document)
    assert first.id == "a/<urn:uuid:0>"
    assert (first.url, first.metadata["title"], first.license) == ("https://example.tw/0", "士林 夜市", "CC0-1.0")
    assert [item.metadata["charset"] for item in items if isinstance(item, Document)] == ["utf-8-sig", "cp950", "cp950"]


def test_wet_gives_text_as_it_is(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc.wet.gz", record("conversion", "text/plain", TEXT.encode()))
    [document] = read(tmp_path / "a.warc.wet.gz")
    assert isinstance(document, Document)
    assert (document.text, document.url) == (TEXT, "https://example.tw/0")


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_truncated_warc(tmp_path: Path, name: str) -> None:
    page = response("200 OK", {"Content-Type": "text/html; charset=utf-8"}, PAGE.format(charset="utf-8").encode())
    write_warc(tmp_path / name, page, page)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged file"):
        read(tmp_path / name)
    items = read(tmp_path / name, skip=True)
    assert isinstance(items[0], Document)
    assert isinstance(items[-1], Dropped)
    assert items[-1].reason == "broken_file"


def test_compressed_and_chunked_bodies(tmp_path: Path) -> None:
    body = gzip.compress(PAGE.format(charset="utf-8").encode())
    chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    headers = {"Content-Type": "text/html", "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
    write_warc(tmp_path / "a.warc", response("200 OK", headers, chunked))
    [document] = read(tmp_path / "a.warc")
    assert isinstance(document, Document)
    assert document.text == TEXT


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>一</p><p>二<div>三</div>", "一\n二\n三"),
        ("<p>甲 \n 乙&nbsp;&amp;丙&#x4E01;</p>", "甲 乙\xa0&丙丁"),
        ("<div><nav>選單</div><p>內文</p>", "內文"),  # nav never closed
        ("<p><ruby>台<rp>(</rp><rt>ㄊㄞˊ</rt><rp>)</rp>灣<rt>ㄨㄢ</rt></ruby></p>", "台灣"),
        ("<p>請見<a href='x'>交通部</a>的公告說明。</p><p><a>上一頁</a> <a>下一頁</a></p>", "請見交通部的公告說明。"),
        ("<table><tr><th>縣市</th><td>臺北</td></tr></table>", "縣市 | 臺北"),
        ("<pre>一\n  二\n</pre>", "一\n  二"),
        ("沒有標籤也行<br>換行", "沒有標籤也行\n換行"),
        ("<p>沒關好 <b>粗體<p>1 < 2", "沒關好 粗體\n1 < 2"),
    ],
)
def test_readable_text(html: str, text: str) -> None:
    assert read_html(html) == ("", text)


def good_pages(count: int) -> list[bytes]:
    page = PAGE.format(charset="utf-8")
    headers = {"Content-Type": "text/html; charset=utf-8"}
    return [response("200 OK", headers, page.replace("廚房", f"第{n}個廚房").encode(), n) for n in range(count)]


def numbers(items: list[Document | Dropped]) -> list[str]:
    """The number of each page, or the reason and place of a drop."""
    found = []
    for item in items:
        if isinstance(item, Document):
            found.append(item.url.rpartition("/")[2])
        else:
            found.append(f"{item.reason} {item.document.id.rpartition('/')[2]}")
    return found


def damage_middle(member: bytes) -> bytes:
    return member[:40] + bytes(byte ^ 0x5A for byte in member[40:60]) + member[60:]


@pytest.mark.parametrize(
    "damage",
    [
        damage_middle,
        lambda member: member[:-20],
        lambda member: member[:-6] + b"\0\0" + member[-4:],
        lambda member: b"\x1f\x8b\x08junk" * 9,
    ],
    ids=["garbage", "cut", "checksum", "no gzip"],
)
def test_a_damaged_member_loses_only_itself(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    members = [gzip.compress(page, mtime=0) for page in good_pages(5)]
    offset = len(members[0]) + len(members[1])
    members[2] = damage(members[2])
    (tmp_path / "a.warc.gz").write_bytes(b"".join(members))
    assert numbers(read(tmp_path / "a.warc.gz", skip=True)) == ["0", "1", f"broken_record a.warc.gz@{offset}", "3", "4"]
    with pytest.raises(UserError, match="broken record") as error:
        read(tmp_path / "a.warc.gz")
    assert error.value.where.endswith(f"a.warc.gz@{offset}")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Content-Length: ", b"Content-Length: 9"),  # swallows what follows
        (b"Content-Length: 4", b"Content-Length: 1"),  # too short
        (b"Content-Length: ", b"Content-Length: x"),
        (b"WARC/1.0\r\n", b"VARC/1.0\r\n"),
    ],
)
def test_a_damaged_header_loses_only_its_record(tmp_path: Path, packed: bool, old: bytes, new: bytes) -> None:
    pages = good_pages(4)
    assert b"Content-Length: 4" in pages[1]
    pages[1] = pages[1].replace(old, new, 1)
    name = "a.warc.gz" if packed else "a.warc"
    write_warc(tmp_path / name, *pages)
    offset = len(gzip.compress(pages[0])) if packed else len(pages[0])
    found = numbers(read(tmp_path / name, skip=True))
    assert [entry for entry in found if entry.isdecimal()] == ["0", "2", "3"]
    [drop] = [entry for entry in found if not entry.isdecimal()]
    assert drop.startswith(f"broken_record {name}@{offset}"[:-2])


def test_a_page_too_large_is_named(tmp_path: Path) -> None:
    headers = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
    bomb = gzip.compress(b"<p>" + b"A" * 3_000_000)
    large = response("200 OK", {"Content-Type": "text/html"}, b"<p>" + b"B" * 2_000_000, 8)
    image = response("200 OK", {"Content-Type": "image/png"}, b"C" * 2_000_000, 9)  # no page: nobody misses it
    write_warc(
        tmp_path / "a.warc.gz", *good_pages(1), response("200 OK", headers, bomb, 7), large, image, *good_pages(2)[1:]
    )
    source = CorpusSource(path=str(tmp_path / "a.warc.gz"), license="CC0-1.0")
    [part] = plan_source(source)
    items = list(read_part(part, Reading(source, skip_broken=True, max_bytes=1_000_000)))
    assert [entry.split(" ")[0] for entry in numbers(items)] == ["0", "too_large", "too_large", "1"]
    assert [item.detail.rpartition("/")[2] for item in items if isinstance(item, Dropped)] == ["7", "8"]


def test_the_web_is_skipped_by_default(tmp_path: Path) -> None:
    members = [gzip.compress(page, mtime=0) for page in good_pages(3)]
    (tmp_path / "a.warc.gz").write_bytes(members[0] + damage_middle(members[1]) + members[2])
    source = CorpusSource(path=str(tmp_path / "a.warc.gz"), license="CC0-1.0")
    (tmp_path / "out").mkdir()
    facts = build_corpus(CorpusConfig(sources=(source,), steps=(), held_out=0), tmp_path / "out")
    assert (facts["documents"], facts["dropped"]) == (2, {"broken_record": 1})
    with pytest.raises(UserError, match="broken record"):
        (tmp_path / "stop").mkdir()
        build_corpus(CorpusConfig(sources=(source,), steps=(), on_broken="stop"), tmp_path / "stop")
