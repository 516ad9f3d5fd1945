"""Every shape a row comes in, with rows that pass and rows that do not; what is skipped is counted, what stops is named."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Conversation, Tally, parse_messages, read_conversations, read_dataset
from twllm.tokens.shapes import BadRow

Q, A = "臺南的意麵和鍋燒意麵一樣嗎？", "不一樣，意麵是乾拌的，鍋燒意麵是煮湯的炸麵。"
PAIR = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
GOOD: dict[str, dict[str, Any]] = {
    "openai": {"messages": PAIR},
    "openai parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, PAIR[1]]},
    "sharegpt": {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
    "sharegpt roles": {"conversations": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
    "sharegpt items": {"items": [{"from": "human", "value": Q}, {"from": "bing", "value": A}]},
    "sharegpt bard": {"conversations": [{"from": "user", "value": Q}, {"from": "bard", "value": A}]},
    "alpaca": {"instruction": Q, "input": "", "output": A},
    "alpaca without input": {"instruction": Q, "output": A},
    "dolly": {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
    "completion": {"prompt": Q, "completion": A},
    "completion messages": {"prompt": PAIR[:1], "completion": PAIR[1:]},
    "question": {"question": Q, "answer": A},
    "中文欄名": {"問題": Q, "答案": A},
    "lmsys": {"conversation_id": "1", "model": "x", "language": "Chinese", "conversation": PAIR, "turn": 1},
    "fastchat pairs": {"roles": ["USER", "ASSISTANT"], "offset": 0, "messages": [["USER", Q], ["ASSISTANT", A]]},
    "fastchat offset": {
        "roles": ["問", "答"],
        "offset": 1,
        "conversation": [["問", "例子"], ["問", Q], ["答", [A, []]]],
    },
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "tool role": ({"messages": [*PAIR, {"role": "tool", "content": "25 度"}]}, "tools"),
    "tool calls": ({"messages": [PAIR[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "tools"),
    "observation": ({"conversations": [{"from": "human", "value": Q}, {"from": "observation", "value": "x"}]}, "tools"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, PAIR[1]]}, "not_text"),
    "number": ({"messages": [{"role": "user", "content": 7}, PAIR[1]]}, "not_text"),
    "weight": ({"messages": [PAIR[0], {**PAIR[1], "weight": 0}]}, "weight"),
    "role": ({"messages": [{"role": "神", "content": "x"}, *PAIR]}, "unknown_role"),
    "system inside": ({"messages": [*PAIR, {"role": "system", "content": "請簡短。"}, *PAIR]}, "system_inside"),
    "no answer": ({"messages": PAIR[:1]}, "no_answer"),
    "blank answer": ({"instruction": Q, "output": "　"}, "no_answer"),
    "prompt only": ({"act": "當導遊", "prompt": "請扮演導遊。"}, "prompt_only"),
    "only question": ({"question": Q}, "prompt_only"),
    "text": ({"text": "一篇文章。"}, "unknown_shape"),
    "no role": ({"messages": [{"content": Q}]}, "unknown_shape"),
    "not a list": ({"messages": 3, "x": 1}, "unknown_shape"),
    "bad history": ({"instruction": Q, "output": A, "history": ["早安"]}, "unknown_shape"),
}  # fmt: skip


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", GOOD)
def test_shapes_that_are_read(name: str) -> None:
    assert parse_messages(GOOD[name]) == PAIR


@pytest.mark.parametrize("name", BAD)
def test_shapes_that_are_refused(name: str, tmp_path: Path) -> None:
    row, reason = BAD[name]
    with pytest.raises(BadRow) as error:
        parse_messages(row)
    assert error.value.reason == reason
    file = write(tmp_path / "x.jsonl", GOOD["openai"], row)
    with pytest.raises(UserError, match="not a conversation") as told:
        list(read_conversations(file))
    assert told.value.where.endswith("x.jsonl:2") and "on_broken" in told.value.fix
    tally = Tally()
    kept = list(read_dataset(DatasetConfig(path=file, on_broken="skip"), tally))
    assert (len(kept), tally.skipped, tally.rows) == (1, Counter({reason: 1}), 2)
    assert tally.examples[reason].endswith("x.jsonl:2")


def test_alpaca_with_input_history_and_system() -> None:
    row = {
        "instruction": "翻成臺語。",
        "input": "你好",
        "output": "Lí-hó",
        "history": [["早安", "𠢕早"]],
        "system": "你是老師。",
    }
    found = [(m["role"], m["content"]) for m in parse_messages(row)]
    assert found == [
        ("system", "你是老師。"),
        ("user", "早安"),
        ("assistant", "𠢕早"),
        ("user", "翻成臺語。\n\n你好"),
        ("assistant", "Lí-hó"),
    ]


def test_columns_of_ones_own() -> None:
    assert parse_messages({"Q": Q, "A": A}, "Q", "A") == PAIR
    with pytest.raises(BadRow, match="no such column"):
        parse_messages({"Q": Q, "B": A}, "Q", "A")


def test_what_is_put_right_is_counted() -> None:
    turns = [
        {"from": "gpt", "value": "歡迎光臨"},
        {"from": "human", "value": "請問"},
        {"from": "human", "value": "有素食嗎？"},
        {"from": "gpt", "value": "有，素蚵仔煎。"},
        {"from": "human", "value": "多少錢？"},
        {"from": "gpt", "value": ""},
    ]
    repaired: Counter[str] = Counter()
    found = parse_messages({"conversations": turns, "system": ""}, repaired=repaired)
    assert [m["content"] for m in found] == ["請問\n\n有素食嗎？", "有，素蚵仔煎。"]
    assert set(repaired) == {"leading_answer", "merged_turns", "empty_turn", "open_question"}


def test_an_empty_system_message_stays() -> None:
    assert parse_messages({"messages": [{"role": "system", "content": ""}, *PAIR]})[0]["role"] == "system"
    assert parse_messages({"messages": [{"role": "developer", "content": "短答"}, *PAIR]})[0] == {"role": "system", "content": "短答"}  # fmt: skip


def test_source_licence_address_and_author(tmp_path: Path) -> None:
    own = {
        "license": "CC-BY-NC-4.0",
        "source": "食譜",
        "url": "https://x.tw/1",
        "author": "阿明",
        "model": "gpt-4",
        "ip": "1.2.3.4",
    }
    file = write(tmp_path / "recipes.jsonl", {"messages": PAIR, **own}, {"messages": PAIR})
    first, second = read_dataset(DatasetConfig(path=file, license="MIT"))
    assert (first.license, first.source, first.url, first.author) == ("CC-BY-NC-4.0", "食譜", "https://x.tw/1", "阿明")
    assert first.generator == "gpt-4" and "ip" not in first.metadata
    assert (second.license, second.source, second.generator) == ("MIT", "recipes", "")


def test_languages(tmp_path: Path) -> None:
    rows = [{"messages": PAIR, "lang": tag} for tag in ("zh-TW", "en", "zh", None)] + [
        {"messages": PAIR, "language": "Chinese"}
    ]
    file, tally = write(tmp_path / "x.jsonl", *rows), Tally()
    assert len(list(read_dataset(DatasetConfig(path=file, languages=("zh", "Chinese")), tally))) == 4
    assert tally.skipped == Counter(language=1)


def test_facts_and_ratings(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.jsonl",
        {"id": "f", "questions": [Q, "意麵和鍋燒意麵差在哪？"], "answer": A},
        {"id": "r", "messages": PAIR, "rating": -1, "comment": "不對"},
    )
    found = list(read_conversations(file))
    assert [c.id for c in found] == ["f/0", "f/1", "r"] and found[2].rating == -1
    assert found[2].metadata == {"comment": "不對"}


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": f"{Q}（{i}）", "answer": A} for i in range(3)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    table = "id,question,answer\r\n" + "".join(f'{r["id"]},"{r["question"]}","{r["answer"]}"\r\n' for r in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(json.dumps({"data": rows}).encode()))
    (tmp_path / "f.csv").write_bytes(table.encode("utf-8-sig"))
    (tmp_path / "g.csv").write_bytes(table.encode("cp950"))  # as the government's older files are
    (tmp_path / "h.tsv").write_text(table.replace(",", "\t").replace('"', ""), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    files = sorted(tmp_path.iterdir())
    found = [list(read_conversations(file)) for file in files]
    assert len(files) == 9
    for conversations in found:
        assert [(c.id, c.messages) for c in conversations] == [(c.id, c.messages) for c in found[0]]
    assert len(list(read_conversations(tmp_path))) == 27


@pytest.mark.parametrize(
    ("name", "raw", "says", "reason"),
    [
        ("x.jsonl", b'{"messages": [\n', "broken JSON line", "broken_line"),
        ("x.jsonl", b"[1]\n", "not an object", "broken_line"),
        ("x.json", b"{bad", "not a JSON list", "broken_file"),
        ("x.json", b'[{"question": "a", "answer": "b"}, 3]', "not an object", "broken_line"),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"question": "a", "answer": "b"}\n' * 999, mtime=0)[:60],
            "damaged file",
            "broken_file",
        ),
        ("x.jsonl.zst", zstandard.compress(b'{"question": "a", "answer": "b"}\n')[:-4], "damaged file", "broken_file"),
        ("x.parquet", b"PAR1", "damaged parquet", "broken_file"),
        ("x.csv", "問題,答案\n好,吧,啊\n".encode(), "more cells", "broken_line"),
    ],
)
def test_what_cannot_be_read_stops_or_is_counted(tmp_path: Path, name: str, raw: bytes, says: str, reason: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError) as error:
        list(read_conversations(tmp_path / name))
    assert says in error.value.what and name in error.value.where and error.value.fix
    tally = Tally()
    list(read_dataset(DatasetConfig(path=str(tmp_path / name), on_broken="skip"), tally))
    assert tally.skipped[reason] == 1


def test_a_csv_row_without_an_answer_is_counted(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text(
        "問題,答案,機關\n怎麼申請戶口名簿？,到戶政事務所辦理。,民政局\n停車費怎麼繳？,,停管處\n", encoding="utf-8"
    )
    tally = Tally()
    found = list(read_dataset(DatasetConfig(path=str(tmp_path), license="OGDL", on_broken="skip"), tally))
    assert [c.metadata for c in found] == [{"機關": "民政局"}] and tally.skipped == Counter(no_answer=1)


@pytest.mark.shared_data
def test_prompt_lists_are_no_conversations(shared_data: Path) -> None:
    file = str(shared_data / "sft" / "prompts-zh-tw" / "prompts-zh-TW.json")
    with pytest.raises(UserError, match="prompt only"):
        list(read_conversations(file))
    tally, none = Tally(), list[Conversation]()
    none += read_dataset(DatasetConfig(path=file, on_broken="skip"), tally)
    assert (len(none), tally.skipped) == (0, Counter(prompt_only=124))


def test_answers_in_another_regions_chinese_can_be_left_out(tmp_path: Path) -> None:
    """The gate looks at what the assistant says; a user may paste anything."""
    answers = (
        "臺灣的軟體品質很好，網路也快。",
        "这个软件的质量很好。",
        "這個軟件的視頻不錯，打印機也好。",
        "English only.",
    )
    rows = [
        {"messages": [{"role": "user", "content": "这个软件好吗"}, {"role": "assistant", "content": text}]}
        for text in answers
    ]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    tally = Tally()
    kept = list(read_dataset(DatasetConfig(path=str(file), license="x", max_leak_rate=0.05), tally))
    assert [row.messages[1]["content"] for row in kept] == [answers[0], answers[3]]
    assert tally.skipped == {"not_zh_tw": 2}
    assert tally.examples["not_zh_tw"].endswith("mixed.jsonl:2")
    assert len(list(read_dataset(DatasetConfig(path=str(file), license="x")))) == 4
