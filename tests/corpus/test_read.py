"""Readers: every file kind, and broken input told with its place or skipped and counted."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.corpus.conftest import GOOD
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document, Dropped
from twllm.corpus.files import decode, input_hashes, list_files
from twllm.corpus.read import read_source
from twllm.errors import UserError

ROWS = [{"id": "甲", "text": GOOD, "url": "https://example.tw/1", "title": "夜市"}, {"text": "ㄅㄆㄇ「第二篇」"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "jsonl": bytes,
    "jsonl.gz": gzip.compress,
    "jsonl.zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path | str, skip: bool = False, **settings: object) -> list[Document | Dropped]:
    return list(read_source(CorpusSource(path=str(path), **{"license": "CC0-1.0", **settings}), skip))


def texts(items: list[Document | Dropped]) -> list[str]:
    return [item.text if isinstance(item, Document) else f"<{item.reason}>" for item in items]


@pytest.mark.parametrize("suffix", PACK)
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"語料.{suffix}"
    path.write_bytes(PACK[suffix](LINES))
    first, second = read(path)
    assert first == Document("語料/甲", GOOD, "語料", "https://example.tw/1", "CC0-1.0", {"title": "夜市"})
    assert second == Document(f"語料/語料.{suffix}:3", "ㄅㄆㄇ「第二篇」", "語料", "", "CC0-1.0")


def test_several_frames_and_members_in_one_file(tmp_path: Path) -> None:
    for suffix in ("jsonl.gz", "jsonl.zst"):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(PACK[suffix](LINES) + PACK[suffix](LINES))
        assert len(read(path)) == 4


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"內文": GOOD, "license": "MIT", "year": 2024}, {"內文": None, "license": "MIT", "year": 2025}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet", skip=True, text_key="內文")
    assert first == Document("a/a.parquet:1", GOOD, "a", "", "MIT", {"year": 2024})
    assert isinstance(second, Dropped)
    assert second.reason == "no_text"


def test_txt_and_md_are_a_document_each(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    (tmp_path / "b" / "big5.txt").write_bytes("老檔案是 Big5 編碼，恒春、碁峰。".encode("cp950"))
    (tmp_path / "b" / "c.md").write_text("---\ntitle: '夜市'\ntags: [a]\n---\n# 夜市\n---\n內文", encoding="utf-8")
    (tmp_path / "b" / ".hidden.txt").write_text("不讀", encoding="utf-8")
    (tmp_path / "b" / "圖.png").write_bytes(b"\x89PNG")
    items = [item for item in read(tmp_path, name="夾") if isinstance(item, Document)]
    assert [item.text for item in items] == [GOOD, "老檔案是 Big5 編碼，恒春、碁峰。", "# 夜市\n---\n內文"]
    assert [item.id for item in items] == ["夾/a.txt", "夾/b/big5.txt", "夾/b/c.md"]
    assert [item.metadata for item in items] == [{}, {"charset": "cp950"}, {"title": "夜市"}]


@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16", "big5", "gb18030"])
def test_charsets(charset: str) -> None:
    text = "中文編碼測試，請多指教。" if charset != "gb18030" else "简体网页的编码测试，请多指教。"
    assert decode(text.encode(charset))[0] == text
    assert decode(text.encode(charset), ["no-such-charset", "base64", charset])[0] == text
    assert "\ufffd" in decode("台灣".encode() + b"\xff\xff\x80", ["utf-8"])[0]


def test_shipped_data_carries_its_own_licence() -> None:
    source = CorpusSource(path="twllm:knowledge", limit=3)
    items = list(read_source(source))
    assert [item.license for item in items if isinstance(item, Document)] == ["CC-BY-4.0"] * 3


def test_glob_and_limit(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_bytes(LINES)
    assert [f.name for f in list_files(CorpusSource(path=f"{tmp_path}/*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    assert len(read(f"{tmp_path}/*.jsonl", name="x", limit=3)) == 3


def test_broken_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES + b'{"text": "\xe5\x8f\n[1, 2]\n' + LINES)
    with pytest.raises(UserError) as error:
        read(path)
    assert error.value.where == f"{path}:5"
    assert "on_broken" in error.value.fix
    items = read(path, skip=True)
    assert texts(items)[2:4] == ["<broken_line>", "<broken_line>"]
    assert len(items) == 6


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
def test_truncated_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    many = b"".join(json.dumps({"text": f"{n} {hash(str(n))}"}).encode() + b"\n" for n in range(20_000))
    path.write_bytes(PACK[suffix](many)[:-200])
    with pytest.raises(UserError, match="damaged file") as error:
        read(path)
    assert error.value.where == str(path)
    items = read(path, skip=True)
    assert texts(items)[-1] == "<broken_file>"
    if suffix == "jsonl.gz":
        assert len(items) > 10_000  # what could be read is kept


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.warc.gz"])
def test_not_what_the_suffix_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is none of it" * 10)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / name)
    assert texts(read(tmp_path / name, skip=True)) == ["<broken_file>"]


def test_missing_text_key_names_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "contents": "台灣"}\n', encoding="utf-8")
    for skip in (False, True):  # a wrong setting is never skipped
        with pytest.raises(UserError, match="no such text key") as error:
            read(path, skip, text_key="content")
    assert "id、contents" in error.value.fix
    assert "did you mean 'contents'" in error.value.fix


def test_text_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "台灣"}\n{"text": 5}\n{"other": 1}\n', encoding="utf-8")
    with pytest.raises(UserError) as error:
        read(path)
    assert error.value.where == f"{path}:2"
    assert texts(read(path, skip=True)) == ["台灣", "<no_text>", "<no_text>"]


def test_no_licence_is_an_error_also_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(UserError, match="no licence") as error:
        read(tmp_path / "a.jsonl", skip=True, license="")
    assert 'license = "…"' in error.value.fix


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus source"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no corpus files"):
        read(tmp_path)
    (tmp_path / "a.odt").write_bytes(b"")
    with pytest.raises(UserError, match="unknown file type") as error:
        read(tmp_path / "a.odt")
    assert "jsonl" in error.value.fix


def test_input_hashes_follow_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("台灣", encoding="utf-8")
    (tmp_path / "b.txt").write_text("臺灣", encoding="utf-8")
    config = CorpusConfig(sources=(CorpusSource(path=str(tmp_path)), CorpusSource(path="twllm:knowledge")))
    first = input_hashes(config)
    assert list(first) == [str(tmp_path), "twllm:knowledge"]
    assert input_hashes(config) == first
    (tmp_path / "notes.odt").write_bytes(b"not read")
    assert input_hashes(config) == first
    (tmp_path / "b.txt").write_text("台灣", encoding="utf-8")
    second = input_hashes(config)
    assert second[str(tmp_path)] != first[str(tmp_path)]
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert input_hashes(config)[str(tmp_path)] not in (first[str(tmp_path)], second[str(tmp_path)])


def test_bytes_read_are_told(tmp_path: Path) -> None:
    for suffix, pack in PACK.items():
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(pack(LINES * 100))
        told: list[int] = []
        list(read_source(CorpusSource(path=str(path), license="MIT"), on_bytes=told.append))
        assert sum(told) == path.stat().st_size
