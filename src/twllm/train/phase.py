"""One training phase from folders to a folder: the start weights, the shards, the loop, a Hugging Face checkpoint."""

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.errors import UserError
from twllm.model.rope_config import RopeConfig
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, PretrainConfig, SftConfig
from twllm.train.data import PackedData
from twllm.train.teacher_config import TeacherConfig
from twllm.train.watch_config import WatchConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from twllm.train.loop import Trainer


def start_model(
    size: str | None, model: str | None, revision: str | None, tokenizer: ChatTokenizer, context: int, seed: int,
    init: str = "mean", multiple: int = 1, texts: Sequence[str] = (), *, rope: RopeConfig | None = None,
) -> "PreTrainedModel":  # fmt: skip
    """Random weights of a size, or a checkpoint: positions as `rope` says, the embedding made to fit the tokenizer."""
    from twllm.model import build
    from twllm.model.hub import fetch
    from twllm.model.rope import context_limit, extend

    if model is None:
        return build.build(str(size), tokenizer, context, seed)
    folder = fetch(model, revision)
    found = build.load(folder)
    if rope:
        extend(found, rope)
    limit = context_limit(found.config)
    if limit is not None and context > limit:
        raise UserError(
            f"context {context} 超過模型的 {limit} (longer than the model's positions)",
            model,
            f"把 context 降到 {limit} 以下，或用 [base.rope] 加長",
        )
    old = ChatTokenizer.load(folder)
    rows = len(found.get_input_embeddings().weight)
    if rows < (needed := old.needed_rows):
        what = f"分詞器要 {needed:,} 列詞嵌入，模型只有 {rows:,} 列 (the tokenizer is not this model's)"
        raise UserError(what, folder, "放回這個模型原來的分詞器檔")
    if tokenizer.vocab_size > old.vocab_size:
        from twllm.model.vocabulary import resize_vocabulary

        resize_vocabulary(found, old, tokenizer, init, multiple, texts)
    return found


def compares(phase: OptimConfig) -> bool:
    """Whether the phase learns by comparing (KTO, DPO): its documents come in twos."""
    return isinstance(phase, FeedbackConfig) and phase.method != "sft-positive"


def teacher_of(phase: OptimConfig) -> TeacherConfig | None:
    """The larger model that the phase learns from, if any."""
    return phase.teacher if isinstance(phase, PretrainConfig | SftConfig) else None


def load_data(tokens: Path, weights: Sequence[float], phase: OptimConfig) -> tuple[PackedData, PackedData | None]:
    """Training rows from the shards `000`, `001`, … with their weights, and held-out rows if there are any."""
    shards = [TokenShard(tokens / f"{i:03}") for i in range(len(weights))]
    data = PackedData(shards, weights, phase.context, phase.seed, group=2 if compares(phase) else 1)
    held = TokenShard(tokens / "held_out") if (tokens / "held_out").is_dir() else None
    return data, PackedData([held], [1.0], phase.context, phase.seed) if held and len(held) else None


def make_trainer(
    name: str, phase: OptimConfig, weights: Sequence[float], model: "PreTrainedModel", tokenizer: ChatTokenizer, tokens: Path,
    work: Path, machine: MachineConfig,
) -> "Trainer":  # fmt: skip
    """The trainer of one phase, with the objective that its config asks for."""
    from twllm.train.loop import Trainer
    from twllm.train.objective import TokenObjective
    from twllm.train.preference import PreferenceObjective

    data, held_out = load_data(tokens, weights, phase)
    objective: Any = TokenObjective
    if compares(phase):
        assert isinstance(phase, FeedbackConfig)
        objective = partial(PreferenceObjective, data=data, config=phase, work=work)
    elif teacher := teacher_of(phase):
        from twllm.train.distill import DistillObjective, load_teacher

        objective = partial(DistillObjective, teacher=load_teacher(teacher, tokenizer, phase.context), config=teacher)
    return Trainer(name, model, data, phase, machine, work, held_out, objective)


def train_phase(
    name: str, phase: OptimConfig, weights: Sequence[float], model: "PreTrainedModel", tokenizer: ChatTokenizer, tokens: Path,
    out: Path, work: Path, machine: MachineConfig, again: "Callable[[], PreTrainedModel] | None" = None,
    watch: WatchConfig | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and fill `out` with the checkpoint, the logs and their pictures; returns the metrics for the manifest.

    With several processes, process 0 fills it. With adapters, `out` is the merged model and `out/adapter` the adapter; `again` makes the start model anew: what was quantised or
    rounded of it (adapters.py, frozen.py) is saved as it was.
    """
    from twllm.model.build import save, weights_fingerprint
    from twllm.train.distributed import explain_lost_process, is_main
    from twllm.train.observer import Observer, keep_logs

    with explain_lost_process(name):
        trainer = make_trainer(name, phase, weights, model, tokenizer, tokens, work, machine)
        chat, alarms = not isinstance(phase, PretrainConfig), not compares(phase)
        tell_repeats(trainer)
        tell_space(trainer, out.parent)
        trainer.observer = Observer(trainer, tokenizer, watch or WatchConfig(), chat, alarms, machine.peak_tflops)
        forgetting = _Watched(trainer, tokenizer) if phase.forgetting else None
    metrics = trainer.run()
    if not is_main():
        return metrics
    if forgetting:
        metrics["forgetting"] = forgetting.report(out)
    frozen = trainer.methods.frozen
    if adapter := trainer.methods.adapter:
        adapter.save(out / "adapter")
        tokenizer.save(out / "adapter")
        model = adapter.merge(out / "adapter", frozen, again)
    else:
        frozen.restore(model, again)
    save(model, tokenizer, out)
    keep_logs(work, out, name)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        **metrics,
        "parameters": parameters,
        "weights_fingerprint": weights_fingerprint(model.state_dict()),
        "template_fingerprint": tokenizer.template_fingerprint,
    }


def tell_repeats(trainer: "Trainer") -> None:
    """Little data and a large batch make one step that sees the same rows again and again, and learns next to nothing: say so."""
    from twllm.train.distributed import is_main

    wanted, rows, config = trainer.data.num_rows(trainer.config.epochs), trainer.plan.rows_per_step, trainer.config
    if config.batch_tokens < config.context and is_main():
        told = f"一步至少一列：batch_tokens {config.batch_tokens} 當作 context {config.context} (a step holds a row at least)"
        print(f"※ {trainer.name}：{told}", file=sys.stderr)
    if wanted < rows and is_main():
        print(
            f"※ {trainer.name}：epochs = {config.epochs:g} 只有 {wanted} 列，一步卻要 {rows} 列（batch_tokens {config.batch_tokens} ÷ context {config.context}），"
            "所以只有一步，同樣的列在裡面重複 (less data than one batch)：把 batch_tokens 調小，或 epochs 調大",
            file=sys.stderr,
        )


def tell_space(trainer: "Trainer", folder: Path) -> None:
    """Say before the first step where the disk is too small for what comes: the result (fp32), and two states while the newer one is written."""
    from twllm.train.distributed import is_main

    sizes = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    result, state = 4 * sum(n for n, _ in sizes), 12 * sum(n for n, trained in sizes if trained)
    needed, free = result + 2 * state, shutil.disk_usage(folder).free
    if free < needed and is_main():
        print(
            f"※ {trainer.name}：磁碟剩 {free / 1e9:.2f} GB，最多要 {needed / 1e9:.2f} GB（結果 {result / 1e9:.2f}，中斷點兩份各 {state / 1e9:.2f}）"
            " (the disk may be too small)",
            file=sys.stderr,
        )


class _Watched:
    """Measures what the phase forgets: before the run when made, after it in `report`."""

    def __init__(self, trainer: "Trainer", tokenizer: ChatTokenizer) -> None:
        from twllm.train.forgetting import Forgetting, before

        assert trainer.config.forgetting
        self.trainer = trainer
        self.texts = Forgetting(
            trainer.config.forgetting, tokenizer, trainer.config.context, trainer.work / "forgetting"
        )
        self.before = before(self.texts, trainer.model, trainer.machine, trainer.plan.rows_per_micro, trainer.work)

    def report(self, out: Path) -> dict[str, Any]:
        trainer = self.trainer
        trainer.model.to(trainer.machine.device)  # after several processes it is on the host
        after = self.texts.measure(trainer.model, trainer.machine, trainer.plan.rows_per_micro)
        return self.texts.report(self.before, after, out, trainer.name)
