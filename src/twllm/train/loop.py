"""The one training loop: continued pretraining, SFT and feedback differ only in the rows and the loss they bring.

Batch size is given in tokens; micro-batches and accumulation are computed. The loss of a step is the mean over all its
labelled tokens (or rated answers, or pairs: objective.py), whatever the accumulation and the number of processes: a step's micro-batches
are dealt out to them in turn, losses and gradients are summed (parallel.py). A run that was killed goes on from its last state and ends with
bit-equal weights (same machine settings). A loss that is not finite stops the run before the optimizer step and names the documents.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from twllm.artifact import fingerprint
from twllm.errors import UserError
from twllm.tokens.pack import Row
from twllm.train import distributed
from twllm.train.config import MachineConfig, OptimConfig
from twllm.train.context import check_cut
from twllm.train.data import Batch, PackedData
from twllm.train.execution import prepare
from twllm.train.keep import Keeper
from twllm.train.ledger import NAME as LEDGER
from twllm.train.ledger import Ledger
from twllm.train.loss import check_model
from twllm.train.machine import Machine, resolve_machine
from twllm.train.methods import apply
from twllm.train.objective import Objective, TokenObjective
from twllm.train.optim import build_optimizer, learning_rate, set_rate
from twllm.train.parallel import Parallel, inside, local, split_groups
from twllm.train.prefetch import Prefetch
from twllm.train.state import Saver, load_state, state_tensors
from twllm.train.watch import NoWatcher, Watcher

if TYPE_CHECKING:
    from twllm.train.observer import Observer


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


def make_plan(config: OptimConfig, data: PackedData, micro_batch_tokens: int, processes: int = 1) -> Plan:
    """Steps from epochs (rounded up to whole steps) or max_tokens, whichever is less; no process's micro-batch is larger than its share."""
    rows_per_step = max(1, config.batch_tokens // config.context)
    steps = math.ceil(data.num_rows(config.epochs) / rows_per_step)
    if config.max_tokens:
        steps = min(steps, max(1, config.max_tokens // (rows_per_step * config.context)))
    share = -(-rows_per_step // processes)
    return Plan(max(1, steps), rows_per_step, max(1, min(share, micro_batch_tokens // config.context)), config.context)


class Trainer:
    """Trains `model` in place on `data`; `work` keeps resumable states and logs until the phase's artifact is written."""

    def __init__(
        self, name: str, model: PreTrainedModel, data: PackedData, config: OptimConfig, machine: MachineConfig, work: Path,
        held_out: PackedData | None = None, objective: Callable[[PreTrainedModel, Machine], Objective] = TokenObjective,
    ) -> None:  # fmt: skip
        self.name, self.data, self.config, self.work, self.held_out = name, data, config, work, held_out
        longest = max(int(part.lengths.max()) for part in (data, held_out) if part is not None)
        check_model(model, config.context if config.forgetting else min(config.context, longest))
        if machine.context_parallel > 1:
            check_cut(name, model, config)
        distributed.start(machine)
        self.parallel = Parallel(machine)
        self.plan = make_plan(config, data, machine.micro_batch_tokens * machine.context_parallel, self.parallel.count)
        self.machine: Machine = resolve_machine(machine, self.plan.num_tokens)
        self.save_every_s, self.tensorboard = machine.checkpoint_every_s, machine.tensorboard
        self.methods = apply(model, config, self.machine)
        self.model = model.to(self.machine.device)
        shape = (self.plan.rows_per_micro, self.parallel.tokens(config.context))
        cut = machine.context_parallel > 1
        self.machine, self.execution = prepare(self.model, self.machine, shape, self.parallel.fuses, cut)
        self.parallel.split(self.model, self.machine)
        self.batches = Prefetch(self._make_batches, self.plan.steps)
        self.optimizer = build_optimizer(self.model, config)
        if not self.parallel.fuses:
            split_groups(self.optimizer)
        self.objective = objective(self.model, self.machine)
        self.keeper = Keeper(self.model, config, work / "best", held_out is not None)
        self.observer: Observer | None = None  # alarms and samples; set by phase.py
        self.rate = lambda step: learning_rate(config, step, self.plan.steps)  # the learning-rate finder sets its own

    def run(self) -> dict[str, Any]:
        """Train to the end; returns metrics (final losses, tokens, seconds of this process). With several processes the model is whole
        again in process 0 alone.

        Raises:
            UserError: a loss is not finite, the state is another run's, the disk or the GPU is full, another process is gone.
        """
        try:
            with distributed.explain_lost_process(self.name):
                metrics = self._run()
                self.parallel.gather(self.model)
        except torch.OutOfMemoryError as error:
            what = f"GPU 記憶體不夠 (out of GPU memory): {str(error).splitlines()[0]}"
            fix = '把 micro_batch_tokens 減半，或用 checkpointing = "selective"、"full"；結果不變，從上次的中斷點接著跑'
            raise UserError(what, f"{self.name}：machine.micro_batch_tokens", fix) from error
        return metrics

    def _run(self) -> dict[str, Any]:
        facts = {
            "name": self.name,
            "config": self.config.model_dump(mode="json", exclude=self.config.unseen),
            "machine": self.machine.as_dict(),
            "steps": self.plan.steps,
            "processes": self.parallel.facts,
        }
        self._check_same_data()
        saver = Saver(self.work / "states")
        step = first = load_state(saver.root, self.model, self.optimizer, facts, self.keeper.resume)
        if step and distributed.is_main():
            print(f"▶ {self.name}：從第 {step} 步接續，共 {self.plan.steps} 步 (resuming)", file=sys.stderr)
        started = time.perf_counter()
        metrics: dict[str, Any] = {
            "steps": self.plan.steps,
            "resumed_at": step,
            "padding_share": round(self.data.waste, 4),
        }
        self.model.train()
        if self.observer:
            self.observer.begin(step)
        main = distributed.is_main()
        ledger = Ledger(self.work / LEDGER, self.data, self.plan.rows_per_step, step) if main else None
        try:
            with self._watcher(step) as watcher:
                if step == 0 and self.held_out:
                    watcher.log(0, 0, **self.evaluate())
                saved = time.perf_counter()
                while step < self.plan.steps and not self.keeper.stop:
                    values = self.train_step(step)
                    step += 1
                    if ledger:
                        ledger.write(step)
                    values |= self._after_step(step)
                    watcher.log(step, self.plan.rows_per_step * self.plan.context, **values)
                    if self.observer:
                        self.observer.after_step(step, watcher)
                    metrics |= {key: value for key, value in values.items() if key != "lr"}
                    if step < self.plan.steps and not self.keeper.stop and self._is_time(saved):
                        saved = time.perf_counter()
                        self._save(saver, step, facts)
        finally:
            saver.close()
            if ledger:
                ledger.close()
        if self.keeper.stop and step < self.plan.steps:
            metrics["stopped_at"] = step
        metrics |= self.methods.facts | self.keeper.finish()
        metrics |= {
            "tokens": step * self.plan.rows_per_step * self.plan.context,
            "tokens_this_time": (step - first) * self.plan.rows_per_step * self.plan.context,
            "train_s": round(time.perf_counter() - started, 2),
            "machine": self.machine.as_dict(),
        }
        if self.parallel.facts:
            metrics["processes"] = self.parallel.facts
        self.methods.remove()
        self.execution.remove()
        return metrics

    def _watcher(self, step: int) -> Watcher | NoWatcher:
        if not distributed.is_main():
            return NoWatcher()
        seen = self.observer.watcher_facts() if self.observer else {}
        return Watcher(self.work, self.name, step, self.plan.steps, self.tensorboard, **seen)

    def _after_step(self, step: int) -> dict[str, float]:
        """Averages, held-out losses."""
        self.keeper.after_step(step)
        often = self.config.eval_every
        if not self.held_out or not (step == self.plan.steps or (often and step % often == 0)):
            return {}
        values = self.evaluate()
        return values | self.keeper.evaluated(step, values, self.evaluate)

    def _is_time(self, saved: float) -> bool:
        """Whether a state is due; process 0 has the clock."""
        return distributed.main_says(time.perf_counter() - saved > self.save_every_s)

    def _save(self, saver: Saver, step: int, facts: dict[str, Any]) -> None:
        tensors, numbers = state_tensors(self.model, self.optimizer)
        kept = self.keeper.facts
        moments = sorted(name for name in tensors if not name.startswith("weight."))
        more = {**facts, **kept, "moments": moments, "numbers": numbers}
        saver.save(step, tensors | self.keeper.tensors, more, lambda: self.keeper.is_safe(kept))

    def _check_same_data(self) -> None:
        """All processes read the same documents.

        Raises:
            UserError: they do not.
        """
        mine = [
            self.data.lengths.tolist()[:1000],
            len(self.data.lengths),
            repr(self.data.rows(0, self.plan.rows_per_step)),
        ]
        if len({repr(other) for other in distributed.gather(fingerprint(mine))}) > 1:
            what = "各行程讀到的資料不同 (the processes do not read the same data)"
            raise UserError(what, self.name, "每台主機都要看到同一份詞元資料夾（共用檔案系統）")

    def train_step(self, step: int) -> dict[str, float]:
        """One optimizer step: accumulate micro-batches, check, clip, step."""
        lr = self.rate(step)
        set_rate(self.optimizer, lr)
        batches = self.batches(step)
        divisor = max(1.0, *distributed.all_sum([self.objective.begin(batches)]))
        found: list[torch.Tensor] = []  # read once, at the end: a GPU is not waited for between micro-batches
        for number, batch in enumerate(batches, 1):
            self.parallel.begin_micro(number == len(batches))
            self._seed(step, self.parallel.rank + (number - 1) * self.parallel.count)
            with self.execution.forward_context():
                loss = self.loss(batch) / divisor
            loss.backward()
            found.append(loss.detach())
        losses: list[float] = torch.stack(found).tolist()
        total = distributed.all_sum([sum(losses)])[0]
        norm = self.parallel.clip(self.model, self.config.clip)
        if not (math.isfinite(total) and math.isfinite(norm)):
            self._stop_not_finite(step, batches, total, norm)
        seen = {}
        if self.observer:
            seen = self.observer.before_update(step, batches, [loss * divisor for loss in losses], norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": norm, "lr": lr, **self.objective.metrics(), **seen}

    def _seed(self, step: int, micro: int) -> None:
        """Dropout and noise are functions of the step and of the micro-batch's number in it, whichever process computes it."""
        torch.manual_seed(((self.config.seed * 1_000_003 + step) * 65_537 + micro) % (1 << 63))

    def _make_batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step; a function of the step alone."""
        return self._deal(self.data, self.data.rows(step * self.plan.rows_per_step, self.plan.rows_per_step))

    def _deal(self, data: PackedData, rows: list[Row]) -> list[Batch]:
        """Every `count`th micro-batch of these rows; as many for each process, since a sharded forward pass needs all of them."""
        micro, count = self.plan.rows_per_micro, self.parallel.count
        parts = [rows[i : i + micro] for i in range(0, len(rows), micro)]
        mine = [data.batch(part) for part in parts[self.parallel.rank :: count]]
        if len(mine) < -(-len(parts) // count):
            filler = data.batch(parts[0])
            mine.append(replace(filler, labels=torch.full_like(filler.labels, -100), filler=True))
        return [self.parallel.cut(batch) for batch in mine]

    def loss(self, batch: Batch) -> torch.Tensor:
        """Summed loss of a micro-batch."""
        self.methods.announce(batch)
        return inside(self.model, self.objective.loss, batch)

    def _stop_not_finite(self, step: int, batches: list[Batch], total: float, norm: float) -> None:
        """Name the step and the documents; the weights are those of the step before."""
        broken = [name for name, p in self.model.named_parameters() if not bool(local(p.detach()).isfinite().all())]
        if any(distributed.gather(bool(broken))):
            of = "重新下載或重做起點模型：這不是資料的問題" if step == 0 else "降低 lr，從頭開始"
            raise (UserError if distributed.is_main() else distributed.FollowedError)(
                f"模型的權重裡有 NaN 或無限大 (weights are not finite): {'、'.join(broken[:3]) or '在別的行程'}", f"{self.name}：第 {step + 1} 步", of,
            )  # fmt: skip
        losses = [float(self.loss(batch).detach()) for batch in batches]
        guilty = [row for b, loss in zip(batches, losses, strict=True) if not math.isfinite(loss) for row in b.rows]
        found = [row for rows in distributed.gather(guilty) for row in rows]
        names = self.data.names(found or [row for batch in batches for row in batch.rows])
        shown = "、".join(names[:5]) + (f" …（共 {len(names)} 份文件）" if len(names) > 5 else "")
        raise (UserError if distributed.is_main() else distributed.FollowedError)(
            f"第 {step + 1} 步的損失不是有限數 (non-finite): loss {total}, grad norm {norm}", f"{self.name}：{shown}",
            "權重停在上一步；檢查這些文件，或降低 lr",
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss on the held-out rows and, for whole texts, bits per character (independent of the tokenizer)."""
        assert self.held_out is not None
        self.model.eval()
        total, labelled = 0.0, 0
        for batch in self._deal(self.held_out, self.held_out.epoch_rows(0)):
            total += float(self.loss(batch))
            labelled += int((batch.labels >= 0).sum())
        total, counted = distributed.all_sum([total, labelled])
        self.model.train()
        result = {"held_out_loss": total / max(1, counted)}
        if chars := sum(shard.index.get("num_chars", 0) for shard in self.held_out.shards):
            result["held_out_bits_per_char"] = total / math.log(2) / chars
        return result
