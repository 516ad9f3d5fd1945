"""The one training loop: continued pretraining, SFT and feedback differ only in the rows and the loss they bring.

Batch size is given in tokens; micro-batches and accumulation are computed. The loss of a step is the mean over all its
labelled tokens (or rated answers, or pairs: objective.py), whatever the accumulation. A run that was killed goes on from its last state and ends with bit-equal
weights (same machine settings). A loss that is not finite stops the run before the optimizer step and names the documents.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from twllm.errors import UserError
from twllm.train.config import MachineConfig, OptimConfig
from twllm.train.data import Batch, PackedData
from twllm.train.loss import check_model
from twllm.train.machine import Machine, resolve_machine
from twllm.train.objective import Objective, TokenObjective
from twllm.train.optim import build_optimizer, learning_rate
from twllm.train.state import load_state, save_state
from twllm.train.watch import Watcher


@dataclass(frozen=True)
class Plan:
    """How many steps of how many rows."""

    steps: int
    rows_per_step: int
    rows_per_micro: int
    context: int

    @property
    def num_tokens(self) -> int:
        """Tokens the run sees, padding included."""
        return self.steps * self.rows_per_step * self.context


def make_plan(config: OptimConfig, data: PackedData, micro_batch_tokens: int) -> Plan:
    """Steps from epochs (rounded up to whole steps) or max_tokens, whichever is less."""
    rows_per_step = max(1, config.batch_tokens // config.context)
    steps = math.ceil(data.num_rows(config.epochs) / rows_per_step)
    if config.max_tokens:
        steps = min(steps, max(1, config.max_tokens // (rows_per_step * config.context)))
    return Plan(
        max(1, steps), rows_per_step, max(1, min(rows_per_step, micro_batch_tokens // config.context)), config.context
    )


class Trainer:
    """Trains `model` in place on `data`; `work` keeps resumable states and logs until the phase's artifact is written."""

    def __init__(
        self, name: str, model: PreTrainedModel, data: PackedData, config: OptimConfig, machine: MachineConfig, work: Path,
        held_out: PackedData | None = None, objective: Callable[[PreTrainedModel, Machine], Objective] = TokenObjective,
    ) -> None:  # fmt: skip
        self.name, self.data, self.config, self.work, self.held_out = name, data, config, work, held_out
        check_model(model, config.context)
        self.plan = make_plan(config, data, machine.micro_batch_tokens)
        self.machine: Machine = resolve_machine(machine, self.plan.num_tokens)
        self.save_every_s, self.tensorboard = machine.checkpoint_every_s, machine.tensorboard
        self.model = model.to(self.machine.device)
        self._use_attention(self.machine.attention)
        self.optimizer = build_optimizer(self.model, config)
        if self.machine.compile:
            self.model.get_decoder().compile(dynamic=False)
        self.objective = objective(self.model, self.machine)

    def _use_attention(self, form: str) -> None:
        from twllm.train.attention import NAME

        self.model.set_attn_implementation(NAME if form == "pieces" else "sdpa")

    def run(self) -> dict[str, Any]:
        """Train to the end; returns metrics (final losses, tokens, seconds of this process)."""
        facts = {
            "name": self.name,
            "config": self.config.model_dump(mode="json", exclude={"eval_every"}),
            "machine": self.machine.as_dict(),
            "steps": self.plan.steps,
        }
        step = load_state(self.work / "states", self.model, self.optimizer, facts)
        started = saved = time.perf_counter()
        metrics: dict[str, Any] = {
            "steps": self.plan.steps,
            "resumed_at": step,
            "padding_share": round(self.data.waste, 4),
        }
        self.model.train()
        with Watcher(self.work, self.name, step, self.plan.steps, self.tensorboard) as watcher:
            if step == 0 and self.held_out:
                watcher.log(0, 0, **self.evaluate())
            while step < self.plan.steps:
                values = self.train_step(step)
                step += 1
                if self.held_out and (
                    step == self.plan.steps or (self.config.eval_every and step % self.config.eval_every == 0)
                ):
                    values |= self.evaluate()
                watcher.log(step, self.plan.rows_per_step * self.plan.context, **values)
                metrics |= {key: value for key, value in values.items() if key != "lr"}
                if step < self.plan.steps and time.perf_counter() - saved > self.save_every_s:
                    save_state(self.work / "states", step, self.model, self.optimizer, facts)
                    saved = time.perf_counter()
        metrics |= {
            "tokens": self.plan.num_tokens,
            "train_s": round(time.perf_counter() - started, 2),
            "machine": self.machine.as_dict(),
        }
        self.model.set_attn_implementation("sdpa")
        return metrics

    def train_step(self, step: int) -> dict[str, float]:
        """One optimizer step: accumulate micro-batches, check, clip, step."""
        lr = learning_rate(self.config, step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(
            self.config.seed * 1_000_003 + step
        )  # dropout, where a model has it, is a function of the step too
        rows = self.data.rows(step * self.plan.rows_per_step, self.plan.rows_per_step)
        micro = self.plan.rows_per_micro
        batches = [self.data.batch(rows[i : i + micro]) for i in range(0, len(rows), micro)]
        divisor = self.objective.begin(batches)
        total = 0.0
        for batch in batches:
            loss = self.loss(batch) / divisor
            loss.backward()
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip))
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._stop_not_finite(step, batches, total, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": norm, "lr": lr, **self.objective.metrics()}

    def loss(self, batch: Batch) -> torch.Tensor:
        """Summed loss of a micro-batch."""
        return self.objective.loss(batch)

    def _stop_not_finite(self, step: int, batches: list[Batch], total: float, norm: float) -> None:
        """Name the step and the documents; the weights are those of the step before."""
        guilty = [b for b in batches if not math.isfinite(float(self.loss(b).detach()))] or batches
        names = self.data.names([row for batch in guilty for row in batch.rows])
        shown = "、".join(names[:5]) + (f" …（共 {len(names)} 份文件）" if len(names) > 5 else "")
        raise UserError(
            f"第 {step + 1} 步的損失不是有限數 (non-finite): loss {total}, grad norm {norm}", f"{self.name}：{shown}",
            "權重停在上一步；檢查這些文件，或降低 lr",
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss on the held-out rows and, for whole texts, bits per character (independent of the tokenizer)."""
        assert self.held_out is not None
        self.model.eval()
        total, labelled = 0.0, 0
        rows = self.held_out.epoch_rows(0)
        for i in range(0, len(rows), self.plan.rows_per_micro):
            batch = self.held_out.batch(rows[i : i + self.plan.rows_per_micro])
            total += float(self.loss(batch))
            labelled += int((batch.labels >= 0).sum())
        self.model.train()
        result = {"held_out_loss": total / max(1, labelled)}
        if chars := sum(shard.index.get("num_chars", 0) for shard in self.held_out.shards):
            result["held_out_bits_per_char"] = total / math.log(2) / chars
        return result
