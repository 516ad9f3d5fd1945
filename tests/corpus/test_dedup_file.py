"""`twllm corpus dedup`: what stays, byte for byte, however often it is killed and in how many processes it runs."""

import gzip
import hashlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.corpus.test_near_dedup import article, edit
from twllm.cli import app
from twllm.corpus import dedup_file
from twllm.corpus.dedup_file import Piece, _lines, dedup_files
from twllm.errors import UserError

MENU = "回首頁 | 網站地圖"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files of one host; the second has copies from the first, a broken line and a line that is no document."""
    rng = random.Random(21)
    texts = [article(rng, 8) for _ in range(60)]
    rows = [
        {"id": n, "text": f"{MENU}\n{text}", "url": f"https://a.tw/{n}", "更多": [n]} for n, text in enumerate(texts)
    ]
    copies = [{"text": f"{MENU}\n{edit(rng, text, 'delete')}", "url": f"https://a.tw/c{n}", "標籤": "轉載"} for n, text in enumerate(texts[:30])]  # fmt: skip
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    first.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    lines = [json.dumps(row) for row in copies]  # escapes stay as they are
    second.write_bytes(gzip.compress("\n".join([*lines, "{broken", '{"title": 1}', '{"text": "只有這裡有"}']).encode()))
    return [first, second]


def digests(folder: Path) -> list[str]:
    """Of the results."""
    names = ("documents.jsonl", "clusters.jsonl", "report.json")
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def test_lines_are_kept_as_they_were(files: list[Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["corpus", "dedup", *map(str, files), "--out", str(tmp_path / "out"), "--workers", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "91 份文件，留下 61" in result.output and "b.jsonl.gz@31" in result.output
    kept = (tmp_path / "out" / "documents.jsonl").read_bytes()
    assert kept == files[0].read_bytes() + '{"text": "只有這裡有"}\n'.encode()
    clusters = [
        json.loads(line) for line in (tmp_path / "out" / "clusters.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(clusters) == 30 and clusters[7]["kept"]["url"] == "https://a.tw/7"
    assert [member["url"] for member in clusters[7]["members"]] == ["https://a.tw/c7"]
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (
        report["broken"] == 2 and report["reasons"] == {"near_duplicate": 30} and report["near_dedup"]["clusters"] == 30
    )


def test_boilerplate_is_cut_and_other_fields_stay(files: list[Path], tmp_path: Path) -> None:
    report = dedup_files(files, tmp_path / "out", workers=1, boilerplate=True)
    assert report["cut"] == {"cut_boilerplate": 90}
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 61 and not any(MENU in row["text"] for row in rows)
    assert rows[5]["更多"] == [5] and rows[5]["id"] == 5


def test_pieces_and_processes_give_the_same_bytes(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dedup_files(files, tmp_path / "one", workers=1, boilerplate=True)
    monkeypatch.setattr(dedup_file, "PIECE_BYTES", 5000)
    dedup_files(files, tmp_path / "two", workers=2, boilerplate=True)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert not list(tmp_path.glob(".*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from twllm.corpus import dedup_file
dedup_file.PIECE_BYTES = 5000
name, left = sys.argv[1], int(sys.argv[2])
real = getattr(dedup_file, name)
def dies(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(dedup_file, name, dies)
dedup_file.dedup_files([Path(p) for p in sys.argv[4:]], Path(sys.argv[3]), workers=1)
"""


def test_killed_anywhere_the_rest_is_done_and_the_bytes_are_the_same(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup_file, "PIECE_BYTES", 5000)
    dedup_files(files, tmp_path / "whole", workers=1)
    for name, times in (("_rows", 2), ("_decide", 9), ("_conclude", 0), ("_keep", 3), ("_finish", 0)):
        command = [sys.executable, "-c", KILLED, name, str(times), str(tmp_path / "out"), *map(str, files)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.work").glob("scan-0/*")}
    assert len(before) > 3
    dedup_files(files, tmp_path / "out", workers=1)
    assert digests(tmp_path / "whole") == digests(tmp_path / "out")


def test_every_line_is_in_exactly_one_piece(tmp_path: Path) -> None:
    file = tmp_path / "x"
    lines = [b"a" * size + b"\n" for size in (0, 5, 9, 10, 30, 0, 1)] + [b"end"]
    file.write_bytes(b"".join(lines))
    for size in range(1, 40):
        edges = list(range(0, file.stat().st_size, size))
        found = [line for start in edges for _, line in _lines(Piece(str(file), 0, start, start + size))]
        assert found == lines, size


def test_a_damaged_file_stops_and_names_itself(files: list[Path], tmp_path: Path) -> None:
    files[1].write_bytes(files[1].read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged file"):
        dedup_files(files, tmp_path / "out", workers=1)
    result: Any = CliRunner().invoke(
        app, ["corpus", "dedup", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code and isinstance(result.exception, UserError)


def test_empty_and_tiny_files(tmp_path: Path) -> None:
    for name, text in (("empty", ""), ("blank", "\n\n"), ("short", '{"text": ""}\n{"text": ""}\n{"text": "好"}\n')):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(text, encoding="utf-8")
        report = dedup_files([file], tmp_path / name, workers=1, boilerplate=True)
        assert report["documents"] == text.count("text") and report["kept"] == min(report["documents"], 2)
        assert (tmp_path / name / "clusters.jsonl").read_text(encoding="utf-8").count("\n") == bool(report["documents"])
