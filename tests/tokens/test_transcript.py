"""Transcripts: who asks, what is no speech, where a conversation begins and ends, and what is left out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, read_dataset
from twllm.tokens.transcript import (
    Turn,
    asker_of,
    cleaned,
    is_backchannel,
    joined,
    stands_alone,
    turns_of,
    two_speakers,
)

ANSWER = "開放政府就是讓人民看得到資料、參與得了決定，而且每一步都留下紀錄，之後誰都可以回頭檢查當時為什麼這樣做。"


def talk(*turns: tuple[str, str]) -> str:
    return "# 訪談\n\n" + "".join(f"### {name}：\n{said}\n\n" for name, said in turns)


def interview(count: int = 3, asker: str = "記者", guest: str = "來賓") -> list[tuple[str, str]]:
    turns = []
    for i in range(count):
        turns += [
            (asker, f"請問第{'一二三四五六七八九'[i]}個城市的開放政府做得怎麼樣？"),
            (guest, f"{ANSWER}（第{i}次）"),
        ]
    return turns


def read(tmp_path: Path, *texts: str, **settings: Any) -> tuple[list[Conversation], Counter[str]]:
    rows = [{"id": str(i), "title": "訪談", "text": text, "license": "CC0-1.0"} for i, text in enumerate(texts)]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    tally = Tally()
    return list(read_dataset(DatasetConfig(path=str(file), format="transcript", **settings), tally)), tally.skipped


def test_the_one_who_asks_is_the_user_whoever_speaks_first(tmp_path: Path) -> None:
    greeted = [("來賓", "大家好，很高興來。"), *interview()]
    found, skipped = read(tmp_path, talk(*greeted))
    assert {(c.metadata["asker"], c.metadata["answerer"]) for c in found} == {("記者", "來賓")}
    assert found[0].messages[0]["role"] == "user" and found[0].messages[0]["content"].startswith("請問第一個")
    assert found[0].license == "CC0-1.0" and skipped["before_first_question"] == 1
    assert not any(name in m["content"] for c in found for m in c.messages for name in ("記者", "###"))


def test_documents_that_are_no_interview(tmp_path: Path) -> None:
    meeting = [
        (name, f"第{i}項工作我們照進度做，下週會再報告一次目前的情況。") for i in range(4) for name in ("甲", "乙")
    ]
    third = [*interview(5), ("路人", "借過一下，不好意思。"), *interview(5)]
    speech = [("來賓", ANSWER)]
    _, skipped = read(tmp_path, talk(*meeting), talk(*third), talk(*speech), "只有一段文章。", talk(*interview(1)))
    assert skipped == Counter(
        document_no_interviewer=1, document_many_speakers=1, document_one_speaker=1, document_no_turns=1, document_too_few_turns=1
    )  # fmt: skip


def test_a_third_speaker_who_only_opens_and_closes_is_taken_out(tmp_path: Path) -> None:
    turns = [("司儀", "各位觀眾午安。"), *interview(), ("司儀", "今天的訪談到這裡。")]
    found, skipped = read(tmp_path, talk(*turns))
    assert found and not skipped["document_many_speakers"]
    assert not any("司儀" in str(c.messages) or "觀眾" in str(c.messages) for c in found)
    assert two_speakers(turns_of(talk(*turns)))[1] == ""
    assert two_speakers(turns_of(talk(*interview(), *turns)))[1] == "many_speakers"


def test_section_headings_are_no_speakers() -> None:
    assert {t.name for t in turns_of(talk(*interview(), ("會議結論", "照案通過。"), ("出席人員", "甲、乙")))} == {
        "記者",
        "來賓",
    }


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("好啊（笑）！那就開始。", "好啊！那就開始。"),
        ("（指著投影幕）", ""),
        ("公民科技（civic tech）很重要。", "公民科技（civic tech）很重要。"),
        ("這位朋友（音譯）說的。", "這位朋友說的。"),
        ("看[這裡](https://x.tw)，**重點**是。", "看這裡，重點是。"),
        ("……", ""),
    ],
)
def test_stage_directions_go_and_glosses_stay(said: str, left: str) -> None:
    assert cleaned(said) == left


def test_backchannels_become_no_turn_unless_they_answer() -> None:
    assert all(map(is_backchannel, ("對。", "嗯嗯", "是的，沒錯。", "對，對，對。", "我理解。", "OK，好。")))
    assert not any(map(is_backchannel, ("對，因為沒錢。", "真的嗎？", "不是。", "可以。")))
    turns = [
        Turn("甲", "我們先做一件事，"),
        Turn("乙", "嗯。"),
        Turn("甲", "然後再做第二件。"),
        Turn("乙", "懂了，那錢呢？"),
        Turn("甲", "對。"),
    ]
    assert [(t.name, t.text) for t in joined(turns)] == [
        ("甲", "我們先做一件事，\n\n然後再做第二件。"),
        ("乙", "懂了，那錢呢？"),
        ("甲", "對。"),
    ]


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("請問臺灣的數位身分證現在推到哪裡了？", True),
        ("您覺得自學對孩子最大的幫助是什麼？", True),
        ("所以那個計畫後來怎麼樣了呢？我很好奇", False),
        ("瞭解，那這個部分的預算是怎麼編列的？", False),
        ("他們後來有沒有跟您道歉或說明原因？", False),
        ("為什麼？", False),
        ("我覺得這一本書寫得非常好，很值得讀。", False),
    ],
)
def test_questions_that_stand_alone(text: str, alone: bool) -> None:
    assert stands_alone(Turn("記者", text)) is alone


def test_conversations_are_cut_between_turns_at_topics_and_at_the_limit(tmp_path: Path) -> None:
    found, _ = read(tmp_path, talk(*interview(6)), window_chars=200)
    assert len(found) > 1 and all(len(c.messages) % 2 == 0 for c in found)
    assert all(sum(len(m["content"]) for m in c.messages) <= 200 for c in found)
    topic = [*interview(2), ("記者", "下一題，想請問您對半導體產業的看法是什麼？"), ("來賓", ANSWER)]
    found, _ = read(tmp_path, talk(*topic))
    assert [c.messages[0]["content"][:4] for c in found] == ["請問第一", "下一題，"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    more = [
        ("記者", "請問您最喜歡吃的早餐是什麼東西呢？"), ("來賓", "蛋餅。"),
        ("記者", "下一題，請問您怎麼看現在的電動機車？"), ("來賓", "我覺得……"),
        ("記者", "下一題，請問您怎麼看待人工智慧的未來？"), ("來賓", ANSWER * 9),
        ("記者", "謝謝您今天來。"), ("來賓", "謝謝。"),
    ]  # fmt: skip
    found, skipped = read(tmp_path, talk(*interview(2), ("記者", "下一題，" + more[0][1]), *more[1:]), window_chars=300)
    assert len(found) == 1 and skipped["too_short"] and skipped["interrupted"] and skipped["too_long"]
    english = [
        (name, "What do you think about it? " * 4 if name == "記者" else "It works well enough. " * 9)
        for name, _ in interview()
    ]
    assert read(tmp_path, talk(*english))[1]["few_han"]


def test_nobody_asks() -> None:
    turns = [Turn(name, "今天天氣很好，我們去走走吧。") for _ in range(4) for name in ("甲", "乙")]
    assert asker_of(turns) == ("", "no_interviewer")


@pytest.mark.shared_data
def test_real_transcripts(shared_data: Path) -> None:
    tally = Tally()
    path = str(shared_data / "prose" / "audreyt-transcript.jsonl.gz")
    found = list(read_dataset(DatasetConfig(path=path, format="transcript"), tally))
    assert 1200 < len(found) < 1350 and {c.license for c in found} == {"CC0-1.0"}
    assert 160 <= len({c.metadata["title"] for c in found}) <= 170
    documents = sum(count for reason, count in tally.skipped.items() if reason.startswith("document_"))
    assert documents == 989 + 98 + 43 + 14 + 6 + 2
    assert all(sum(len(m["content"]) for m in c.messages) <= 1200 for c in found)
    assert not any("（笑）" in m["content"] or "###" in m["content"] for c in found for m in c.messages)
