"""What stands beside the training loop: alarms before the update, samples after it. It reads and writes logs, never weights or random numbers.

The loop calls `before_update` between the backward pass and the optimizer, `after_step` when the step is logged. With several
processes all of them come along whenever one has something to look at, since a sharded forward pass needs everyone.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from twllm.model.sizes import Size, train_flops_per_token
from twllm.train import distributed
from twllm.train.alarms import Alarm, AlarmLog, SpikeDetector, as_suspects, guilty
from twllm.train.ledger import NAME as LEDGER
from twllm.train.machine import peak_tflops
from twllm.train.parallel import inside
from twllm.train.plots import plot_loss, plot_training
from twllm.train.rows import read_rows
from twllm.train.samples import SampleLog, Sampler
from twllm.train.watch import NoWatcher, Watcher
from twllm.train.watch_config import WatchConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from twllm.tokens.tokenizer import ChatTokenizer
    from twllm.train.data import Batch
    from twllm.train.loop import Trainer
    from twllm.train.machine import Machine


class Observer:
    """Of one phase. `chat`: prompts go through the template."""

    def __init__(
        self, trainer: "Trainer", tokenizer: "ChatTokenizer", config: WatchConfig, chat: bool, alarms: bool, peak_tflops: float | None
    ) -> None:  # fmt: skip
        self.trainer, self.config, self.peak_tflops = trainer, config, peak_tflops
        self.detector = SpikeDetector(config.alarm_z) if config.alarms and alarms else None
        context = trainer.config.context
        self.sampler = Sampler(config, tokenizer, chat, context) if config.prompts else None
        self.alarm_log: AlarmLog | None = None
        self.sample_log: SampleLog | None = None
        self.pending: list[Alarm] = []

    def begin(self, step: int) -> None:
        """The phase starts or goes on at `step`: later lines of its logs are cut off, what was usual is read back."""
        work: Path = self.trainer.work
        cut = step if distributed.is_main() else None
        self.alarm_log, self.sample_log = AlarmLog(work / "alarms.jsonl", cut), SampleLog(work / "samples.jsonl", cut)
        if self.detector:
            for row in read_rows(work / "metrics.jsonl"):
                if 0 < row["step"] <= step and "loss" in row:
                    self.detector.remember([row["loss"]], row.get("grad_norm", 0.0))

    def watcher_facts(self) -> dict[str, Any]:
        """What the watcher is made with: the trackers' settings, and what MFU takes."""
        return {
            "watch": self.config,
            "flops_per_token": model_flops_per_token(self.trainer.model, self.trainer.config.context),
            "peak_flops": 1e12 * (self.peak_tflops or known_peak(self.trainer.machine)) * distributed.count(),
        }

    def before_update(self, step: int, batches: "Sequence[Batch]", summed: Sequence[float], norm: float) -> None:
        """`summed`: each micro-batch's summed loss, in nats; `step` counts from 0."""
        if not self.detector:
            return
        labelled = [int((batch.labels >= 0).sum()) for batch in batches]
        losses = [loss / count for loss, count in zip(summed, labelled, strict=True) if count]
        z = self.detector.score(losses, norm)
        if anyone(self.detector.jumps(z)):
            told = len(self.pending)
            self._look(step + 1, batches, losses, norm, z[0])
            self.pending[told:] = [alarm for found in distributed.gather(self.pending[told:]) for alarm in found]
            if self.alarm_log and distributed.is_main():
                for alarm in self.pending[told:]:
                    self.alarm_log.write(alarm)
        self.detector.remember(losses, norm)

    def _look(self, step: int, batches: "Sequence[Batch]", losses: Sequence[float], norm: float, z: float) -> None:
        assert self.detector
        documents = [row for batch in batches for row in self._document_losses(batch)]
        recent = self.detector.recent()
        found = guilty(documents, recent) if recent else []
        if not found and z < self.detector.limit:
            return  # the norm swung, or another process has something; no document here is odd
        named = found or sorted(documents, key=lambda row: -row[1] * row[2])[:3]
        suspects = as_suspects(named, self.trainer.data.document_name)
        usual = median(recent)
        alarm = Alarm(
            step, round(max(losses, default=usual), 4), round(usual, 4), round(z, 1), round(norm, 4), suspects
        )
        self.pending.append(alarm)
        if self.alarm_log:
            self.alarm_log.write(alarm)

    @torch.no_grad()
    def _document_losses(self, batch: "Batch") -> list[tuple[int, float, int]]:
        """(document, mean loss, labelled tokens) of what the batch holds, with the weights that made the jump."""
        from twllm.train.preference import sequence_logprobs

        model, machine = self.trainer.model, self.trainer.machine
        model.eval()
        with machine.autocast(), torch.compiler.set_stance("force_eager"):
            found = inside(model, sequence_logprobs, model, batch.to(model.device), machine.attention)
        sums = (-found).tolist()
        model.train()
        numbers = [document for row in batch.rows for document, _, _ in row.pieces]
        counts = [int((batch.labels[row, start : start + length] >= 0).sum()) for row, start, length in batch.pieces]
        return [
            (number, total / count, count) for number, total, count in zip(numbers, sums, counts, strict=True) if count
        ]

    def after_step(self, step: int, watcher: Watcher | NoWatcher) -> None:
        """Show what came up in optimizer step `step` (from 1), and ask the prompts where it is time."""
        for alarm in self.pending:
            watcher.alarm(step, alarm.text())
        self.pending = []
        if self.sampler and self.sampler.due(step):
            answers = self.sampler.answers(self.trainer.model, self.trainer.machine)
            if self.sample_log and distributed.is_main():
                self.sample_log.write(step, self.config.prompts, answers)
            watcher.sample(step, self.config.prompts, answers)


def model_flops_per_token(model: "PreTrainedModel", context: int) -> float:
    """By the dense Llama formula (model/sizes.py); 0 for a model whose config does not say its shape."""
    config = model.config.get_text_config()
    try:
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = Size(config.hidden_size, config.num_hidden_layers, heads, kv_heads, config.intermediate_size)
    except AttributeError:
        return 0.0
    return float(train_flops_per_token(size, config.vocab_size, context))


def known_peak(machine: "Machine") -> float:
    """TFLOP/s of a known GPU; of a CPU it is measured where somebody looks on (a third of a second); 0: not known."""
    if machine.device == "cuda" or sys.stderr.isatty():
        return peak_tflops(machine)
    return 0.0


def anyone(flag: bool) -> bool:
    """Whether any process says so."""
    return distributed.all_sum([float(flag)])[0] > 0


def keep_logs(work: Path, out: Path, name: str) -> None:
    """A phase's logs beside its checkpoint, with `loss.png` and `training.png`."""
    rows, alarms = read_rows(work / "metrics.jsonl"), read_rows(work / "alarms.jsonl")
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for log in ("alarms.jsonl", "samples.jsonl", LEDGER):
        if (work / log).is_file():
            shutil.copyfile(work / log, out / log)
    plot_loss(rows, out / "loss.png", name)
    plot_training(rows, alarms, out / "training.png", name)
