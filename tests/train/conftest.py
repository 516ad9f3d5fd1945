"""A small data set and a trainer on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from twllm.model.build import load
from twllm.tokens.shards import TokenShard, write_shard
from twllm.train.config import MachineConfig, SftConfig
from twllm.train.data import PackedData
from twllm.train.loop import Trainer


@pytest.fixture
def shard(tmp_path: Path) -> TokenShard:
    """40 documents of 5 to 40 tokens."""
    rng = np.random.default_rng(0)
    documents = [(f"文件{i}", rng.integers(2, 300, int(rng.integers(5, 40))).tolist(), None) for i in range(40)]
    write_shard(tmp_path / "shard", documents, 600)
    return TokenShard(tmp_path / "shard")


@pytest.fixture
def make_trainer(tiny_checkpoint: Path, shard: TokenShard) -> Callable[..., Trainer]:
    """Trainer in a given work folder; keyword arguments go to the phase's or the machine's settings."""

    def make(
        work: Path,
        checkpoint_every_s: float = 1e9,
        micro_batch_tokens: int = 8192,
        precision: str = "fp32",
        threads: int = 1,
        **settings: object,
    ) -> Trainer:
        config = SftConfig.model_validate(
            {"lr": 1e-2, "epochs": 4, "batch_tokens": 128, "context": 64, "seed": 5, "held_out": 0.5, **settings}
        )
        machine = MachineConfig.model_validate(
            {
                "threads": threads,
                "precision": precision,
                "checkpoint_every_s": checkpoint_every_s,
                "micro_batch_tokens": micro_batch_tokens,
                "tensorboard": False,
            }
        )
        data = PackedData([shard], [1.0], config.context, config.seed)
        return Trainer("sft", load(tiny_checkpoint), data, config, machine, work, held_out=data)

    return make
