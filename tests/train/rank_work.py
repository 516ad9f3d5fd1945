"""What the ranks of tests/train/test_parallel.py do; imported once by the server that forks them."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from twllm.model.build import load
from twllm.tokens.shards import TokenShard
from twllm.train.config import MachineConfig, SftConfig
from twllm.train.data import PackedData
from twllm.train.loop import Trainer

SETTINGS = {"lr": 1e-2, "epochs": 2, "batch_tokens": 320, "context": 64, "seed": 5, "eval_every": 3}  # 5 rows a step


class Stop(Exception):
    """The run is over before its end."""


def make(folder: Path, work: str, machine: dict[str, Any], settings: dict[str, Any]) -> Trainer:
    """A trainer on the folder's model and shard."""
    torch.set_num_threads(1)
    config = SftConfig.model_validate({**SETTINGS, **settings})
    how = {
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "micro_batch_tokens": 64,
        "tensorboard": False,
        "checkpoint_every_s": 1e9,
    }
    data = PackedData([TokenShard(folder / "shard")], [1.0], config.context, config.seed)
    model = load(folder / "model")
    return Trainer(
        "sft", model, data, config, MachineConfig.model_validate(how | machine), folder / work, held_out=data
    )


def train(
    folder: Path, work: str, machine: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, stop: int = 0, die: tuple[int, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train; `stop`: until so many steps are done; `die`: (rank, step) that kills itself with -9."""
    trainer = make(folder, work, machine or {}, settings or {})
    ordinary, losses = trainer.train_step, []

    def step(number: int) -> dict[str, float]:
        if stop and number == stop:
            raise Stop
        if die and die == (trainer.parallel.rank, number):
            os.kill(os.getpid(), signal.SIGKILL)
        found = ordinary(number)
        losses.append((found["loss"], found["grad_norm"]))
        return found

    trainer.train_step = step  # type: ignore[method-assign]
    try:
        metrics = trainer.run()
    except Stop:
        return {"losses": losses}
    weights = (
        {name: p.detach().clone() for name, p in trainer.model.named_parameters()} if trainer.parallel.rank == 0 else {}
    )
    return {"losses": losses, "metrics": metrics, "weights": {name: p.numpy() for name, p in weights.items()}}
