"""One training phase from folders to a folder: the start weights, the shards, the loop, a Hugging Face checkpoint."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twllm.errors import UserError
from twllm.tokens.shards import TokenShard
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig
from twllm.train.data import PackedData

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def start_model(
    size: str | None, model: str | None, revision: str | None, tokenizer: ChatTokenizer, context: int, seed: int,
    init: str = "mean", multiple: int = 1, texts: Sequence[str] = (),
) -> "PreTrainedModel":  # fmt: skip
    """Random weights of a size, or a checkpoint whose embedding is made to fit the tokenizer (model/vocabulary.py)."""
    from twllm.model import build
    from twllm.model.hub import fetch

    if model is None:
        return build.build(str(size), tokenizer, context, seed)
    folder = fetch(model, revision)
    found = build.load(folder)
    limit = getattr(found.config, "max_position_embeddings", context)
    if context > limit:
        raise UserError(
            f"context {context} 超過模型的 {limit} (longer than the model's positions)",
            model,
            f"把 context 降到 {limit} 以下",
        )
    old = ChatTokenizer.load(folder)
    if tokenizer.vocab_size > old.vocab_size:
        from twllm.model.vocabulary import resize_vocabulary

        resize_vocabulary(found, old, tokenizer, init, multiple, texts)
    return found


def compares(phase: OptimConfig) -> bool:
    """Whether the phase learns by comparing (KTO, DPO): its documents come in twos."""
    return isinstance(phase, FeedbackConfig) and phase.method != "sft-positive"


def load_data(tokens: Path, weights: Sequence[float], phase: OptimConfig) -> tuple[PackedData, PackedData | None]:
    """Training rows from the shards `000`, `001`, … with their weights, and held-out rows if there are any."""
    shards = [TokenShard(tokens / f"{i:03}") for i in range(len(weights))]
    data = PackedData(shards, weights, phase.context, phase.seed, group=2 if compares(phase) else 1)
    held = TokenShard(tokens / "held_out") if (tokens / "held_out").is_dir() else None
    return data, PackedData([held], [1.0], phase.context, phase.seed) if held and len(held) else None


def train_phase(
    name: str, phase: OptimConfig, weights: Sequence[float], model: "PreTrainedModel", tokenizer: ChatTokenizer, tokens: Path,
    out: Path, work: Path, machine: MachineConfig,
) -> dict[str, Any]:  # fmt: skip
    """Train and fill `out` with the checkpoint, `loss.png` and `metrics.jsonl`; returns the metrics for the manifest."""
    from twllm.model.build import save, weights_fingerprint
    from twllm.train.loop import Trainer
    from twllm.train.objective import TokenObjective
    from twllm.train.preference import PreferenceObjective
    from twllm.train.watch import plot_loss, read_metrics

    data, held_out = load_data(tokens, weights, phase)
    objective: Any = TokenObjective
    if compares(phase):
        assert isinstance(phase, FeedbackConfig)
        objective = partial(PreferenceObjective, data=data, config=phase, work=work)
    metrics = Trainer(name, model, data, phase, machine, work, held_out, objective).run()
    save(model, tokenizer, out)
    rows = read_metrics(work / "metrics.jsonl")
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    plot_loss(rows, out / "loss.png", name)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        **metrics,
        "parameters": parameters,
        "weights_fingerprint": weights_fingerprint(model.state_dict()),
        "template_fingerprint": tokenizer.template_fingerprint,
    }
