"""Sources behind URLs: fsspec file systems, zip in a store, http, hub data sets, and lines too long to hold."""

import gzip
import io
import json
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.corpus.conftest import GOOD
from twllm.corpus.build import build_folder, input_hashes
from twllm.corpus.config import CorpusConfig, CorpusSource, HubConfig
from twllm.corpus.document import Document, Dropped
from twllm.corpus.read import Reading, read_source
from twllm.corpus.rows import LongLine, bounded_lines
from twllm.corpus.sources import plan_source, read_part
from twllm.corpus.store import read_documents
from twllm.errors import UserError

fsspec = pytest.importorskip("fsspec")


def lines(*numbers: int) -> bytes:
    return b"".join(
        json.dumps({"id": str(n), "text": f"{GOOD}{n}"}, ensure_ascii=False).encode() + b"\n" for n in numbers
    )


@pytest.fixture
def bucket():
    """A store in memory with two files in a folder and one in another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs = fsspec.filesystem("memory")
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"text": f"{GOOD}{n}", "license": "MIT"} for n in (5, 6)]), table)
    files = {
        "/b/web/1.jsonl": lines(1, 2),
        "/b/web/2.jsonl.gz": gzip.compress(lines(3)),
        "/b/web/notes.odt": b"?",
        "/b/p/x.parquet": table.getvalue(),
    }
    for name, raw in files.items():
        fs.pipe(name, raw)
    yield fs
    fs.rm("/b", recursive=True)


def ids(path: str, **settings: object) -> list[str]:
    source = CorpusSource.model_validate({"path": path, "license": "CC0-1.0", "name": "s", **settings})
    return [item.id if isinstance(item, Document) else f"<{item.reason}>" for item in read_source(source, True)]


def test_a_folder_a_file_and_a_glob_in_a_store(bucket) -> None:
    assert ids("memory://b/web") == ["s/1", "s/2", "s/3"]
    assert ids("memory://b/web/2.jsonl.gz") == ["s/3"]
    assert ids("memory://b/**/*.jsonl") == ["s/1", "s/2"]
    assert ids("memory://b/p/x.parquet") == ["s/x.parquet:1", "s/x.parquet:2"]
    with pytest.raises(UserError, match="no such corpus source"):
        ids("memory://b/nothing")
    with pytest.raises(UserError, match="no such file system"):
        ids("nosuchprotocol://b/web")


def test_a_store_gives_what_the_disk_gives(bucket, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "1.jsonl").write_bytes(lines(1, 2))
    (tmp_path / "web" / "2.jsonl.gz").write_bytes(gzip.compress(lines(3)))
    for name, path in (("disk", str(tmp_path / "web")), ("store", "memory://b/web")):
        source = CorpusSource(path=path, name="s", license="CC0-1.0")
        build_folder(CorpusConfig(sources=(source,), steps=("normalize",), held_out=0), tmp_path / name)
    assert list(read_documents(tmp_path / "disk")) == list(read_documents(tmp_path / "store"))
    config = CorpusConfig(sources=(CorpusSource(path="memory://b/web", license="MIT"),))
    before = input_hashes(config)
    bucket.pipe("/b/web/1.jsonl", lines(1, 2, 9))
    assert input_hashes(config) != before


def test_a_file_system_of_ones_own_and_zip(tmp_path: Path) -> None:
    """Any protocol that is registered with fsspec; and files in a zip in a store."""
    import zipfile

    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    class Shelf(DirFileSystem):
        protocol = "shelf"

        def __init__(self, **kwargs: object) -> None:
            super().__init__(str(tmp_path), LocalFileSystem())

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("shelf://")

    fsspec.register_implementation("shelf", Shelf, clobber=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(lines(1))
    assert ids("shelf://in") == ["s/1"]
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as packed:
        packed.writestr("deep/x.jsonl", lines(7))
        packed.writestr("deep/readme.rst", b"no")
    assert ids(f"zip://deep/*.jsonl::file://{tmp_path}/in/a.zip") == ["s/7"]


def test_http(tmp_path: Path) -> None:
    from twllm.corpus.http import client

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(1, 2)))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        assert ids(f"http://127.0.0.1:{httpd.server_port}/a.jsonl.gz?x=1") == ["s/1", "s/2"]
        with pytest.raises(UserError, match="not found"):
            ids(f"http://127.0.0.1:{httpd.server_port}/b.jsonl")
    finally:
        client().close()
        client.cache_clear()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def test_a_hub_data_set(tmp_path: Path) -> None:
    """Through the real library, from local files as a builder reads them: two files are two shards, so two parts."""
    pytest.importorskip("datasets", reason="extra `data`")
    for name in ("0", "1"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(int(name), int(name) + 10))
    hub = HubConfig(name="json", data_files=(str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")))
    source = CorpusSource(hub=hub, license="CC0-1.0", name="h")
    parts = plan_source(source)
    assert [part.what for part in parts] == [(0,), (1,)]
    assert [item.id for item in read_part(parts[1], Reading(source)) if isinstance(item, Document)] == ["h/1", "h/11"]
    assert len(plan_source(source.model_copy(update={"limit": 3}))) == 1
    assert len(list(read_source(source.model_copy(update={"limit": 3})))) == 3
    with pytest.raises(UserError, match="cannot be opened"):
        plan_source(CorpusSource(hub=HubConfig(name="json", data_files=(str(tmp_path / "none.jsonl"),))))


def test_long_lines_are_passed_over(tmp_path: Path) -> None:
    stream = io.BytesIO(b"a\n" + b"b" * 100 + b"\n" + b"c" * 9 + b"\n" + b"d" * 10)
    found = list(bounded_lines(stream, 10))
    assert [bytes(line) for line in found] == [b"a\n", b"b" * 10, b"c" * 9 + b"\n", b"d" * 10]
    assert [isinstance(line, LongLine) for line in found] == [False, True, False, True]
    assert list(bounded_lines(io.BytesIO(b"e" * 9 + b"\n"), 10)) == [b"e" * 9 + b"\n"]
    (tmp_path / "a.jsonl").write_bytes(lines(1) + b'{"text": "' + b"x" * 5000 + b'"}\n' + lines(2))
    source = CorpusSource(path=str(tmp_path / "a.jsonl"), license="MIT", name="s")
    items = list(read_part(plan_source(source)[0], Reading(source, skip_broken=True, max_bytes=1000)))
    assert [item.reason if isinstance(item, Dropped) else item.id for item in items] == ["s/1", "long_line", "s/2"]
    with pytest.raises(UserError, match="line too long") as error:
        list(read_part(plan_source(source)[0], Reading(source, max_bytes=1000)))
    assert error.value.where.endswith("a.jsonl:2")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("megabytes", [192, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_huge_line_is_never_held(tmp_path: Path, megabytes: int) -> None:
    """Packed, it is small on disk. The reader's memory stays below 250 MB (the limit is 64)."""
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(lines(1) + b'{"text": "')
        for _ in range(megabytes):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + lines(2))
    code = (
        "import sys; from twllm.corpus.config import CorpusSource; from twllm.corpus.read import read_source\n"
        "items = list(read_source(CorpusSource(path=sys.argv[1], license='MIT'), True))\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"  # of this process alone
        "print([getattr(item, 'reason', 'document') for item in items], int(peak) // 1024)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.jsonl.gz")], capture_output=True, text=True, check=True
    )
    told, memory = found.stdout.rsplit(" ", 1)
    assert told == "['document', 'long_line', 'document']"
    assert int(memory) < 250
