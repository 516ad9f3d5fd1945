"""Each adapter on a file of its own form, and on a wrong one."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, read_conversations, read_dataset

Format = Literal["messages", "oasst", "fastchat", "squad", "chatterbot", "xml"]


def texts(path: Path, format: str) -> list[list[str]]:
    return [[m["content"] for m in row.messages] for row in read_conversations(path, format)]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, format: Format = "messages", **settings: Any) -> tuple[list[Conversation], Tally]:
    tally = Tally()
    return list(read_dataset(DatasetConfig(path=str(path), format=format, **settings), tally)), tally


def test_squad(tmp_path: Path) -> None:
    answers = [{"text": "玉山", "answer_start": 0}]
    asked = [
        {"id": "7", "question": "最高峰是？", "answers": answers},
        {"id": "8", "question": "多高？", "answers": []},
    ]
    paragraph = {"context": "玉山是臺灣最高峰。", "qas": asked}
    (tmp_path / "x.json").write_text(json.dumps({"data": [{"title": "山", "paragraphs": [paragraph]}]}))
    found, tally = read(tmp_path, "squad")
    assert [[m["content"] for m in c.messages] for c in found] == [
        ["請閱讀文章，回答問題。\n文章：玉山是臺灣最高峰。\n問題：最高峰是？", "玉山"]
    ]
    assert tally.skipped == Counter(no_answer=1)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match="not SQuAD"):
        texts(tmp_path, "squad")


def test_chatterbot(tmp_path: Path) -> None:
    text = "categories: [x]\nconversations:\n- - 吃飽沒\n  - 吃飽了。\n  - 還沒啦！\n- - 只有一句\n"
    (tmp_path / "greetings.yml").write_text(text, encoding="utf-8")
    assert texts(tmp_path, "chatterbot") == [["吃飽沒", "吃飽了。"], ["吃飽沒", "還沒啦！"]]
    assert read(tmp_path, "chatterbot")[1].skipped == Counter(no_answer=1)
    (tmp_path / "greetings.yml").write_text("just text")
    with pytest.raises(UserError, match="not a ChatterBot"):
        texts(tmp_path, "chatterbot")


XML = """<?xml version="1.0" encoding="UTF-8"?><all><datas>
<data><id>1</id><問>怎麼辦圖書證？</問><答>&lt;p&gt;帶&lt;b&gt;身分證&lt;/b&gt;到櫃檯。&lt;/p&gt;&lt;br/&gt;當場可取。</答></data>
<data><id>2</id><問>停車場在哪？</問><答>&lt;a href="x"&gt;停車場一覽&lt;/a&gt;</答></data>
<data><id>3</id><問>化�品怎麼報？</問><答>請洽衛生局。</答></data>
<data><id>4</id><問>幾點開門？</問><答> </答></data>
</datas></all>"""
KEYS = {"question_key": "問", "answer_key": "答"}


def test_xml_records(tmp_path: Path) -> None:
    file = tmp_path / "faq.xml"
    file.write_text(XML, encoding="utf-8")
    found, tally = read(file, "xml", **KEYS)
    assert [[m["content"] for m in c.messages] for c in found] == [["怎麼辦圖書證？", "帶身分證到櫃檯。\n當場可取。"]]
    assert found[0].id == "1" and tally.skipped == Counter(link_only=1, garbled=1, no_answer=1)
    with pytest.raises(UserError, match="question_key"):
        read(file, "xml")
    with pytest.raises(UserError, match="no such records"):
        read(file, "xml", question_key="題", answer_key="答")
    file.write_text(XML[:200], encoding="utf-8")
    with pytest.raises(UserError, match="broken XML"):
        read(file, "xml", **KEYS)


def node(id: str, text: str, role: str = "assistant", *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": id, "text": text, "role": role, "lang": "zh", "replies": list(replies), **more}


TREE = node(
    "q", "粽子分哪兩派？", "prompter",
    node("a", "北部粽和南部粽。", "assistant",
         node("b", "差在哪？", "prompter", node("c", "北部粽炒過再蒸，南部粽用水煮。", rank=0), node("d", "都好吃。", rank=1)),
         node("e", "謝謝。", "prompter"), rank=1),
    node("f", "南北兩派，料也不同。", rank=0),
    node("g", "罵人的話", deleted=True),
    node("h", "亂答", review_result=False),
)  # fmt: skip


def flat(root: dict[str, Any], parent: str | None = None) -> list[dict[str, Any]]:
    row = {k: v for k, v in root.items() if k != "replies"} | {"parent_id": parent, "message_tree_id": "q"}
    return [row, *(one for reply in root["replies"] for one in flat(reply, root["message_id"]))]


def test_oasst_trees(tmp_path: Path) -> None:
    tree = {"message_tree_id": "q", "tree_state": "ready_for_export", "prompt": TREE, "license": "Apache-2.0"}
    file = write(tmp_path / "trees.jsonl", tree)
    found, tally = read(file)  # told by its shape
    assert [c.id for c in found] == ["c", "d", "f"]
    assert [m["role"] for m in found[0].messages] == ["user", "assistant", "user", "assistant"]
    assert found[0].metadata["ranks"] == [1, 0] and found[2].metadata["rank"] == 0
    assert tally.skipped == Counter(deleted=1, review_failed=1)
    best, tally = read(file, "oasst", paths="best")
    assert [c.id for c in best] == ["f"] and tally.skipped["not_best"] == 1
    assert read(file, "oasst", languages=("en",))[1].skipped["language"] == 3


def test_oasst_flat_messages_give_the_same(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree.jsonl", {"message_tree_id": "q", "prompt": TREE})
    rows = flat(TREE)
    file = write(tmp_path / "flat.jsonl", *rows[::-1])
    assert {(c.id, str(c.messages)) for c in read(file)[0]} == {(c.id, str(c.messages)) for c in read(tree)[0]}
    lost, tally = read(write(tmp_path / "lost.jsonl", *(row for row in rows if row["message_id"] != "b")))
    assert [c.id for c in lost] == ["a", "f"] and tally.skipped["no_parent"] == 2


def test_oasst_threads_and_trees_that_are_left_out(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.jsonl",
        {"thread_id": "c", "thread": [node("q", "問", "prompter"), node("c", "答", synthetic=True, model_name="oasst-sft-1")]},
        {"thread_id": "z", "thread": [node("q", "問", "prompter"), node("z", "答", deleted=True)]},
        {"message_tree_id": "s", "tree_state": "aborted_low_grade", "prompt": TREE},
        {"message_tree_id": "n", "prompt": node("n", "沒人回的題", "prompter")},
    )  # fmt: skip
    found, tally = read(file)
    assert [c.id for c in found] == ["c"] and found[0].generator == "oasst-sft-1"
    assert tally.skipped == Counter(deleted=1, tree_state=1, no_answer=1)
    with pytest.raises(UserError, match="no OASST tree"):
        read(write(tmp_path / "y.jsonl", {"text": "文章"}), "oasst")


def state(id: str, *turns: str | None, **more: Any) -> dict[str, Any]:
    messages = [[("USER", "ASSISTANT")[i % 2], text] for i, text in enumerate(turns)]
    return {"conv_id": id, "roles": ["USER", "ASSISTANT"], "offset": 0, "messages": messages, **more}


def test_fastchat_logs(tmp_path: Path) -> None:
    asked = ["捷運幾點收班？", "大約午夜十二點。"]
    file = write(
        tmp_path / "conv.json.jsonl",
        {"type": "chat", "model": "m1", "ip": "1.2.3.4", "tstamp": 1, "state": state("1", *asked)},
        {"type": "upvote", "model": "m1", "ip": "1.2.3.4", "tstamp": 2, "state": state("1", *asked)},
        {"type": "chat", "model": "m1", "tstamp": 3, "state": state("1", *asked, "那公車呢？", "看路線。")},
        {
            "type": "chat",
            "model": "m1",
            "state": state("2", "哈囉", "NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE"),
        },
        {
            "type": "leftvote",
            "states": [state("3", "問", "左", model_name="m2"), state("4", "問", "右", model_name="m3")],
        },
        {"type": "bothbad_vote", "states": [state("5", "問", "左"), state("6", "問", "右")]},
        {"type": "chat", "model": "m1", "state": state("7", "還在等", None)},
        {"type": "share", "x": 1},
    )
    found, tally = read(file, on_broken="skip")
    assert [c.id for c in found] == ["1", "3"]
    assert len(found[0].messages) == 4 and found[0].rating == 1 and found[0].generator == "m1"
    assert "ip" not in json.dumps(found[0].metadata) and found[1].messages[1]["content"] == "左"
    assert tally.skipped == Counter(superseded=2, server_error=1, both_bad=1, other_event=1, no_answer=1)


def test_arena_rows(tmp_path: Path) -> None:
    sides = {
        f"conversation_{s}": [{"role": "user", "content": "問"}, {"role": "assistant", "content": s}] for s in "ab"
    }
    rows = [{"question_id": str(i), "model_a": "x", "model_b": "gpt-4", **sides, "winner": w} for i, w in enumerate(("model_b", "tie", "tie (bothbad)"))]  # fmt: skip
    found, tally = read(write(tmp_path / "arena.jsonl", *rows))
    assert [c.messages[1]["content"] for c in found] == ["b", "a", "b"] and found[0].generator == "gpt-4"
    assert tally.skipped == Counter(both_bad=1)


def test_rows_of_any_junk_are_counted_never_a_crash_never_silent(tmp_path: Path) -> None:
    rng = random.Random(1)
    pairs = [["user", "問"], ["assistant", "答"]]
    values: list[Any] = [None, 1, 1.5, True, "", "好", [], [1], ["a", "b"], {}, {"a": 1}, [{"role": "user", "content": "問"}], pairs, [None], [[None, None]], [{"from": "gpt"}]]  # fmt: skip
    keys = ["messages", "conversations", "conversation", "items", "instruction", "input", "output", "prompt", "completion", "question", "answer", "questions", "history", "system", "roles", "offset", "license", "id", "rating", "state", "states", "type", "message_tree_id", "message_id", "parent_id", "text", "role", "replies", "thread", "language", "winner", "conversation_a", "model"]  # fmt: skip
    for number in range(400):
        row = {key: rng.choice(values) for key in rng.sample(keys, rng.randint(1, 7))}
        file = write(tmp_path / "x.jsonl", row)
        for format in ("messages", "oasst", "fastchat", "transcript"):
            tally = Tally()
            dataset = DatasetConfig.model_validate({"path": str(file), "format": format, "on_broken": "skip"})
            found = list(read_dataset(dataset, tally))
            assert found or tally.skipped, (number, format, row)
            assert all(c.messages[-1]["role"] == "assistant" for c in found)


@pytest.mark.shared_data
def test_real_data_sets(shared_data: Path) -> None:
    sft = shared_data / "sft"
    found, tally = read(sft / "tpe-faq", "xml", question_key="news_title", answer_key="news_content")
    assert (len(found), tally.skipped) == (1863, Counter(garbled=8, link_only=4, no_answer=2))
    assert not any("<" in m["content"] and "</" in m["content"] for c in found for m in c.messages)
    folder = sft / "chatterbot-corpus" / "chatterbot_corpus" / "data" / "traditionalchinese"
    assert len(read(folder, "chatterbot")[0]) == 543
    assert len(read(shared_data / "drcd" / "DRCD_dev.json", "squad")[0]) == 3524
