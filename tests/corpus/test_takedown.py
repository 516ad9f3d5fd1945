"""Taking something down and building again gives the build that never had it, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.test_engine import digests
from twllm.corpus.build import build_folder
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.document import Document
from twllm.corpus.store import read_documents
from twllm.corpus.takedown import plain_url, read_takedown, text_sha256
from twllm.errors import UserError

LINE = "第 {} 攤的蚵仔煎要排隊二十分鐘，老闆說：「慢慢來，比較快！」"


def rows() -> list[dict[str, Any]]:
    """Sixty pages on three hosts; every text stands twice, so taking the kept one down lets the other in."""
    return [
        {"id": f"{n}", "text": LINE.format(n % 30), "url": f"https://www.h{n % 3}.example.tw/p/{n}"} for n in range(60)
    ] + [{"id": "短", "text": "短", "url": "https://h1.example.tw/p/short"}]


def write(folder: Path, kept: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(3):
        chosen = [row for row in kept if len(row["id"] + row["url"]) % 3 == part]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")


def build(source: Path, out: Path, takedown: Path | None = None) -> dict[str, Any]:
    sources = (CorpusSource(path=str(source), name="web", license="CC0-1.0"),)
    config = CorpusConfig(
        sources=sources, steps=("normalize", "quality", "dedup"), held_out=0.2, part_mb=1e-6, samples_per_reason=2,
        takedown=None if takedown is None else str(takedown),
    )  # fmt: skip
    facts = build_folder(config, out)
    assert facts
    return facts


@pytest.mark.parametrize(
    ("entries", "gone"),
    [
        (
            '[[takedown]]\nurl = "http://h0.example.tw/p/3/#top"\ndate = 2025-03-01\nreason = "作者要求"',
            lambda row: row["id"] == "3",
        ),
        ('[[takedown]]\nhost = "h1.example.tw"', lambda row: "h1." in row["url"]),
        (
            '[[takedown]]\nprefix = "https://h2.example.tw/p/5"',
            lambda row: "h2." in row["url"] and "/p/5" in row["url"],
        ),
        ('[[takedown]]\nid = "web/7"\n[[takedown]]\nid = "web/37"', lambda row: row["id"] in ("7", "37")),
        (f'[[takedown]]\nsha256 = "{text_sha256(LINE.format(4))}"', lambda row: row["text"] == LINE.format(4)),
    ],
    ids=["url", "host", "prefix", "id", "text"],
)
def test_the_build_that_never_had_it(tmp_path: Path, entries: str, gone: Any) -> None:
    (tmp_path / "takedown.toml").write_text(entries, encoding="utf-8")
    write(tmp_path / "all", rows())
    write(tmp_path / "never", [row for row in rows() if not gone(row)])
    facts = build(tmp_path / "all", tmp_path / "out", tmp_path / "takedown.toml")
    build(tmp_path / "never", tmp_path / "without")
    ours, theirs = digests(tmp_path / "out"), digests(tmp_path / "without")
    for name in ("funnel.json", "funnel.html"):  # these name the folder that was read
        texts = [(tmp_path / folder / name).read_text("utf-8") for folder in ("out", "without")]
        assert texts[0].replace("/all", "/never") == texts[1]
        del ours[name], theirs[name]
    assert ours == theirs
    assert facts["taken_down"] == sum(map(gone, rows()))
    assert facts["sources"]["web"]["read_documents"] == len(rows()) - facts["taken_down"]


def test_another_takes_the_place_of_the_kept_one(tmp_path: Path) -> None:
    write(tmp_path / "all", rows())
    build(tmp_path / "all", tmp_path / "before")
    ids = lambda folder: {d.id for part in ("documents", "held_out") for d in read_documents(folder, part)}  # noqa: E731
    kept = next(name for name in sorted(ids(tmp_path / "before")) if name in ("web/3", "web/33"))
    other = "web/33" if kept == "web/3" else "web/3"
    (tmp_path / "t.toml").write_text(f'[[takedown]]\nid = "{kept}"', encoding="utf-8")
    build(tmp_path / "all", tmp_path / "after", tmp_path / "t.toml")
    assert ids(tmp_path / "after") == ids(tmp_path / "before") - {kept} | {other}


def test_what_a_url_and_a_host_cover(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        '[[takedown]]\nurl = "example.tw/夜市?p=1"\n[[takedown]]\nhost = "*.Blog.example.tw"', encoding="utf-8"
    )
    found = read_takedown(tmp_path / "t.toml")
    covered = lambda url: found.covers(Document("x", "y", url=url))  # noqa: E731
    assert covered("https://www.example.tw/%E5%A4%9C%E5%B8%82?p=1#a")
    assert not covered("https://example.tw/夜市?p=2")
    assert covered("https://a.blog.example.tw/x") and covered("http://blog.example.tw:8080/")
    assert not covered("https://myblog.example.tw/") and not covered("") and not covered("http://[broken/")
    assert plain_url("http://[broken/") == "http://[broken/"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[takedown]]\n", "one of url"),
        ('[[takedown]]\nurl = "a.tw"\nhost = "b.tw"', "one of url"),
        ('[[takedown]]\nhost = "."', "one of url"),
        ('[[takedown]]\nhots = "b.tw"', "unknown key"),
        ('[[takedwon]]\nhost = "b.tw"', "unknown key"),
        ("nonsense", "broken TOML"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "t.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=what):
        read_takedown(tmp_path / "t.toml")


def test_the_list_is_an_input(tmp_path: Path) -> None:
    from twllm.corpus.build import input_hashes

    (tmp_path / "t.toml").write_text('[[takedown]]\nhost = "a.tw"', encoding="utf-8")
    config = CorpusConfig(sources=(CorpusSource(path="twllm:knowledge"),), takedown=str(tmp_path / "t.toml"))
    before = input_hashes(config)
    (tmp_path / "t.toml").write_text('[[takedown]]\nhost = "b.tw"', encoding="utf-8")
    assert input_hashes(config) != before
    with pytest.raises(UserError, match="no such take-down file"):
        build_folder(config.model_copy(update={"takedown": str(tmp_path / "none.toml")}), tmp_path / "out")
