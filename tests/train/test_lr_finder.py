"""The finder's curve is the real run's, its suggestion lies where the loss falls, and it leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from twllm.errors import UserError
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.alone import train_alone
from twllm.train.loop import Trainer
from twllm.train.lr_finder import find_rate, read_curve

Make = Callable[..., Trainer]


def test_it_finds_a_rate_that_trains_and_writes_no_state(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w")
    first = make_trainer(tmp_path / "v").train_step(0)["loss"]
    found = find_rate(trainer, steps=60)
    assert found.losses[0] == pytest.approx(first)
    assert 1e-4 < found.suggestion < 0.05 and found.suggestion < found.lowest
    assert not (tmp_path / "w").exists()
    good, low = (
        make_trainer(tmp_path / str(lr), lr=lr, epochs=2).run()["held_out_loss"] for lr in (found.suggestion, 1e-5)
    )
    assert good < low - 0.5


def test_a_curve_is_read_as_the_eye_reads_it() -> None:
    rates = [10.0**-e for e in range(8, 0, -1)]
    found = read_curve(rates, [5.0, 5.0, 4.9, 4.0, 3.8, 3.7, 6.0, 9.0])
    assert (found.steepest, found.lowest, found.suggestion) == (rates[2], rates[5], rates[2])
    with pytest.raises(UserError, match="never fell"):
        read_curve(rates, [5.0, 5.0, 5.1, 5.2, 6.0, 7.0, 8.0, 9.0])


def test_the_command_leaves_the_model_as_it_is(
    tiny_checkpoint: Path, tiny_tokenizer: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from twllm.artifact import hash_path

    monkeypatch.setattr("twllm.train.lr_finder.STEPS", 30)

    rows = [
        {"messages": [{"role": "user", "content": f"{i}+1?"}, {"role": "assistant", "content": f"是{i + 1}。"}]}
        for i in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "machine.toml").write_text('threads = 1\nprecision = "fp32"\ntensorboard = false\n')
    before = hash_path(tiny_checkpoint)
    sets = ["context=256", "batch_tokens=512"]
    train_alone(
        "sft", str(tiny_checkpoint), [str(tmp_path / "chats.jsonl")], tmp_path / "lr", sets, tmp_path / "machine.toml", None,
        "CC0-1.0", 0, find_lr=True,
    )  # fmt: skip
    assert "suggested" in capsys.readouterr().out
    assert json.loads((tmp_path / "lr" / "lr_finder.json").read_text())["suggestion"] > 1e-5
    assert (tmp_path / "lr" / "lr_finder.png").stat().st_size > 5000
    assert hash_path(tiny_checkpoint) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chats.jsonl", "lr", "machine.toml"]
