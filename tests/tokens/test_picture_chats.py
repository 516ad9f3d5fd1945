"""Conversations with pictures: every shape of row, `<image>` that cannot be forged, and clear errors for what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from twllm.errors import UserError
from twllm.tokens.config import DatasetConfig
from twllm.tokens.conversation import Tally
from twllm.tokens.picture_chats import picture_shard, read_picture_chats, shard_pictures
from twllm.tokens.picture_template import IMAGE, count_pictures, expand, seeing_tokenizer
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer, Encoded

ANSWER = {"role": "assistant", "content": "紅色。"}
PARTS = [{"type": "image"}, {"type": "text", "text": "什麼顏色？"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture(scope="module")
def seeing(tiny_tokenizer: ChatTokenizer) -> ChatTokenizer:
    return seeing_tokenizer(tiny_tokenizer)


def read(folder: Path, *rows: Any, **settings: Any) -> list[Any]:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(read_picture_chats(DatasetConfig(path=str(folder / "data.jsonl"), license="x", **settings)))


ROWS: dict[str, tuple[dict[str, Any], Any, list[str]]] = {
    "llava": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\n什麼顏色？"}, {"from": "gpt", "value": "紅色。"}]},
        PARTS, ["a.png"],
    ),
    "llava, picture last": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "什麼顏色？\n<image>"}, {"from": "gpt", "value": "紅色。"}]},
        PARTS[::-1], ["a.png"],
    ),
    "no place named": ({"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": "什麼顏色？"}, ANSWER]},
        [{"type": "image"}, *PARTS], ["a.png", "b.png"]),
    "openai": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "b.png"}}, PARTS[1]]}, ANSWER]}, PARTS, ["b.png"],
    ),
    "hugging face": ({"images": ["b.png"], "messages": [{"role": "user", "content": PARTS}, ANSWER]}, PARTS, ["b.png"]),
    "alpaca": ({"image": "a.png", "instruction": "什麼顏色？", "output": "紅色。"}, PARTS, ["a.png"]),
    "text only": ({"messages": [{"role": "user", "content": "寫 <image>"}, ANSWER]}, "寫 <image>", []),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_shapes(folder: Path, name: str) -> None:
    row, content, pictures = ROWS[name]
    (chat,) = read(folder, row)
    assert chat.messages[0] == {"role": "user", "content": content}
    assert chat.messages[1] == ANSWER
    assert list(chat.pictures) == pictures and len(chat.open()) == len(pictures)


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "missing": ({"image": "no.png", "messages": [{"role": "user", "content": "？"}, ANSWER]}, "cannot read", "bad_picture"),
    "broken": ({"image": "broken.png", "messages": [{"role": "user", "content": "？"}, ANSWER]}, "not a picture", "bad_picture"),
    "fewer places": (
        {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": "<image>？"}, ANSWER]}, "differ", "picture_count",
    ),
    "more places": (
        {"images": ["a.png"], "messages": [{"role": "user", "content": "<image><image>？"}, ANSWER]}, "more places", "picture_count",
    ),
    "part without": ({"messages": [{"role": "user", "content": PARTS}, ANSWER]}, "more places", "picture_count"),
    "in an answer": (
        {"image": "a.png", "messages": [{"role": "user", "content": "？"}, {"role": "assistant", "content": "<image>好"}]},
        "outside of a question", "picture_count",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_stop_or_are_counted(folder: Path, name: str) -> None:
    row, what, reason = BROKEN[name]
    with pytest.raises(UserError, match=what) as caught:
        read(folder, row)
    assert "data.jsonl:1" in str(caught.value.where)
    tally = Tally()
    config = DatasetConfig(path=str(folder / "data.jsonl"), license="x", on_broken="skip")
    assert list(read_picture_chats(config, tally)) == []
    assert dict(tally.skipped) == {reason: 1}


def test_image_cannot_be_typed(seeing: ChatTokenizer) -> None:
    image = seeing.controls[IMAGE]
    forged = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a <image> b</s>"}]}, ANSWER]
    assert seeing.encode_chat(forged).ids.count(image) == 1
    plain = [{"role": "system", "content": "<image>"}, {"role": "user", "content": "<image>"}, ANSWER]
    ids = seeing.encode_chat(plain).ids
    assert image not in ids and "<image>" in seeing.decode(ids)
    assert count_pictures(forged) == 1 and count_pictures(plain) == 0


def test_a_chat_without_pictures_is_as_before(seeing: ChatTokenizer, tiny_tokenizer: ChatTokenizer) -> None:
    chat = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    assert seeing.encode_chat(chat) == tiny_tokenizer.encode_chat(chat)
    assert seeing_tokenizer(seeing).template == seeing.template


def test_facts_of_many_wordings_go_along(folder: Path) -> None:
    chats = read(folder, {"id": "f", "questions": ["最高的山？", "哪座山最高？"], "answer": "玉山。"})
    assert [chat.messages[0]["content"] for chat in chats] == ["最高的山？", "哪座山最高？"]
    assert next(read_picture_chats(DatasetConfig(path="twllm:taiwan_facts"))).pictures == ()


def test_expand_counts() -> None:
    with pytest.raises(UserError, match="differ"):
        expand(Encoded([1, 9], [False, False]), 9, [])


def test_shard_keeps_pictures_beside_their_documents(folder: Path, seeing: ChatTokenizer) -> None:
    image = seeing.controls[IMAGE]
    turns = [{"role": "user", "content": "<image>什麼？"}, ANSWER] * 2
    chats = read(
        folder,
        {"images": ["a.png", "b.png"], "messages": turns},
        {"messages": [{"role": "user", "content": "嗨"}, ANSWER]},
    )
    index = picture_shard(folder / "s", chats, seeing, 400, 5)
    shard = TokenShard(folder / "s")
    ids = list(shard.ids[: shard.lengths[0]])
    assert ids.count(image) == 10 and index["num_pictures"] == 2
    assert not shard.mask(0, len(ids))[[i for i, id in enumerate(ids) if id == image]].any()
    assert [[Path(p).name for p in row] for row in shard_pictures(folder / "s")] == [["a.png", "b.png"], []]
    short = picture_shard(folder / "t", chats, seeing, len(ids) - 1, 5)  # the last turn goes, and its picture with it
    assert short["num_shortened"] == 1
    assert [[Path(p).name for p in row] for row in shard_pictures(folder / "t")] == [["a.png"], []]
    with pytest.raises(UserError, match="no chat with pictures fits"):
        picture_shard(folder / "u", chats[:1], seeing, 20, 50)
