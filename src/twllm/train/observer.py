"""What stands beside the training loop: alarms before the update, samples after it. It reads and writes logs, never weights or random numbers.

The loop calls `before_update` between the backward pass and the optimizer, `after_step` when the step is logged. With several
processes all of them come along whenever one has something to look at, since a sharded forward pass needs everyone.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.model.sizes import Size, train_flops_per_token
from twllm.train import distributed
from twllm.train.alarms import SHOWN, Alarm, AlarmLog, Document, SpikeDetector, Suspect, document_losses
from twllm.train.ledger import NAME as LEDGER
from twllm.train.machine import peak_tflops
from twllm.train.objective import TokenObjective
from twllm.train.plots import BY_SHARD, MOST_SHARDS, plot_loss, plot_training
from twllm.train.rows import read_rows
from twllm.train.samples import SampleLog, Sampler
from twllm.train.watch import FACTS, NoWatcher, Watcher
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
        self.detector = SpikeDetector(config.alarm_z, trainer.data.shard_of) if config.alarms and alarms else None
        if self.detector and isinstance(trainer.objective, TokenObjective):
            trainer.objective.told = []
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
                    self.detector.remember([row["loss"]])

    def watcher_facts(self) -> dict[str, Any]:
        """What the watcher is made with: the trackers' settings, and what MFU takes."""
        return {
            "watch": self.config,
            "flops_per_token": model_flops_per_token(self.trainer.model, self.trainer.config.context),
            "peak_flops": 1e12 * (self.peak_tflops or known_peak(self.trainer.machine)) * distributed.count(),
        }

    def before_update(
        self, step: int, batches: "Sequence[Batch]", summed: Sequence[float], norm: float
    ) -> dict[str, float]:
        """`summed`: each micro-batch's summed loss, in nats; `step` counts from 0. Returns what is worth logging."""
        if not self.detector:
            return {}
        labelled = [int((batch.labels >= 0).sum()) for batch in batches]
        losses = [loss / count for loss, count in zip(summed, labelled, strict=True) if count]
        told = getattr(self.trainer.objective, "told", None) or []
        documents = document_losses(batches, told) if len(told) == len(batches) else []
        z, usual = self.detector.score(losses), self.detector.usual()
        odd = self.detector.odd(documents) or (
            self.detector.odd(documents, jumped=True) if z >= self.detector.limit else []
        )
        mine = []
        if odd or z >= self.detector.limit:
            suspects = [self._suspect(*row) for row in odd[:SHOWN]]
            loss = round(max(losses, default=usual), 4)
            numbers = (round(usual, 4), round(z, 1), round(norm, 4))
            mine = [Alarm(step + 1, loss, *numbers, suspects, len(odd), len(documents))]
        self.detector.remember(losses, documents)
        if anyone(bool(mine)):
            found = [alarm for alarms in distributed.gather(mine) for alarm in alarms]
            self.pending += found
            if self.alarm_log and distributed.is_main():
                for alarm in found:
                    self.alarm_log.write(alarm)
        return self._loss_by_shard(documents)

    def _loss_by_shard(self, documents: Sequence[Document]) -> dict[str, float]:
        """Mean loss of each shard's tokens in this step, where there are several."""
        shards = self.trainer.data.shards
        if not 2 <= len(shards) <= MOST_SHARDS:
            return {}
        sums = [0.0] * (2 * len(shards))
        for document, loss, tokens in documents:
            shard = self.trainer.data.shard_of(document)
            sums[2 * shard] += loss * tokens
            sums[2 * shard + 1] += tokens
        found = zip(shards, *(iter(distributed.all_sum(sums)),) * 2, strict=True)
        return {f"{BY_SHARD}{shard.folder.name}": total / tokens for shard, total, tokens in found if tokens}

    def _suspect(self, document: int, loss: float, tokens: int) -> Suspect:
        assert self.detector
        data = self.trainer.data
        usual = self.detector.usual_of(data.shard_of(document))
        return Suspect(*data.document_name(document), round(loss, 4), tokens, round(usual, 4))

    def after_step(self, step: int, watcher: Watcher | NoWatcher) -> None:
        """Show what came up in optimizer step `step` (from 1), and ask the prompts where it is time."""
        for alarm in self.pending:
            watcher.alarm(step, alarm.text(), loud=alarm.z >= self.config.alarm_z)
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
    for log in ("alarms.jsonl", "samples.jsonl", FACTS, LEDGER):
        if (work / log).is_file():
            shutil.copyfile(work / log, out / log)
    plot_loss(rows, out / "loss.png", name)
    plot_training(rows, alarms, out / "training.png", name)
