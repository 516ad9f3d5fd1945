"""What the ranks of tests/train/test_parallel.py do; imported once by the server that forks them."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from twllm.errors import UserError
from twllm.model.build import load, save
from twllm.tokens.preferences import LABELS
from twllm.tokens.shards import write_shard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, PretrainConfig, SftConfig
from twllm.train.loop import Trainer
from twllm.train.phase import train_phase
from twllm.train.rows import read_rows
from twllm.train.watch_config import WatchConfig

KINDS: dict[str, type[OptimConfig]] = {
    "pretrain": PretrainConfig, "sft": SftConfig, "positive": FeedbackConfig, "dpo": FeedbackConfig, "kto": FeedbackConfig,
}  # fmt: skip
SETTINGS = {
    "lr": 1e-2,
    "epochs": 9,
    "max_tokens": 1920,
    "batch_tokens": 320,
    "context": 64,
    "seed": 5,
}  # 6 steps of 5 rows
MACHINE = {"threads": 1, "device": "cpu", "precision": "fp32", "micro_batch_tokens": 64, "tensorboard": False}


class Stop(Exception):
    """The run is over before its end."""


@dataclass(frozen=True)
class Case:
    """One phase: which data (`kind`), which settings and start model, on which machine; `watch` as in a recipe."""

    name: str
    kind: str = "sft"
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    model: str = "model"
    watch: dict[str, Any] = field(default_factory=dict)


def write_data(folder: Path, tokenizer: ChatTokenizer, checkpoint: Path) -> None:
    """`model`, `moe` and `teacher`, and `tokens/KIND` for each kind."""
    rng = np.random.default_rng(0)

    def ids(low: int, high: int) -> list[int]:
        found: list[int] = rng.integers(2, 300, int(rng.integers(low, high))).tolist()
        return found

    tokens, system = folder / "tokens", ids(12, 13)
    chats = [(f"文件{i}", [*system, *(asked := ids(3, 9)), *(said := ids(2, 25))], [False] * (12 + len(asked)) + [True] * len(said)) for i in range(60)]  # fmt: skip
    long = [(f"文件{i}", ids(5, 110), None) for i in range(30)]
    for kind, documents in (("sft", chats), ("positive", chats), ("pretrain", long)):
        write_shard(tokens / kind / "000", documents[8:], 600, num_chars=4000)
        write_shard(tokens / kind / "held_out", documents[:8], 600, num_chars=700)
    short = [(name, ids[:30], mask[:30]) for name, ids, mask in chats]  # two of them fit into a row
    for kind, rated in (("dpo", [1, -1] * 30), ("kto", [1, 0, -1, 0] * 15)):
        write_shard(tokens / kind / "000", short, 600)
        np.save(tokens / kind / "000" / LABELS, np.asarray(rated, np.int8))
    (folder / "model").symlink_to(checkpoint)
    shape = {"vocab_size": 600, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "initializer_range": 0.2}  # fmt: skip
    torch.manual_seed(1)
    mixture = MixtralConfig(
        hidden_size=32, intermediate_size=32, num_local_experts=4, router_aux_loss_coef=0.1, **shape
    )
    save(MixtralForCausalLM(mixture), tokenizer, folder / "moe")
    save(LlamaForCausalLM(LlamaConfig(hidden_size=48, intermediate_size=96, **shape)), tokenizer, folder / "teacher")


def train(folder: Path, case: Case, work: str, stop: int = 0, die: tuple[int, int] | None = None) -> dict[str, Any]:
    """Run a phase as the stages do; `stop`: until so many steps are done; `die`: (rank, step) that kills itself with -9.

    Gives this process's (loss, gradient norm) of each step; process 0 of a whole run also the weights and the metrics.
    """
    torch.set_num_threads(1)
    given = {**SETTINGS, **case.settings}
    if teacher := given.get("teacher"):
        given["teacher"] = {**teacher, "model": str(folder / teacher["model"])}
    if case.kind in ("dpo", "kto"):
        given["method"] = case.kind
    config = KINDS[case.kind].model_validate(given)
    machine = MachineConfig.model_validate({"checkpoint_every_s": 1e9, **MACHINE, **case.machine})
    out, losses, ordinary = folder / work / "out", [], Trainer.train_step
    out.mkdir(parents=True, exist_ok=True)

    def step(self: Trainer, number: int) -> dict[str, float]:
        if stop and number == stop:
            raise Stop
        if die and die == (self.parallel.rank, number):
            os.kill(os.getpid(), signal.SIGKILL)
        found = ordinary(self, number)
        losses.append((found["loss"], found["grad_norm"]))
        return found

    Trainer.train_step = step  # type: ignore[method-assign]
    model, tokenizer = load(folder / case.model), ChatTokenizer.load(folder / case.model)
    watch = WatchConfig.model_validate(case.watch)
    places = folder / "tokens" / case.kind, out, folder / work
    try:
        metrics = train_phase(case.kind, config, [1.0], model, tokenizer, *places, machine, watch=watch)
    except Stop:
        return {"losses": losses}
    finally:
        Trainer.train_step = ordinary  # type: ignore[method-assign]
    if not (out / "model.safetensors").is_file() or "weights_fingerprint" not in metrics:
        return {"losses": losses, "metrics": metrics}
    weights = {name: tensor.float().numpy() for name, tensor in load(out).state_dict().items()}
    return {"losses": losses, "metrics": metrics, "weights": weights, "log": read_rows(folder / work / "metrics.jsonl")}


def train_all(folder: Path, jobs: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """`train` for each (case, work, stop); a refusal is told as {"error": text}."""
    found: list[dict[str, Any]] = []
    for job in jobs:
        try:
            found.append(train(folder, *job))
        except UserError as error:
            found.append({"error": str(error)})
    return found
