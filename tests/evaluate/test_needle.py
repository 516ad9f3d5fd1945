"""Needles: exact lengths, depths at sentence ends, values that cannot be guessed, the same items every time, the grid."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from twllm import data
from twllm.errors import UserError
from twllm.evaluate.haystack import needle_items, needles, place
from twllm.evaluate.kinds import Options, Session, find_kind
from twllm.evaluate.report import write_report
from twllm.evaluate.responses import ResponseFile
from twllm.evaluate.runner import evaluate_model
from twllm.evaluate.task import Item, Task, tasks
from twllm.evaluate.texts import read_texts


def task(**options: Any) -> Task:
    """The suite with another grid; `read_items` and the kind see the same one."""
    shipped = tasks()["needle_zh"]
    return shipped.model_copy(update={"options": {**shipped.options, **options}})


def hay_of(item: Item) -> str:
    """The document inside the prompt."""
    return item.prompt.removeprefix("以下是一份文件。請讀完後，只依文件的內容回答問題，答案越短越好。\n\n").rpartition(
        "\n\n問題："
    )[0]


def test_each_item_has_its_length_and_one_needle() -> None:
    wanted = task(lengths="250 1000", depths="0 50 100", per_cell=4)
    items = needle_items(wanted, None)
    assert len(items) == 2 * 3 * 4
    for item in items:
        length, depth, _ = map(int, item.id.split("/"))
        (value,) = item.references
        hay = hay_of(item)
        assert len(hay) == length
        assert hay.count(value) == 1
        assert value not in item.question
        at = hay.index(value)
        if depth == 0:
            assert at < 30
        if depth == 100:
            assert at > length - 30
        if depth == 50:
            assert abs(at - length / 2) < 130  # a sentence of the text and the needle's own beginning


def test_needle_stands_between_sentences() -> None:
    text = "一二三四。五六七八！九十"
    assert [place(text, depth) for depth in (0, 30, 70, 99, 100)] == [0, 5, 10, 10, len(text)]
    assert place("沒有句點" * 5, 50) == 10


def test_same_seed_same_items_other_seed_other_values() -> None:
    small = {"lengths": "250", "depths": "0 50", "per_cell": 3}
    first, again, other = (needle_items(task(**small, seed=seed), None) for seed in (1, 1, 2))
    assert first == again
    assert {item.references for item in first} & {item.references for item in other} == set()
    wider = needle_items(task(lengths="250 500", depths="0 25 50", per_cell=3, seed=1), None)
    assert {item.prompt for item in first} < {item.prompt for item in wider}  # a cell does not depend on the others


def test_values_stand_in_no_text_we_ship() -> None:
    """Digits or a pair of words that nobody has put together: neither learned nor guessed."""
    known = "\n".join(text.text for text in read_texts("twllm:knowledge"))
    items = needle_items(task(lengths="250", depths="0 50 100", per_cell=40), None)
    values = [item.references[0] for item in items]
    assert not [value for value in values if value in known]
    assert len(set(values)) > 110
    sentences, words = needles()
    assert len({needle.question for needle in sentences}) == len(sentences) == 12
    assert len(set(words)) == len(words) == 30
    assert {needle.kind for needle in sentences} == {"digits", "words"}
    assert (data.ROOT / "needles/needles.jsonl").is_file()


def test_own_text_and_a_text_shorter_than_asked(tmp_path: Path) -> None:
    file = tmp_path / "短.txt"
    file.write_text("海水是鹹的。", encoding="utf-8")
    (item,) = needle_items(task(lengths="300", depths="50", per_cell=1), file)
    assert len(hay_of(item)) == 300
    assert hay_of(item).count("海水是鹹的。") > 30


@pytest.mark.parametrize("options", [{"lengths": "20"}, {"lengths": "一千"}, {"depths": "0 101"}])
def test_senseless_grids_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"lengths|whole numbers"):
        needle_items(task(**options), None)


class Reader:
    """Finds the value when the document is short enough for it, and only in its first half."""

    fingerprint, template_fingerprint = "r", "t"

    def __init__(self, items: list[Item], context: int) -> None:
        self.known = {item.prompt: item for item in items}
        self.context, self.longest = context, 0

    def __call__(self, chats: Sequence[list[dict[str, str]]]) -> list[str | None]:
        return [self.answer(self.known[chat[0]["content"]]) for chat in chats]

    def answer(self, item: Item) -> str | None:
        length, depth, _ = map(int, item.id.split("/"))
        self.longest = max(self.longest, length)
        if length > self.context:
            return None
        return f"答案是{item.references[0]}。" if depth < 50 else "文件没有说。"


def test_grid_counts_what_was_asked(tmp_path: Path) -> None:
    wanted = task(lengths="250 500 1000 2000", depths="0 100", per_cell=2)
    items = needle_items(wanted, None)
    model = Reader(items, context=500)
    session = Session(model, ResponseFile(tmp_path / "r.jsonl"), Options())
    block = find_kind("needle")(wanted, items, session)
    assert block["grid"] == {
        "lengths": [250, 500, 1000, 2000], "depths": [0, 100],
        "correct": [[2, 0], [2, 0], [0, 0], [0, 0]], "n": [[2, 2], [2, 2], [0, 0], [0, 0]],
    }  # fmt: skip
    assert (block["score"], block["correct"], block["n"], block["not_fitting"]) == (0.5, 4, 8, 8)
    assert block["leak_rate"] > 0
    assert model.longest == 1000  # nothing of that length fits: longer ones are not even sent
    write_report({"meta": {}, "needle_zh": block}, tmp_path, "r")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| 500 | 2/2 | 0/2 |" in text
    assert "| 1,000 | — | — |" in text
    assert "![長度 × 深度](r.needle_zh.png)" in text
    assert (tmp_path / "r.needle_zh.png").read_bytes().startswith(b"\x89PNG")


def test_a_context_too_short_for_any_is_said_and_gives_no_score(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tiny model has 256 tokens."""
    result = evaluate_model(str(tiny_checkpoint), suites=["needle_zh"], out=tmp_path / "r.json", max_new_tokens=4)
    block = result["needle_zh"]
    assert (block["n"], block["not_fitting"]) == (0, 8 * 5 * 3)
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| needle_zh | 1 | — | 0 | 0 | — | — |" in text
    assert "沒有問，不計分" in text


def test_a_real_model_reads_what_fits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from twllm.evaluate.model import LocalModel

    wider = shutil.copytree(tiny_checkpoint, tmp_path / "model")  # rotary positions: no weight depends on the context
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    wanted = task(lengths="70 2000", depths="0 50", per_cell=1)
    items = needle_items(wanted, None)
    session = Session(LocalModel(wider, 4), ResponseFile(tmp_path / "r.jsonl"), Options(max_new_tokens=4))
    block = find_kind("needle")(wanted, items, session)
    assert block["grid"]["n"] == [[1, 1], [0, 0]]
    again = Session(session.model, ResponseFile(tmp_path / "r.jsonl"), Options(max_new_tokens=4))
    assert find_kind("needle")(wanted, items, again) == block
    assert again.reused == 4
