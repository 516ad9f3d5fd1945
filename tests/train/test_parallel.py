"""One process = two = four, whatever is shared out; states go on with another number of processes; a killed one ends all, with words."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.rank_work import train
from tests.train.ranks import collect, run_ranks, start_ranks
from twllm.tokens.shards import TokenShard
from twllm.train.ledger import NAME, blocks


@pytest.fixture
def folder(tiny_checkpoint: Path, shard: TokenShard) -> Path:
    """`model` and `shard` in one folder."""
    (shard.folder.parent / "model").symlink_to(tiny_checkpoint)
    return shard.folder.parent


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=2e-4)
    for name, weights in one["weights"].items():
        np.testing.assert_allclose(other["weights"][name], weights, atol=2e-3, err_msg=name)
    assert other["metrics"]["held_out_loss"] == pytest.approx(one["metrics"]["held_out_loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("count", "machine"),
    [
        (2, {"sharding": "none"}),
        (2, {"sharding": "optimizer"}),
        (2, {"sharding": "full"}),
        (2, {"tensor_parallel": 2}),
        (4, {"sharding": "full", "shard_ranks": 2}),
    ],
)
def test_so_many_processes_learn_what_one_learns(folder: Path, count: int, machine: dict[str, Any]) -> None:
    one = train(folder, "one")
    found = run_ranks(train, count, folder, work="several", machine=machine)
    same(one, found[0])
    assert all(rank["losses"] == found[0]["losses"] for rank in found)
    assert (folder / "one" / NAME).read_bytes() == (folder / "several" / NAME).read_bytes()


def test_states_go_on_from_2_to_1_to_4_processes(folder: Path) -> None:
    whole = train(folder, "whole", settings={"ema_decay": 0.9})
    every = {"checkpoint_every_s": 1e-9, "sharding": "full"}
    settings = {"ema_decay": 0.9}
    first = run_ranks(train, 2, folder, work="w", machine=every, settings=settings, stop=3)[0]
    second = train(folder, "w", every, settings, stop=5)
    third = run_ranks(train, 4, folder, work="w", machine=every, settings=settings)[0]
    assert third["metrics"]["resumed_at"] == 5
    losses = first["losses"] + second["losses"] + third["losses"]
    same(whole, {**third, "losses": losses})
    steps = [step for step, _, _ in blocks(folder / "w" / NAME)]
    assert steps == list(range(1, len(losses) + 1))
    assert not [p for p in (folder / "w" / "states").iterdir() if not p.name.startswith("step-")]


def test_a_killed_process_ends_the_others_with_words(folder: Path) -> None:
    every = {"checkpoint_every_s": 1e-9}
    whole = run_ranks(train, 2, folder, work="whole", machine=every)[0]
    found = collect(start_ranks(train, 2, folder, work="w", machine=every, die=(1, 4)))
    assert found[1][0] == "gone" and found[0][0] == "error", found
    assert "another process ended" in found[0][1]
    resumed = run_ranks(train, 2, folder, work="w", machine=every)[0]
    assert resumed["metrics"]["resumed_at"] in (3, 4)
    for name, weights in whole["weights"].items():
        assert np.array_equal(resumed["weights"][name], weights), name
    assert (folder / "w" / NAME).read_bytes() == (folder / "whole" / NAME).read_bytes()
    assert os.environ.get("RANK") is None
