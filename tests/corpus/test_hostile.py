"""Files made to hurt: each is counted, named and passed over in bounded time and memory, the rest is read."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.corpus.conftest import GOOD
from tests.corpus.test_formats import CONTAINER, OPF, archive
from tests.corpus.test_warc import good_pages, response
from twllm.corpus.build import build_corpus
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.limits import TooSlow, time_limit
from twllm.corpus.read import Reading
from twllm.corpus.sources import plan_source, read_part
from twllm.errors import UserError

DEEP = b"<div>" * 100_000 + GOOD.encode()


def pdf(*objects: bytes) -> bytes:
    """A PDF of these objects; the first is the catalogue."""
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate((b"<< /Type /Catalog /Pages 2 0 R >>", *objects), 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(places) + 1
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, table, size, len(out))  # fmt: skip


PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R >>"
KIDS = b"<< /Type /Pages /Kids [%s] /Count 1 >>"


def flate(megabytes: int, times: int) -> bytes:
    raw = b" " * (megabytes << 20)
    for _ in range(times):
        raw = zlib.compress(raw, 9)
    return b"<< /Length %d /Filter [%s] >>\nstream\n%s\nendstream" % (len(raw), b"/FlateDecode " * times, raw)


def zip_of_nested_xml(depth: int) -> bytes:
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    inside = "<w:sdt>" * depth + "</w:sdt>" * depth
    return archive({"word/document.xml": f"<w:document {w}><w:body>{inside}</w:body></w:document>"})


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.html", DEEP, "too_deep"),
        ("a.html.gz", gzip.compress(b"<p>" + b"A" * (30 << 20)), "too_large"),
        ("a.txt.gz", gzip.compress(GOOD.encode() * 100)[:-9], "broken_file"),
        ("a.md.gz", b"not gzip at all", "broken_file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "' + b"A" * (30 << 20)), "long_line"),
        ("a.jsonl", b"\xff\xfe\x00\x80\n", "broken_line"),
        ("a.jsonl", b"[" * 200_000 + b"\n", "broken_line"),
        ("a.parquet", b"PAR1" + b"\xff" * 900 + b"PAR1", "broken_file"),
        ("a.parquet", b"", "broken_file"),
        ("a.docx", zip_of_nested_xml(50_000), "broken_file"),
        ("a.docx", archive({"word/document.xml": b"<a>" + b" " * (30 << 20) + b"</a>"}), "too_large"),
        ("a.epub", archive({"META-INF/container.xml": CONTAINER, "OEBPS/x.opf": OPF, "OEBPS/a.xhtml": DEEP}), "too_deep"),
        ("a.epub", archive({"META-INF/container.xml": CONTAINER, "OEBPS/x.opf": OPF, "OEBPS/a.xhtml": b"A" * (30 << 20)}), "too_large"),
        ("a.pdf", pdf(KIDS % b"3 0 R", PAGE, flate(300, 1)), "no_text"),
        ("a.pdf", pdf(KIDS % b"3 0 R", PAGE, flate(300, 2)), "no_text"),
        ("a.pdf", pdf(KIDS % b"2 0 R 2 0 R"), "broken_file"),
        ("a.pdf", pdf(KIDS % (b"3 0 R " * 100_001), PAGE, b"<< /Length 0 >>\nstream\n\nendstream"), "broken_file"),
        ("a.warc", b"WARC/1.0\r\nContent-Length: 99999999999\r\n\r\nx", "broken_file"),
        ("a.warc.gz", gzip.compress(good_pages(1)[0])[:-30], "broken_file"),
    ],
)  # fmt: skip
def test_one_bad_file_among_good_ones(tmp_path: Path, name: str, raw: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(raw)
    (tmp_path / "b.txt").write_text(GOOD, encoding="utf-8")
    source = CorpusSource(path=str(tmp_path), name="書", license="CC0-1.0")
    start = time.process_time()
    items = [item for part in plan_source(source) for item in read_part(part, Reading(source, True, max_bytes=8 << 20))]
    assert time.process_time() - start < 5
    drops = [item for item in items if isinstance(item, Dropped)]
    assert [drop.reason for drop in drops] == [reason]
    assert name in drops[0].document.id
    assert [item.text for item in items if isinstance(item, Document)] == [GOOD]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.jsonl", "a.warc", "a.warc.gz", "a.wet.gz"])
def test_an_empty_file_is_no_trouble(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    source = CorpusSource(path=str(tmp_path), license="MIT")
    items = [item for part in plan_source(source) for item in read_part(part, Reading(source, True))]
    assert all(isinstance(item, Document) and not item.text for item in items)


@pytest.mark.parametrize("name", ["a.jsonl", "a.html", "a.txt", "a.pdf", "a.docx"])
def test_a_gigabyte_in_one_line(tmp_path: Path, name: str) -> None:
    """Sparse on the disk; at most twice the limit is in memory, and in a .jsonl the lines around it are read."""
    line = json.dumps({"text": GOOD}).encode() + b"\n"
    with (tmp_path / name).open("wb") as stream:
        stream.write(line)
        stream.seek(1 << 30)
        stream.write(b"\n" + line)
    source = CorpusSource(path=str(tmp_path), license="MIT")
    [part] = plan_source(source)
    tracemalloc.start()
    items = list(read_part(part, Reading(source, True, max_bytes=4 << 20)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    reasons = [item.reason if isinstance(item, Dropped) else item.text for item in items]
    assert reasons == ([GOOD, "long_line", GOOD] if name == "a.jsonl" else ["too_large"])


def test_bad_pages_in_a_warc(tmp_path: Path) -> None:
    bomb = response(
        "200 OK", {"Content-Type": "text/html", "Content-Encoding": "gzip"}, gzip.compress(b"A" * (30 << 20)), 7
    )
    deep = response("200 OK", {"Content-Type": "text/html"}, DEEP, 8)
    junk = response("200 OK", {"Content-Type": "text/html; charset=big5"}, bytes(range(256)) * 40, 9)
    first, second = good_pages(2)
    (tmp_path / "a.warc.gz").write_bytes(b"".join(gzip.compress(one) for one in (first, bomb, deep, junk, second)))
    source = CorpusSource(path=str(tmp_path / "a.warc.gz"), license="MIT")
    (tmp_path / "out").mkdir()
    config = CorpusConfig(sources=(source,), steps=("normalize",), held_out=0, max_document_mb=8)
    facts = build_corpus(config, tmp_path / "out")
    assert facts["documents"] == 3 and facts["dropped"] == {"too_large": 1, "too_deep": 1}
    told = (tmp_path / "out" / "funnel.html").read_text(encoding="utf-8")
    assert "標籤過多過深" in told and "過大" in told and "too_deep 1" in told


def test_a_document_that_takes_too_long(tmp_path: Path) -> None:
    """Millions of broken bytes: what decoding them would take is more than the limit here."""
    (tmp_path / "a.html").write_bytes(b"\xa4\xff" * 2_000_000)
    source = CorpusSource(path=str(tmp_path), license="MIT")
    [part] = plan_source(source)
    [item] = read_part(part, Reading(source, True, max_seconds=0.05))
    assert isinstance(item, Dropped) and item.reason == "too_slow"
    with pytest.raises(UserError, match="takes too long"):
        list(read_part(part, Reading(source, max_seconds=0.05)))


def test_the_timer_is_put_back() -> None:
    with pytest.raises(TooSlow), time_limit(0.02):
        while True:
            pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with time_limit(30):
        pass
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_zip_of_too_many_entries(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as packed:
        for number in range(20_001):
            packed.writestr(str(number), b"")
    (tmp_path / "a.docx").write_bytes(raw.getvalue())
    source = CorpusSource(path=str(tmp_path), license="MIT")
    [item] = read_part(plan_source(source)[0], Reading(source, True))
    assert isinstance(item, Dropped) and item.reason == "too_large"


KILL = """
import os, signal, sys
from pathlib import Path
from twllm.corpus import html
from twllm.corpus.build import build_corpus
from twllm.corpus.config import CorpusConfig, CorpusSource
after = int(sys.argv[3]); inner = html.read_html; seen = 0
def dies(page, main=True):
    global seen
    seen += 1
    if seen == after:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(page, main)
import twllm.corpus.warc as warc
warc.read_html = dies
sources = (CorpusSource(path=sys.argv[1], license="MIT", name="w"),)
out = Path(sys.argv[2]); out.mkdir(exist_ok=True)
build_corpus(CorpusConfig(sources=sources, steps=("normalize", "dedup"), held_out=0.2, part_mb=0.0001), out)
"""


def test_killed_while_extracting_then_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        deep = response("200 OK", {"Content-Type": "text/html"}, DEEP, 8)
        pages = [gzip.compress(page, mtime=0) for page in (*good_pages(4), deep)]
        (tmp_path / "in" / f"{number}.warc.gz").write_bytes(
            b"".join(pages[number:] + pages[:number])[: -9 if number == 2 else None]
        )

    def run(out: str, after: int) -> int:
        command = [sys.executable, "-c", KILL, str(tmp_path / "in"), str(tmp_path / out), str(after)]
        return subprocess.run(
            command, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ).returncode

    assert run("whole", 0) == 0
    assert run("killed", 8) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "documents.jsonl.zst").exists()
    assert run("killed", 0) == 0
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert files
    for file in files:
        if file.suffix != ".png" and file.name != "manifest.json":
            assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
