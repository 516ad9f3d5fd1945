"""Lines and paragraphs that stand in many documents."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from twllm.corpus.build import build_folder
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.dedup_lines import unit_hashes
from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.steps import make_step
from twllm.corpus.store import read_documents

SHARE = "分享到臉書 | 加入好友 | 訂閱電子報"
LAW = "第一條 為保障國民的權利，特制定本法；本法沒有規定的，適用其他法律的規定，但對人民比較有利的規定優先適用。"


def documents(steps: str, texts: list[str], urls: list[str] | None = None, **dedup: object) -> list[Any]:
    """What a step yields for these texts."""
    given = [Document(str(n), text, url=urls[n] if urls else "") for n, text in enumerate(texts)]
    return list(make_step(steps, CorpusConfig(dedup=dedup))(given))


def texts_of(items: list[Any]) -> dict[str, str]:
    """Texts that go on, by id."""
    return {item.id: item.text for item in items if isinstance(item, Document)}


def test_a_line_on_many_pages_of_a_host_goes_from_all() -> None:
    texts = [
        f"第{n}篇：今天去了夜市。\n{SHARE if n % 2 else SHARE.replace('|', '｜').replace(' ', '')}" for n in range(12)
    ]
    urls = [f"https://{'a' if n < 9 else 'b'}.tw/{n}" for n in range(12)]
    items = documents("boilerplate", texts, urls, boilerplate_documents=5)
    left = texts_of(items)
    assert all(("\n" in left[str(n)]) == (n >= 9) for n in range(12))
    noted = [item for item in items if isinstance(item, Noted)]
    assert len(noted) == 9 and noted[0].reason == "cut_boilerplate" and noted[1].document.text == SHARE


def test_a_line_repeated_on_one_page_is_no_boilerplate() -> None:
    items = documents(
        "boilerplate", ["啦啦啦啦\n" * 20, "別的一頁"], ["https://a.tw/1", "https://a.tw/2"], boilerplate_documents=2
    )
    assert texts_of(items) == {"0": "啦啦啦啦\n" * 20, "1": "別的一頁"}


def test_share_of_the_host_and_pages_without_url() -> None:
    texts = [f"第{n}篇\n{SHARE}" if n < 4 else f"第{n}篇" for n in range(20)]
    urls = [f"https://a.tw/{n}" for n in range(20)]
    assert not any(
        isinstance(i, Noted)
        for i in documents("boilerplate", texts, urls, boilerplate_documents=3, boilerplate_share=0.5)
    )
    assert sum(isinstance(i, Noted) for i in documents("boilerplate", texts, urls, boilerplate_documents=3)) == 4
    assert not any(isinstance(i, Noted) for i in documents("boilerplate", texts, None, boilerplate_documents=3))


def test_a_page_of_boilerplate_alone_goes() -> None:
    items = documents("boilerplate", [SHARE] * 3, [f"https://a.tw/{n}" for n in range(3)], boilerplate_documents=3)
    assert [item.reason for item in items if isinstance(item, Dropped)] == ["boilerplate"] * 3


def test_paragraphs_and_lines_stay_in_the_first_document() -> None:
    texts = [f"前言一。\n\n{LAW}\n\n結語。", f"前言二。\n\n{LAW.replace('，', ',')}\n\n結語。", f"前言三。\n{LAW}", LAW]
    left = texts_of(documents("dedup_paragraphs", texts, min_paragraph=20))
    assert left == {"0": texts[0], "1": "前言二。\n\n結語。", "2": texts[2]}
    left = texts_of(documents("dedup_lines", texts, min_line=20))
    assert left["2"] == "前言三。" and left["0"] == texts[0] and "3" not in left
    assert texts_of(documents("dedup_lines", texts, min_line=200)) == dict(zip("0123", texts, strict=True))


def test_hashes_of_lines_do_not_depend_on_their_neighbours() -> None:
    rng = random.Random(1)
    lines = ["".join(rng.choices("夜市美食 ，。台灣ＡＢab12", k=rng.randint(0, 30))) for _ in range(200)]
    together, letters = unit_hashes(["\n".join(lines[:50]), "\n".join(lines[50:])])
    alone = [unit_hashes([line]) for line in lines]
    assert together.tolist() == [found[0][0] for found in alone]
    assert letters.tolist() == [found[1][0] for found in alone]


def test_in_a_build_parts_workers_and_take_down_do_not_matter(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [
        {"id": str(n), "url": f"https://h{n % 3}.tw/{n}", "text": f"第{n}攤在賣{rng.choice('甲乙丙丁')}。\n{LAW if n % 7 == 0 else '好吃。'}\n{SHARE}"}
        for n in range(90)
    ]  # fmt: skip

    def config(name: str, kept: list[dict[str, Any]], **settings: Any) -> CorpusConfig:
        (tmp_path / name).mkdir()
        for start in range(0, len(kept), 20):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept[start : start + 20])
            (tmp_path / name / f"{start:03}.jsonl").write_text(lines, encoding="utf-8")
        source = CorpusSource(path=str(tmp_path / name), license="CC0-1.0", name="web")
        dedup = {"boilerplate_documents": 5}
        steps = ("boilerplate", "dedup_lines", "dedup")
        return CorpusConfig(
            sources=(source,), steps=steps, dedup=dedup, max_held_out=0, **({"part_mb": 1e-6} | settings)
        )

    def build(found: CorpusConfig, name: str, workers: int = 1) -> str:
        build_folder(found, tmp_path / name, workers=workers)
        return hashlib.sha256((tmp_path / name / "documents.jsonl.zst").read_bytes()).hexdigest()

    one = build(config("in", rows), "one")
    assert one == build(config("in2", rows, part_mb=64.0), "whole")
    texts = {document.id: document.text for document in read_documents(tmp_path / "one")}
    assert not any(SHARE in text for text in texts.values())
    assert sum(LAW in text for text in texts.values()) == 1
    (tmp_path / "t.toml").write_text('[[takedown]]\nurl = "https://h0.tw/0"\n', encoding="utf-8")
    assert build(config("in3", rows, takedown=str(tmp_path / "t.toml")), "down") == build(
        config("in4", rows[1:]), "never"
    )
