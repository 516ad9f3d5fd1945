"""The loop learns, resumes bit for bit, accumulates exactly, and stops before a bad step."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twllm.errors import UserError
from twllm.model.build import weights_fingerprint
from twllm.train.config import OptimConfig
from twllm.train.data import Batch
from twllm.train.loop import Trainer
from twllm.train.optim import learning_rate
from twllm.train.plots import plot_loss
from twllm.train.rows import read_rows
from twllm.train.state import list_states

Make = Callable[..., Trainer]


class Killed(Exception):
    """Stands for a power cut between two steps."""


def run_and_kill(trainer: Trainer, after: int) -> None:
    """Run until `after` optimizer steps are done, then die."""
    ordinary = trainer.train_step

    def step(number: int) -> dict[str, float]:
        if number == after:
            raise Killed
        return ordinary(number)

    trainer.train_step = step  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()


def test_it_learns_and_logs(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w")
    metrics = trainer.run()
    rows = read_rows(tmp_path / "w" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(trainer.plan.steps + 1))  # step 0: held-out loss before training
    assert metrics["held_out_loss"] < rows[0]["held_out_loss"] - 0.5
    assert metrics["tokens"] == trainer.plan.steps * 128
    plot_loss(rows, tmp_path / "loss.png", "sft")
    assert (tmp_path / "loss.png").stat().st_size > 5000


@pytest.mark.parametrize("after", [1, 7, 20])
def test_resumed_equals_uninterrupted_bit_for_bit(make_trainer: Make, tmp_path: Path, after: int) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.run()
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9), after)
    resumed = make_trainer(tmp_path / "w", checkpoint_every_s=1e-9)
    assert resumed.run()["resumed_at"] == after
    assert weights_fingerprint(resumed.model.state_dict()) == weights_fingerprint(whole.model.state_dict())
    losses = [[row.get("loss") for row in read_rows(tmp_path / w / "metrics.jsonl")] for w in ("whole", "w")]
    assert losses[0] == losses[1]


def test_a_lost_tail_of_steps_is_repeated_not_counted_twice(make_trainer: Make, tmp_path: Path) -> None:
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9), 5)
    stale = tmp_path / "w" / "metrics.jsonl"
    stale.write_text(stale.read_text() + json.dumps({"step": 6, "loss": 99.0}) + "\n" + '{"step": 7, "lo')
    make_trainer(tmp_path / "w").run()
    rows = read_rows(stale)
    assert [row["step"] for row in rows] == list(range(len(rows))) and max(row.get("loss", 0) for row in rows) < 99


def test_only_the_newest_state_is_kept_and_it_belongs_to_its_run(make_trainer: Make, tmp_path: Path) -> None:
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9), 4)
    assert [p.name for p in list_states(tmp_path / "w" / "states")] == ["step-00000004"]
    assert not list((tmp_path / "w" / "states" / "step-00000004").glob("*.p*"))  # safetensors and JSON, no pickle
    with pytest.raises(UserError, match=r"config.lr 0.01 → 0.001"):
        make_trainer(tmp_path / "w", lr=1e-3).run()


def test_other_cores_go_on_with_a_state_other_numbers_do_not(
    make_trainer: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_and_kill(make_trainer(tmp_path / "w", checkpoint_every_s=1e-9, max_tokens=768), 4)
    with pytest.raises(UserError, match=r"machine.precision fp32 → bf16"):
        make_trainer(tmp_path / "w", precision="bf16", max_tokens=768).run()
    assert make_trainer(tmp_path / "w", threads=2, max_tokens=768).run()["resumed_at"] == 4
    assert "machine.threads 1 → 2" in capsys.readouterr().err


def test_a_model_with_nan_in_it_is_named_and_no_document(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w")
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(UserError, match="embed_tokens") as error:
        trainer.run()
    assert "文件" not in error.value.where


def test_accumulation_changes_nothing(make_trainer: Make, tmp_path: Path) -> None:
    whole, parts = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", micro_batch_tokens=64)
    assert (whole.plan.rows_per_micro, parts.plan.rows_per_micro) == (2, 1)
    for step in range(3):
        assert whole.train_step(step)["loss"] == pytest.approx(parts.train_step(step)["loss"], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_step(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "w")
    run_rows = trainer.data.rows(0, 2)
    first, ordinary = (
        trainer.data.batch(run_rows).ids[0, 0],
        trainer.objective.loss,
    )  # only some documents hold that token

    def loss(batch: Batch) -> torch.Tensor:
        return ordinary(batch) * (float("nan") if bool((batch.ids == first).any()) else 1.0)

    trainer.objective.loss = loss  # type: ignore[method-assign]
    before = weights_fingerprint(trainer.model.state_dict())
    with pytest.raises(UserError, match="第 1 步") as error:
        trainer.run()
    assert "shard: 文件" in error.value.where
    assert weights_fingerprint(trainer.model.state_dict()) == before


def test_schedule() -> None:
    config = OptimConfig(lr=1.0, warmup_share=0.1, min_lr_share=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_data_order_is_a_function_of_the_step(make_trainer: Make, tmp_path: Path) -> None:
    first, second = make_trainer(tmp_path / "a").data, make_trainer(tmp_path / "b").data
    assert first.rows(17, 30) == second.rows(17, 30) == second.rows(17, 10) + second.rows(27, 20)
    epoch = first.epoch_rows(0)
    assert first.rows(0, len(epoch)) == epoch and first.rows(len(epoch), 1) == first.epoch_rows(1)[:1]


def test_bf16_learns_the_same_within_its_precision(make_trainer: Make, tmp_path: Path) -> None:
    full, half = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", precision="bf16")
    losses = [[trainer.train_step(step)["loss"] for step in range(6)] for trainer in (full, half)]
    assert half.machine.precision == "bf16" and losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())  # master weights stay fp32
