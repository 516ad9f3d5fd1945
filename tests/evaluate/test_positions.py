"""Loss by position is the model's own loss, place by place; needle conversations hold their answer and differ from the suite's."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import SENTENCES
from twllm.errors import UserError
from twllm.evaluate.haystack import needle_items
from twllm.evaluate.needle_data import conversations, needle_data
from twllm.evaluate.positions import curve, cut, edges, positions
from twllm.evaluate.task import tasks
from twllm.model.build import load
from twllm.tokens.conversation import read_conversations
from twllm.tokens.tokenizer import ChatTokenizer


def test_each_bucket_is_the_mean_loss_there(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = load(tiny_checkpoint), cut(SENTENCES * 3, tiny_tokenizer, 40, 2)
    assert [len(row) for row in rows] == [41, 41] and rows[0][0] == tiny_tokenizer.bos_id
    found = curve(model, rows, 3)  # places 0–13, 14–27, 28–39
    monkeypatch.setattr("twllm.evaluate.positions.PLACES", 17)  # logits of 17, 17 and 6 places
    assert curve(model, rows, 3) == pytest.approx(found, rel=1e-5)
    with torch.no_grad():
        losses = torch.stack(
            [torch.nn.functional.cross_entropy(model(torch.tensor([r[:-1]])).logits[0], torch.tensor(r[1:]), reduction="none") for r in rows]
        ) / math.log(2)  # fmt: skip
    assert found == pytest.approx([float(losses[:, a:b].mean()) for a, b in ((0, 14), (14, 28), (28, 40))], rel=1e-5)
    assert edges(40, 3) == [14, 28, 40]
    with pytest.raises(UserError, match="not one row"):
        cut(SENTENCES[:1], tiny_tokenizer, 4000, 2)


def test_the_command_draws_models_side_by_side(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text("".join(SENTENCES) * 5)
    models = [f"a={tiny_checkpoint}", f"b={tiny_checkpoint}"]
    positions(models, str(tmp_path / "t.txt"), tmp_path / "out", context=64, buckets=4, rows=2)
    told = json.loads((tmp_path / "out" / "positions.json").read_text())["bits_per_token"]
    assert told["a"] == told["b"] and len(told["a"]) == 4 and "| a |" in capsys.readouterr().out
    assert (tmp_path / "out" / "positions.png").stat().st_size > 5000


def test_training_needles_are_not_the_tests(tmp_path: Path) -> None:
    needle_data(tmp_path / "n.jsonl", count=40, shortest=100, longest=300, text="twllm:knowledge", seed=1)
    rows = list(read_conversations(str(tmp_path / "n.jsonl")))
    asked = {item.references[0] for item in needle_items(tasks()["needle_zh"], None)}
    for row in rows:
        question, answer = (message["content"] for message in row.messages)
        assert answer in question and not any(value in answer for value in asked)
        assert 150 <= len(question) <= 400
    assert len({row.messages[1]["content"] for row in rows}) == 40
    with pytest.raises(UserError, match="too short"):
        list(conversations(["字" * 500], 1, 20, 300, 1))


def test_several_needles_a_text_are_all_in_it_and_all_asked_for() -> None:
    for row in conversations(["一二三四五六七八九。" * 30], 5, 600, 700, 3, 12):
        said = [message["content"] for message in row["messages"]]
        questions, answers = said[::2], said[1::2]
        assert len(set(questions)) == len(set(answers)) == 12
        assert all(questions[0].count(answer) == 1 for answer in answers)
        assert 600 <= len(questions[0]) <= 780
    with pytest.raises(UserError, match="too short"):
        list(conversations(["字" * 500], 1, 200, 300, 1, 12))
