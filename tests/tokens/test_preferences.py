"""Reading KTO and DPO rows, pairing, masks that cover the completion only, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.preferences import LABELS, Answer, Pair, pair_up, read_preferences, tokenize_preferences
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer

HISTORY = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "你好，我是人工智慧助理。"},
    {"role": "user", "content": "玉山多高？"},
]


def dataset(tmp_path: Path, *rows: dict[str, Any]) -> DatasetConfig:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"license": "x", **row}) + "\n" for row in rows), encoding="utf-8")
    return DatasetConfig(path=str(file))


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def learned(tokenizer: ChatTokenizer, shard: TokenShard, document: int) -> str:
    low, high = shard.offsets[document : document + 2]
    ids, mask = shard.ids[low:high].tolist(), shard.mask(int(low), int(high))
    return tokenizer.decode([id for id, one in zip(ids, mask, strict=True) if one]).strip()


def test_the_loss_covers_the_completion_and_no_earlier_answer(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    turns = [*said("三千"), {"role": "user", "content": "請問"}, *said("九百")]
    rows = dataset(tmp_path, {"prompt": HISTORY, "chosen": turns, "rejected": said("首都")})
    facts = tokenize_preferences(tmp_path / "t", [rows], tiny_tokenizer, 2000, "dpo")
    shard = TokenShard(tmp_path / "t" / "000")
    assert facts["000"]["num_documents"] == 2 and facts["000"]["licenses"] == {"x": 1}
    chosen, rejected = learned(tiny_tokenizer, shard, 0), learned(tiny_tokenizer, shard, 1)
    assert "三千" in chosen and "九百" in chosen and "請問" not in chosen and "人工智慧" not in chosen
    assert rejected == "首都"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "玉山多高？", "chosen": [HISTORY[2], *said("三千")], "rejected": [HISTORY[2], *said("九百")]},
        {"chosen": [HISTORY[2], *said("三千")], "rejected": [HISTORY[2], *said("九百")]},
        {"conversations": [{"from": "human", "value": "玉山多高？"}], "chosen": {"from": "gpt", "value": "三千"},
         "rejected": {"from": "gpt", "value": "九百"}},
        {"instruction": "玉山多高？", "input": "", "chosen": "三千", "rejected": "九百"},
        {"question": "玉山多高？", "chosen": "三千", "rejected": "九百"},
    ],
    ids=["prompt-in-the-answers", "no-prompt", "sharegpt", "alpaca", "question"],
)  # fmt: skip
def test_pairs_of_other_trainers_files_are_the_same_pair(row: dict[str, Any], tmp_path: Path) -> None:
    (pair,), _ = read_preferences(dataset(tmp_path, row), "dpo")
    assert isinstance(pair, Pair)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((HISTORY[2],), tuple(said("三千")), tuple(said("九百")))


def test_the_shared_beginning_of_two_conversations_is_what_was_asked(tmp_path: Path) -> None:
    system = {"role": "system", "content": "你是助理。"}
    row = {"system": "你是助理。", "instruction": "玉山多高？", "history": [["你好", "你好，我是人工智慧助理。"]]}
    (one,), _ = read_preferences(dataset(tmp_path, {**row, "chosen": "三千", "rejected": "九百"}), "dpo")
    whole = {key: [system, *HISTORY, *said(text)] for key, text in (("chosen", "三千"), ("rejected", "九百"))}
    (other,), _ = read_preferences(dataset(tmp_path, whole), "dpo")
    assert isinstance(one, Pair) and isinstance(other, Pair) and one.prompt == other.prompt == (system, *HISTORY)
    labelled = {"messages": [*HISTORY, *said("三千")], "label": False}
    (answer,), _ = read_preferences(dataset(tmp_path, labelled), "kto")
    assert isinstance(answer, Answer) and (answer.prompt, answer.label) == (tuple(HISTORY), -1)


def test_kto_rows_bring_a_mismatched_completion_and_labels(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    rows = dataset(
        tmp_path,
        {"prompt": "甲", "completion": "台灣", "label": True},
        {"prompt": "甲", "completion": "首都", "label": False},
        {"prompt": "乙", "completion": "臺北", "label": 0},
    )
    tokenize_preferences(tmp_path / "t", [rows], tiny_tokenizer, 2000, "kto")
    shard = TokenShard(tmp_path / "t" / "000")
    assert np.load(tmp_path / "t" / "000" / LABELS).tolist() == [1, 0, -1, 0, -1, 0]
    assert [learned(tiny_tokenizer, shard, i) for i in range(6)] == ["台灣", "臺北", "首都", "臺北", "臺北", "台灣"]


def test_pairs_are_made_of_one_prompt_and_not_too_many() -> None:
    prompt = (HISTORY[0],)
    answers = [Answer(f"{label}{i}", prompt, tuple(said(f"{label}{i}")), label) for label in (1, -1) for i in range(4)]
    other = Answer("z", (HISTORY[2],), tuple(said("z")), -1)
    pairs = pair_up([*answers, other])
    assert len(pairs) == 4 and all(p.chosen[0]["content"].startswith("1") for p in pairs)
    assert pair_up([answers[0], other]) == []


@pytest.mark.parametrize(
    ("rows", "method", "message"),
    [
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "kto", "made for dpo"),
        ([{"prompt": "a", "completion": "b", "label": True}], "dpo", "made for kto"),
        ([{"prompt": "a", "chosen": "b"}], "dpo", "bad row"),
        ([{"prompt": "a", "chosen": [HISTORY[0], *said("b")], "rejected": "c"}], "dpo", "must begin with assistant"),
        ([{"chosen": "b", "rejected": "c"}], "dpo", "missing"),
        ([{"prompt": [], "completion": "b", "label": True}], "kto", "bad row"),
        ([{"prompt": "a", "completion": [{"role": "user", "content": "b"}], "label": True}], "kto", "bad row"),
        ([{"prompt": "a", "completion": "b", "label": True, "license": ""}], "kto", "no licence"),
        ([{"prompt": "a", "completion": "b", "label": True}, {"messages": [HISTORY[0], *said("b")]}], "kto", "mixed shapes"),
        ([{"messages": [HISTORY[0], *said("b")]}], "kto", "without rating"),
        ([{"messages": [HISTORY[0], *said("b")], "rating": 1}], "dpo", "no pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(rows: list[dict[str, Any]], method: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_preferences(dataset(tmp_path, *rows), method)


def test_one_prompt_is_too_few_for_kto_and_long_pairs_are_counted(
    tiny_tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    one = dataset(tmp_path, {"prompt": "甲", "completion": "台灣", "label": True})
    with pytest.raises(UserError, match="two different prompts"):
        tokenize_preferences(tmp_path / "t", [one], tiny_tokenizer, 2000, "kto")
    pair = {"prompt": "甲", "chosen": "台灣", "rejected": "首都"}
    rows = dataset(tmp_path, pair, {**pair, "chosen": "台灣" * 300})
    assert tokenize_preferences(tmp_path / "u", [rows], tiny_tokenizer, 500, "dpo")["000"]["num_too_long"] == 1
    with pytest.raises(UserError, match="nothing fits"):
        tokenize_preferences(tmp_path / "v", [rows], tiny_tokenizer, 50, "dpo")


def test_a_shared_data_set_trains_with_kto(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    facts = tokenize_preferences(
        tmp_path / "t", [DatasetConfig(path="twllm:taiwan_feedback")], tiny_tokenizer, 2000, "kto"
    )
    assert facts["000"]["num_documents"] == 2 * facts["000"]["num_rows"] > 300
