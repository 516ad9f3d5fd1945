"""One process = two = four, whatever learns and whatever is shared out; states go on with another number; a killed one ends all, with words."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.train.rank_work import Case, train, train_all, write_data
from tests.train.ranks import collect, run_ranks, start_ranks
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.ledger import NAME, blocks
from twllm.train.muon import Muon
from twllm.train.parallel import full

FULL, ROWS, OFTEN = {"sharding": "full"}, {"context_parallel": 2}, {"checkpoint_every_s": 1e-9}
MUON = {"optimizer": "muon", "lr": 1e-3}
TWO = (
    Case("copies"),
    Case("as ZeRO-2", machine={"sharding": "optimizer"}),
    Case("as ZeRO-3", machine=FULL),
    Case("tensor parallel", machine={"tensor_parallel": 2}),
    Case("texts", "pretrain", machine=FULL),
    Case("rated +1", "positive"),
    Case("dpo", "dpo", machine=FULL),
    Case("kto", "kto", machine={"sharding": "optimizer"}),
    Case("teacher", settings={"teacher": {"model": "teacher"}}, machine=FULL),
    Case("experts", model="moe", machine=FULL),
    Case(
        "best of averages",
        settings={"ema_decay": 0.9, "eval_every": 2, "patience": 9, "keep": "best", "held_out": 0.1},
        machine=FULL,
    ),
    Case("noise", settings={"neftune_alpha": 5.0}, machine=FULL),
    Case("parts", settings={"freeze": ["embed_tokens"], "lr_factors": {"layers.0": 0.5}}, machine=FULL),
    Case("forgetting", settings={"forgetting": {"texts": ["twllm:no_harm"], "max_chars": 2000}}, machine=FULL),
    Case("by halves", machine={**FULL, "checkpointing": "selective"}),
    Case("rows shared out", machine=ROWS),
    Case("texts' rows", "pretrain", machine={**ROWS, **FULL, "checkpointing": "full"}),
    Case("muon", settings=MUON, machine=FULL),
)
FOUR = (
    Case("copies of two", machine={"sharding": "full", "shard_ranks": 2}),
    Case("dpo", "dpo", machine=FULL),
    Case("two by two", machine={"sharding": "full", "tensor_parallel": 2}),
    Case("rows by two", machine={**FULL, **ROWS}),
    Case("rows by four", "pretrain", machine={"context_parallel": 4}),
)
LORA = (
    Case("lora", settings={"lora": {"r": 4}}, machine=FULL),
    Case("lora and dpo", "dpo", settings={"lora": {"r": 4}}, machine={"sharding": "optimizer"}),
)


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """Models and shards in one folder."""
    write_data(tmp_path, ChatTokenizer.load(tiny_checkpoint), tiny_checkpoint)
    return tmp_path


def same(name: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=2e-4, atol=1e-6, err_msg=name)
    assert one["weights"].keys() == other["weights"].keys()
    for tensor, weights in one["weights"].items():
        np.testing.assert_allclose(other["weights"][tensor], weights, atol=2e-3, err_msg=f"{name}: {tensor}")
    for key in {"held_out_loss", "held_out_loss_ema"} & one["metrics"].keys():
        assert other["metrics"][key] == pytest.approx(one["metrics"][key], rel=1e-3), name


def compare(folder: Path, cases: Sequence[Case], count: int) -> None:
    """Each case with one process and with `count`."""
    alone = {key(case): (replace(case, machine={}), f"{case.name}-1") for case in reversed(cases)}
    learned = dict(zip(alone, train_all(folder, list(alone.values())), strict=True))
    wanted = [learned[key(case)] for case in cases]
    found = run_ranks(train_all, count, folder, jobs=[(case, f"{case.name}-{count}") for case in cases])
    for number, case in enumerate(cases):
        assert "error" not in wanted[number], (case.name, wanted[number])
        assert "error" not in found[0][number], (case.name, found[0][number])
        same(case.name, wanted[number], found[0][number])
        assert all(rank[number]["losses"] == found[0][number]["losses"] for rank in found), case.name
        ledgers = [(folder / work / NAME).read_bytes() for work in (alone[key(case)][1], f"{case.name}-{count}")]
        assert ledgers[0] == ledgers[1], case.name


def key(case: Case) -> str:
    """Of what is learned, wherever it is computed."""
    return repr((case.kind, case.settings, case.model))


def test_two_processes_learn_what_one_learns(folder: Path) -> None:
    compare(folder, TWO, 2)


def test_four_processes_learn_what_one_learns(folder: Path) -> None:
    compare(folder, FOUR, 4)


def test_adapters_are_learned_alike(folder: Path) -> None:
    pytest.importorskip("peft")
    compare(folder, LORA, 2)


def test_bf16_is_rounded_alike(folder: Path) -> None:
    """The first step of one process and of two: what is left is the order of sums."""
    pytest.importorskip("peft")
    low = {"precision": "bf16"}
    jobs = [
        (Case(name, settings=more, machine=low), name, 1) for name, more in (("all", {}), ("lora", LORA[0].settings))
    ]
    alone = train_all(folder, jobs)
    shared = [(replace(case, machine={**low, **FULL}), f"{name}-2", 1) for case, name, _ in jobs]
    for one, two in zip(alone, run_ranks(train_all, 2, folder, jobs=shared)[0], strict=True):
        np.testing.assert_allclose(one["losses"], two["losses"], rtol=3e-5)


def refused(folder: Path, case: Case) -> str:
    """What every process is told."""
    found = collect(start_ranks(train, 2, folder, case=case, work=case.name))
    assert {kind for kind, _ in found} == {"error"}, found
    return str(found[0][1])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("experts", model="moe", machine={"tensor_parallel": 2}), "tensor parallel"),
        (Case("muon", settings=MUON, machine={"tensor_parallel": 2}), "no Muon with tensor parallel"),
    ],
    ids=["experts", "muon"],
)
def test_what_would_be_wrong_is_refused(folder: Path, case: Case, words: str) -> None:
    assert words in refused(folder, case)


@pytest.mark.parametrize(("settings", "layout"), [({"ema_decay": 0.9}, FULL), (MUON, {**FULL, **ROWS})])
def test_states_go_on_from_2_to_1_to_4_processes(
    folder: Path, settings: dict[str, Any], layout: dict[str, Any]
) -> None:
    every = Case("often", settings=settings, machine={**OFTEN, **layout})
    alone = Case("often", settings=settings, machine=OFTEN)
    whole = train(folder, alone, "whole")
    first = run_ranks(train, 2, folder, case=every, work="w", stop=3)[0]
    second = train(folder, alone, "w", stop=5)
    third = run_ranks(train, 4, folder, case=every, work="w")[0]
    assert third["metrics"]["resumed_at"] == 5
    losses = first["losses"] + second["losses"] + third["losses"]
    same("2 → 1 → 4", whole, {**third, "losses": losses})
    steps = [step for step, _, _ in blocks(folder / "w" / NAME)]
    assert steps == list(range(1, len(losses) + 1))
    assert not [p for p in (folder / "w" / "states").iterdir() if not p.name.startswith("step-")]


SHAPES = (((4, 1), 16), ((2, 2), 24), ((1, 4), 6))  # (copies, parts) of matrices of so many rows


def turn(folder: Path) -> list[list[np.ndarray[Any, Any]]]:
    """For each of SHAPES, five matrices after three steps of Muon."""
    return [
        turned(init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")), rows) for shape, rows in SHAPES
    ]


def turned(mesh: DeviceMesh | None, rows: int) -> list[np.ndarray[Any, Any]]:
    """Ours of matrices that are spread over a mesh; torch's without one."""

    def spread(whole: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(whole, mesh, [Replicate(), Shard(0)]) if mesh else whole

    torch.manual_seed(0)
    found = [torch.nn.Parameter(spread(torch.randn(rows, 16))) for _ in range(5)]
    settings: dict[str, Any] = {"lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1}
    optimizer = (Muon if mesh else torch.optim.Muon)(found, **settings)
    for _ in range(3):
        for matrix in found:
            matrix.grad = spread(torch.randn(rows, 16))
        optimizer.step()
    return [full(matrix.detach()).numpy() for matrix in found]


def test_muon_of_matrices_in_parts_is_torchs_own_bit_for_bit(folder: Path) -> None:
    wanted = [turned(None, rows) for _, rows in SHAPES]
    for found in run_ranks(turn, 4, folder):
        for mine, theirs in zip(found, wanted, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_killed_process_ends_the_others_with_words(folder: Path) -> None:
    case = Case("often", machine=OFTEN)
    whole = run_ranks(train, 2, folder, case=case, work="whole")[0]
    found = collect(start_ranks(train, 2, folder, case=case, work="w", die=(1, 4)))
    assert found[1][0] == "gone" and found[0][0] == "error", found
    assert "another process ended" in found[0][1]
    resumed = run_ranks(train, 2, folder, case=case, work="w")[0]
    assert resumed["metrics"]["resumed_at"] in (3, 4)
    for name, weights in whole["weights"].items():
        assert np.array_equal(resumed["weights"][name], weights), name
    assert (folder / "w" / NAME).read_bytes() == (folder / "whole" / NAME).read_bytes()
    assert os.environ.get("RANK") is None
