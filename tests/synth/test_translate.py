"""Whole runs of translation against a local translator with planted faults, from English and from Simplified."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.synth.conftest import endpoint, everything, read
from tests.synth.fault_server import FaultServer, Reply
from tests.synth.planted import mirror
from tests.synth.translations import FAULTS, Bad, english_pairs, simplified_pairs
from twllm.errors import UserError
from twllm.synth.config import TranslateConfig, make
from twllm.synth.prompts import load_prompts
from twllm.synth.run import Session, make_rows
from twllm.synth.translate import Translate
from twllm.tokens.conversation import read_conversations

ALL = {"filters": {"off": ["near_duplicate"]}}  # the planted rows are variations of a few sentences


def translate(source: Path, out: Path, url: str, **settings: Any) -> dict[str, Any]:
    task = Translate(str(source), make(TranslateConfig, settings), load_prompts(), "m")
    return make_rows(task, Session(out, endpoint(url)))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(*texts: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)], **more}


@pytest.mark.parametrize(
    ("pairs", "language"), [(english_pairs(100), "en"), (simplified_pairs(100), "zh-CN")], ids=["en", "zh-CN"]
)
def test_planted_faults_are_caught_and_good_rows_kept(
    pairs: list[tuple[str, str]], language: str, tmp_path: Path
) -> None:
    bad = Bad(pairs)
    source = bad.write(tmp_path / "source.jsonl")
    with FaultServer(bad) as server:
        manifest = translate(source, tmp_path / "out", server.url, **ALL)
        assert set(server.answered.values()) == {1}
    reasons = {row["id"]: row["reason"] for row in read(tmp_path / "out" / "dropped.jsonl")}
    wrong = Counter[str]()
    for number in range(len(pairs)):
        name = bad.planted.get(f"row-{number}", "")
        wrong[name] += reasons.get(f"row-{number}", "") not in (FAULTS[name][0] if name else ("",))
    false_drops = wrong.pop("")
    assert len(bad.planted) == 50
    assert wrong.total() <= 2, wrong
    assert false_drops <= 1, wrong
    assert manifest["counts"]["kept"] + manifest["counts"]["dropped"] == 100
    kept = read(tmp_path / "out" / "conversations.jsonl")
    assert {row["translated_from"] for row in kept} == {language}
    good = {f"row-{number}": text for number, (_, text) in enumerate(pairs)}
    assert [r["messages"][1]["content"] for r in kept if r["id"] not in bad.planted] == [
        good[r["id"]] for r in kept if r["id"] not in bad.planted
    ]
    before = everything(tmp_path / "out")
    translate(source, tmp_path / "out", server.url, **ALL)  # the server is gone
    assert everything(tmp_path / "out") == before


def test_every_fault_is_planted() -> None:
    planted = set(Bad(english_pairs(100)).planted.values()) | set(Bad(simplified_pairs(100)).planted.values())
    assert planted == set(FAULTS)


def test_rows_keep_what_they_had_and_every_shape_is_read(tmp_path: Path) -> None:
    texts = {
        "How are you?": "你好嗎？",
        "I am fine, thanks.": "我很好，謝謝。",
        "Be kind.": "要親切。",
        "質量很好": "x",
    }
    rows = [
        row(
            "How are you?",
            "I am fine, thanks.",
            id="a",
            source="OASST",
            license="Apache-2.0",
            topic="greeting",
            rating=1,
        ),
        {
            "system": "Be kind.",
            "conversations": [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "42"}],
        },
        {"instruction": "How are you?", "input": "", "output": "```\nprint(1)\n```"},
    ]
    source = write(tmp_path / "s.jsonl", rows)
    with FaultServer(mirror(texts)) as server:
        translate(source, tmp_path / "out", server.url, license="CC0-1.0")
        assert (
            len(server.seen) == 4
        )  # 42 and code are copied; 「How are you?」 is asked once alone and once after the system's
    first, second, third = read_conversations(tmp_path / "out" / "conversations.jsonl")
    assert (first.id, first.source, first.license, first.rating) == ("a", "OASST", "Apache-2.0", 1)
    assert first.metadata == {"topic": "greeting", "translated_from": "en", "translated_by": "twllm synth translate: m"}
    assert [m["content"] for m in first.messages] == ["你好嗎？", "我很好，謝謝。"]
    assert [m["content"] for m in second.messages] == ["要親切。", "你好嗎？", "42"]
    assert second.license == "CC0-1.0"
    assert third.messages[1]["content"] == "```\nprint(1)\n```"


def test_the_translator_sees_what_came_before(tmp_path: Path) -> None:
    texts = {"One cat.": "一隻貓。", "It sleeps a lot.": "牠很愛睡。", "Why?": "為什麼？", "It is old.": "因為牠老了。"}
    source = write(tmp_path / "s.jsonl", [row(*texts)])
    with FaultServer(mirror(texts)) as server:
        translate(source, tmp_path / "out", server.url)
    last = server.bodies[-1]["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [message["content"] for message in last[2::2]] == ["牠很愛睡。", "為什麼？"]
    assert last[-1]["content"] == "<原文>\nIt is old.\n</原文>"
    assert "英文" in last[0]["content"]


def test_another_sample_mends_a_bad_one(tmp_path: Path) -> None:
    def script(body: dict[str, Any], before: int) -> Reply:
        return Reply("要 530 元。" if body["seed"] == 7 else "要 350 元。")

    source = write(tmp_path / "s.jsonl", [row("It costs 350 dollars.", "Is it 350 dollars?")])
    with FaultServer(script) as server:
        once = translate(source, tmp_path / "one", server.url, seed=7, **ALL)
        twice = translate(source, tmp_path / "two", server.url, seed=7, samples=2, **ALL)
    assert (once["reasons"], twice["reasons"]) == ({"number_changed": 1}, {})
    assert twice["answers"] == 4


def test_languages_are_told_apart(tmp_path: Path) -> None:
    rows = [
        row("臺灣最高的山是哪一座？", "玉山，標高 3,952 公尺。", id="tw"),
        row("それは何ですか。", "これは本です。とても面白いですよ。", id="ja"),
        row("这个软件的质量怎么样？", "还不错。", id="cn"),
        row("What is it?", "It is a book.", id="en"),
        row("房租 12,000 元？", "一共 36,000 元。", id="either"),
    ]
    texts = {
        "这个软件的质量怎么样？": "這個軟體的品質怎麼樣？", "还不错。": "還不錯。", "What is it?": "那是什麼？", "It is a book.": "是一本書。",
        "房租 12,000 元？": "房租 12,000 元？", "一共 36,000 元。": "一共 36,000 元。",
    }  # fmt: skip
    with FaultServer(mirror(texts)) as server:
        translate(write(tmp_path / "s.jsonl", rows), tmp_path / "out", server.url)
        assert "中國大陸的簡體中文" in {body["messages"][0]["content"][2:11] for body in server.bodies}
    assert [row["id"] for row in read(tmp_path / "out" / "conversations.jsonl")] == ["cn", "en", "either"]
    assert {row["id"]: row["reason"] for row in read(tmp_path / "out" / "dropped.jsonl")} == {
        "tw": "source_language",
        "ja": "source_language",
    }


def test_near_duplicates_go_by_the_order_of_the_rows(tmp_path: Path) -> None:
    texts = {
        "Take the bus to the museum and walk.": "搭公車到博物館，再走過去。",
        "Take a bus to the museum, then walk.": "搭公車到博物館，再走過去吧。",
        "Cook the rice with a little oil.": "用一點油煮飯。",
    }
    source = write(tmp_path / "s.jsonl", [row("1", text, id=str(at)) for at, text in enumerate(texts)])

    def script(body: dict[str, Any], before: int) -> Reply:
        reply = mirror(texts)(body, before)
        reply.how = "slow" if "the bus" in body["messages"][-1]["content"] else "whole"  # the first row comes in last
        return reply

    with FaultServer(script, slow_s=0.3) as server:
        translate(source, tmp_path / "out", server.url)
    assert [row["id"] for row in read(tmp_path / "out" / "conversations.jsonl")] == ["0", "2"]
    (dropped,) = read(tmp_path / "out" / "dropped.jsonl")
    assert (dropped["id"], dropped["reason"]) == ("1", "near_duplicate")
    assert "0" in dropped["detail"]


def test_a_broken_line_is_told_and_what_was_paid_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "s.jsonl", [row("1", f"Hello number {number}.") for number in range(6)])
    texts = {f"Hello number {number}.": f"{number} 號你好。" for number in range(7)}
    with source.open("a", encoding="utf-8") as stream:
        stream.write("{broken\n")
    with FaultServer(mirror(texts)) as server:
        with pytest.raises(UserError, match=r"s\.jsonl:7"):
            translate(source, tmp_path / "out", server.url, **ALL)
        asked = server.seen.total()
        source.write_text(source.read_text(encoding="utf-8").replace("{broken\n", ""), encoding="utf-8")
        translate(source, tmp_path / "out", server.url, **ALL)
        assert server.seen.total() == 6
        assert asked > 0
    with pytest.raises(UserError):
        Translate(str(tmp_path / "nobody.jsonl"), TranslateConfig(), load_prompts(), "m")
