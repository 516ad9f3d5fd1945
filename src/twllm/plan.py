"""`--dry-run`: stages, tokens, FLOPs, memory and time before anything is trained.

Tokens come from finished token stages where they exist, else from the size of the sources (characters ÷ an assumed number of
characters per token): the table says which. Time is FLOPs ÷ (peak × an assumed share), so it is a plan, not a promise.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm import artifact, data
from twllm.checks import check_recipe, phases
from twllm.errors import UserError
from twllm.model.sizes import SIZES, Size, count_parameters, train_flops_per_token, train_memory_bytes
from twllm.recipe import Loaded, Recipe
from twllm.run import stale_reason
from twllm.stages import build_stages, config_datasets
from twllm.train.config import MachineConfig, OptimConfig

CHARS_PER_TOKEN = 1.2  # our tokenizers on small corpora; 1.5 to 1.8 on large ones (dev/LOG.md)
PEAK_SHARE = 0.45  # of the matrix-product peak reached by training, measured on 2 CPU cores (dev/LOG.md)
COMPRESSED = {".gz": 4.0, ".zst": 4.0, ".parquet": 3.0}


@dataclass(frozen=True)
class PhasePlan:
    """What one training phase will cost."""

    name: str
    tokens: int
    steps: int
    flops: float
    measured: bool  # tokens counted, not estimated


@dataclass(frozen=True)
class DryRun:
    """The whole plan."""

    stages: list[tuple[str, str]]  # name, "" if up to date or why it will run
    phases: list[PhasePlan]
    parameters: int
    memory_bytes: int
    peak_tflops: float
    seconds: float


def source_characters(path: str) -> int:
    """Characters a source holds, guessed from bytes (three a character; compressed files are taken as four times larger)."""
    root = data.resolve(path)
    pattern = any(sign in str(root) for sign in "*?[")
    files = list(Path(root.anchor or ".").glob(str(root.relative_to(root.anchor)))) if pattern else [root]
    files = [f for top in files for f in ([top] if top.is_file() else top.rglob("*")) if f.is_file()]
    return int(sum(f.stat().st_size * COMPRESSED.get(f.suffix, 1.0) for f in files) / 3)


def phase_tokens(recipe: Recipe, name: str, phase: OptimConfig, out: Path | None) -> tuple[int, bool]:
    """(tokens of one epoch, whether they were counted)."""
    sources = recipe.corpus.sources if name == "pretrain" else config_datasets(phase)
    counted = _counted_tokens(out / f"tokens-{name}", [source.weight for source in sources]) if out else None
    if counted is not None:
        return counted, True
    chars = sum(source_characters(source.path) * source.weight for source in sources)
    return max(1, int(chars / CHARS_PER_TOKEN)), False


def _counted_tokens(folder: Path, weights: list[float]) -> int | None:
    if artifact.read_manifest(folder) is None:
        return None
    indexes = [json.loads((folder / f"{i:03}" / "index.json").read_text(encoding="utf-8")) for i in range(len(weights))]
    return int(sum(index["num_tokens"] * weight for index, weight in zip(indexes, weights, strict=True)))


def dry_run(loaded: Loaded, out: Path | None, machine: MachineConfig, peak_tflops: float) -> DryRun:
    """Plan a recipe; every check is made, nothing is written.

    Raises:
        UserError: what `run` would also refuse.
    """
    check_recipe(loaded)
    recipe = loaded.recipe
    stages = build_stages(loaded)
    rows = [
        (name, (stale_reason(s, stages, out) if out else "尚未執行 (not run yet)") or "") for name, s in stages.items()
    ]
    size, vocab = model_shape(recipe)
    parameters = count_parameters(size, vocab) + _more_experts(recipe, size)
    plans = []
    for name, phase in phases(recipe):
        fresh = out is not None and stale_reason(stages[f"tokens-{name}"], stages, out) is None
        tokens, measured = phase_tokens(recipe, name, phase, out if fresh else None)
        total = (
            int(tokens * phase.epochs)
            if phase.max_tokens is None
            else min(phase.max_tokens, int(tokens * phase.epochs))
        )
        steps = max(1, math.ceil(total / phase.batch_tokens))
        plans.append(
            PhasePlan(name, total, steps, float(total) * train_flops_per_token(size, vocab, phase.context), measured)
        )
    repeats = {plan.name: sum(1 for stage in stages if stage.split("-no_")[0] == plan.name) for plan in plans}
    flops = sum(plan.flops * repeats[plan.name] for plan in plans)
    memory = train_memory_bytes(parameters, size, vocab, machine.micro_batch_tokens)
    return DryRun(rows, plans, parameters, memory, peak_tflops, flops / (peak_tflops * 1e12 * PEAK_SHARE))


def _more_experts(recipe: Recipe, size: Size) -> int:
    """Parameters of the experts beyond the dense model's feed-forward layers, and of the routers (FLOPs stay the dense model's)."""
    moe = recipe.base.moe
    return size.L * size.D * (3 * size.F * (moe.experts // moe.granularity - 1) + moe.experts) if moe else 0


def model_shape(recipe: Recipe) -> tuple[Size, int]:
    """(shape, vocabulary) of the recipe's model, from its size or from the checkpoint's config.json."""
    if recipe.base.size:
        return SIZES[recipe.base.size], recipe.tokenizer.vocab_size
    added = recipe.tokenizer.add if recipe.tokenizer.method == "extend" else 0
    from twllm.model.hub import fetch

    folder = fetch(str(recipe.base.model), recipe.base.revision, ["config.json"])
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        heads = config["num_attention_heads"]
        kv_heads, tied = config.get("num_key_value_heads", heads), config.get("tie_word_embeddings", False)
        size = Size(
            config["hidden_size"], config["num_hidden_layers"], heads, kv_heads, config["intermediate_size"], tied
        )
    except KeyError as error:
        what = f"看不懂這個模型的形狀 (not a Llama-shaped config): {error} missing"
        raise UserError(what, folder / "config.json", "--dry-run 目前支援 Llama、Mistral、Qwen 型的模型") from error
    return size, config["vocab_size"] + added
