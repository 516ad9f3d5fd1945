"""`--dry-run` and `twllm plan`: stages, tokens, FLOPs, memory and time before anything is trained.

Tokens come from finished token stages where they exist, else from the size of the sources (characters ÷ an assumed number of characters per
token), else, where the data is not here, from the phase's max_tokens: the table says which. Memory is planning/memory.py's, held
against measured steps; time is FLOPs ÷ (peak × an assumed share), so it is a plan, not a promise (docs/plan.md).
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from twllm import artifact, data
from twllm.errors import UserError
from twllm.model.hub_shapes import HUB_SHAPES
from twllm.model.shape_config import planned
from twllm.model.sizes import SIZES, Size, count_parameters
from twllm.pipeline.checks import check_recipe, phases
from twllm.pipeline.run import stale_reason
from twllm.pipeline.stages import build_stages, config_datasets
from twllm.planning.host import Host, host_memory
from twllm.planning.job import ALL_LINEAR, Adapter, Experts, Precision, expert_parameters, layer_parameters
from twllm.planning.memory import Memory, step_memory
from twllm.planning.pictures import picture_phases
from twllm.planning.search import How, Model, Phase, job_of, phase_cost
from twllm.planning.speed import again, cpu_seconds, step_flops
from twllm.recipe import Loaded, Recipe
from twllm.tokens.config import DatasetConfig
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig
from twllm.train.gpus import find_gpu

CHARS_PER_TOKEN = 1.2  # our tokenizers on small corpora; 1.5 to 1.8 on large ones (dev/LOG.md)
PEAK_SHARE = 0.45  # of a GPU's matrix-product peak reached by training: chosen (planning/speed.py)
COMPRESSED = {".gz": 4.0, ".zst": 4.0, ".parquet": 3.0}
COUNTED, ESTIMATED, CAPPED = "實際 counted", "估計 estimated", "上限 max_tokens"


@dataclass(frozen=True)
class PhasePlan:
    """What one training phase will cost."""

    phase: Phase
    source: str  # of the number of tokens
    repeats: int  # ablations train it again
    memory: Memory  # on one device
    host: Host  # memory of a host, all its processes
    flops: float  # of one training
    seconds: float

    @property
    def name(self) -> str:
        """The phase's."""
        return self.phase.name

    @property
    def tokens(self) -> int:
        """It sees."""
        return self.phase.tokens

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.phase.steps

    @property
    def measured(self) -> bool:
        """Whether its tokens were counted."""
        return self.source == COUNTED


@dataclass(frozen=True)
class DryRun:
    """The whole plan."""

    stages: list[tuple[str, str]]  # name, "" if up to date or why it will run
    phases: list[PhasePlan]
    parameters: int
    peak_tflops: float  # of all devices
    missing: list[str] = field(default_factory=list)  # data that is not here
    notes: list[str] = field(default_factory=list)

    @property
    def memory_bytes(self) -> int:
        """On one device, in the fullest phase."""
        return int(max(plan.memory.total for plan in self.phases))

    @property
    def seconds(self) -> float:
        """Of training."""
        return sum(plan.seconds * plan.repeats for plan in self.phases)

    @property
    def flops(self) -> float:
        """Of training."""
        return sum(plan.flops * plan.repeats for plan in self.phases)


def source_characters(path: str) -> int:
    """Characters a source holds, guessed from bytes (three a character; compressed files are taken as four times larger)."""
    root = data.resolve(path)
    pattern = any(sign in str(root) for sign in "*?[")
    files = list(Path(root.anchor or ".").glob(str(root.relative_to(root.anchor)))) if pattern else [root]
    files = [f for top in files for f in ([top] if top.is_file() else top.rglob("*")) if f.is_file()]
    return int(sum(f.stat().st_size * COMPRESSED.get(f.suffix, 1.0) for f in files) / 3)


def plan_phases(recipe: Recipe, counted: dict[str, Path], missing: Sequence[str]) -> list[tuple[Phase, str]]:
    """Every enabled phase with its tokens, and where their number comes from. `counted`: finished token stages.

    Raises:
        UserError: the data is not here and the phase has no max_tokens.
    """
    found = []
    for name, phase in phases(recipe):
        sources = recipe.corpus.sources if name == "pretrain" else config_datasets(phase)
        epoch = _counted_tokens(counted[name], [s.weight for s in sources]) if name in counted else None
        source = ESTIMATED if epoch is None else COUNTED
        if epoch is None:
            epoch = max(1, int(sum(source_characters(s.path) * s.weight for s in sources) / CHARS_PER_TOKEN))
        tokens = int(epoch * phase.epochs)
        if any(s.path in missing for s in sources):
            if phase.max_tokens is None:
                where = next(s.path for s in sources if s.path in missing)
                raise UserError(
                    f"資料不在這裡，算不出 {name} 的詞元數 (no data, no max_tokens)",
                    where,
                    f"--set {name}.max_tokens=…",
                )
            tokens, source = phase.max_tokens, CAPPED
        elif phase.max_tokens is not None and phase.max_tokens < tokens:
            tokens, source = phase.max_tokens, CAPPED if source == ESTIMATED else source
        found.append((_as_phase(recipe, name, phase, max(1, tokens)), source))
    if recipe.vision:
        for seen, capped in picture_phases(recipe.vision, _dataset_tokens):
            found.append((seen, CAPPED if capped else ESTIMATED))
    return found


def _dataset_tokens(dataset: DatasetConfig) -> float:
    return source_characters(dataset.path) * dataset.weight / CHARS_PER_TOKEN


def _as_phase(recipe: Recipe, name: str, phase: OptimConfig, tokens: int) -> Phase:
    adapter = None
    if lora := phase.lora:
        targets = ALL_LINEAR if lora.targets == "all-linear" else tuple(lora.targets)
        adapter = Adapter(lora.r, lora.quantise != "none", targets, lora.modules_to_save, lora.dropout > 0)
    method = phase.method if isinstance(phase, FeedbackConfig) else ""
    passes = {"kto": 4 / 3, "dpo": 1 + 1 / 3 / phase.epochs}.get(
        method, 1.0
    )  # KTO's mismatched pairs; DPO's reference, once
    batch = max(1, phase.batch_tokens // phase.context) * phase.context
    teacher, frozen = getattr(phase, "teacher", None), _frozen(recipe, phase)
    return Phase(
        name, tokens, phase.context, batch, adapter, passes, _experts(recipe, name),
        checkpoint_shape(teacher.model, teacher.revision)[0] if teacher else None,
        compares=method in ("kto", "dpo"), average=phase.ema_decay > 0, frozen=sum(frozen), frozen_tables=frozen[1],
    )  # fmt: skip


def _experts(recipe: Recipe, phase: str) -> Experts | None:
    """Those that the phase's model has."""
    moe, order = recipe.base.moe, ("pretrain", "sft", "feedback")
    if moe is None or order.index(phase) < order.index(moe.before):
        return None
    return Experts(moe.experts, moe.top_k, moe.granularity)


def _frozen(recipe: Recipe, phase: OptimConfig) -> tuple[int, int]:
    """Parameters that `freeze` keeps as they are, of whole layers and of the tables; other names count nothing."""
    if not phase.freeze:
        return 0, 0
    model, _ = recipe_model(recipe)
    size = model.size
    layers = tables = 0
    for name in phase.freeze:
        if found := re.fullmatch(r"layers\.(\d+)(?:-(\d+))?", name):
            first, last = int(found[1]), min(int(found[2] or found[1]), size.L - 1)
            layers += max(0, last - first + 1) * (layer_parameters(size) + 2 * size.D)
        elif name in ("embed_tokens", "lm_head"):
            tables += model.vocab * size.D
    return layers, tables


def _counted_tokens(folder: Path, weights: list[float]) -> int | None:
    if artifact.read_manifest(folder) is None:
        return None
    indexes = [json.loads((folder / f"{i:03}" / "index.json").read_text(encoding="utf-8")) for i in range(len(weights))]
    return int(sum(index["num_tokens"] * weight for index, weight in zip(indexes, weights, strict=True)))


def dry_run(
    loaded: Loaded,
    out: Path | None,
    machine: MachineConfig,
    peak_tflops: float,
    precision: str = "fp32",
    threads: int = 0,
) -> DryRun:
    """Plan a recipe on the machine file's GPUs or, without any, on this machine (`threads` of its CPU, or with 0 its GPU); every check
    is made, nothing is written.

    Data that is not here is listed, not refused.

    Raises:
        UserError: what `run` would also refuse.
    """
    missing: list[str] = []
    check_recipe(loaded, missing)
    recipe = loaded.recipe
    if missing:  # what stages there are, without looking at files
        stages, out = build_stages(_with_other_files(loaded, missing)), None
    else:
        stages = build_stages(loaded)
    why = "資料不在這裡 (data not here)" if missing else "尚未執行 (not run yet)"
    rows = [(name, (stale_reason(s, stages, out) if out else why) or "") for name, s in stages.items()]
    fresh = {
        name: out / f"tokens-{name}"
        for name, _ in phases(recipe)
        if out and stale_reason(stages[f"tokens-{name}"], stages, out) is None
    }
    model, notes = recipe_model(recipe)
    repeats = Counter(stage.split("-no_")[0] for stage in stages)
    plans = [
        _cost(model, phase, source, repeats[phase.name], machine, peak_tflops, precision, threads)
        for phase, source in plan_phases(recipe, fresh, missing)
    ]
    experts = next((plan.phase.experts for plan in reversed(plans) if plan.phase.experts), None)
    parameters = count_parameters(model.size, model.vocab) + expert_parameters(model.size, experts)
    if machine.gpu:
        peak_tflops = find_gpu(machine.gpu).peak_tflops * machine.gpus
    return DryRun(rows, plans, parameters, peak_tflops, missing, notes)


def _with_other_files(loaded: Loaded, missing: Sequence[str]) -> Loaded:
    """The recipe with something that exists in the place of each missing corpus source."""
    corpus = loaded.recipe.corpus
    sources = [
        source.model_copy(update={"path": f"{data.PREFIX}knowledge"}) if source.path in missing else source
        for source in corpus.sources
    ]
    changed = loaded.recipe.model_copy(update={"corpus": corpus.model_copy(update={"sources": tuple(sources)})})
    return Loaded(changed, loaded.file, loaded.origins, loaded.overrides)


def _cost(
    model: Model, phase: Phase, source: str, repeats: int, machine: MachineConfig, peak_tflops: float, precision: str, threads: int,
) -> PhasePlan:  # fmt: skip
    """On the machine file's cards; without any, on one device of that peak: with `threads` a CPU."""
    how = How(
        machine.sharding, machine.checkpointing, machine.micro_batch_tokens, machine.tensor_parallel, machine.shard_ranks, machine.offload,
        machine.context_parallel,
    )  # fmt: skip
    if machine.gpu:
        card = find_gpu(machine.gpu)
        cost = phase_cost(model, phase, card, how, machine.gpus)
        host = host_memory(cost.job, min(card.per_host, machine.gpus))
        return PhasePlan(phase, source, repeats, cost.memory, host, cost.flops, cost.seconds)
    kind: Precision = "bf16" if precision == "bf16" else "fp32"
    alone = replace(how, sharding="none", tensor=1, shard_ranks=None, offload=False, cut=1)
    job = replace(job_of(model, phase, alone, 1), precision=kind, accelerator=False)
    flops = phase.trained_copies * step_flops(job, phase.tokens)
    tokens = phase.tokens * phase.trained_copies
    seconds = again(job) * (
        cpu_seconds(job, tokens, peak_tflops, threads) if threads else flops / (peak_tflops * 1e12 * PEAK_SHARE)
    )
    return PhasePlan(phase, source, repeats, step_memory(job), host_memory(job, 1), flops, seconds)


def recipe_model(recipe: Recipe) -> tuple[Model, list[str]]:
    """The model that is trained, and what a reader of the plan should know about where its shape comes from."""
    size, vocab, notes = model_shape(recipe)
    size = planned(size, recipe.base.prune, recipe.base.deepen)
    return Model(size, vocab), notes


def model_shape(recipe: Recipe) -> tuple[Size, int, list[str]]:
    """(shape, vocabulary, notes): by size, from the checkpoint's config.json, or as hub_shapes.py knows it."""
    if recipe.base.size:
        return SIZES[recipe.base.size], recipe.tokenizer.vocab_size, []
    name, added = str(recipe.base.model), recipe.tokenizer.add if recipe.tokenizer.method == "extend" else 0
    if name in HUB_SHAPES and not Path(name).exists():
        known = HUB_SHAPES[name]
        longest = known.context * (recipe.base.rope.factor if recipe.base.rope else 1)
        for phase_name, phase in phases(recipe):
            if phase.context > longest:
                what = (
                    f"{phase_name}.context {phase.context} 超過模型的 {longest:.0f} (longer than the model's positions)"
                )
                raise UserError(what, name, f"把 {phase_name}.context 降到 {longest:.0f} 以下，或用 [base.rope] 加長")
        return known.size, known.vocab + added, [f"{name} 還沒下載 (not downloaded)：形狀來自內建的表 hub_shapes.py"]
    size, vocab = checkpoint_shape(name, recipe.base.revision)
    return size, vocab + added, []


def checkpoint_shape(name: str, revision: str | None) -> tuple[Size, int]:
    """(shape, vocabulary) of a Llama-shaped checkpoint: as hub_shapes.py knows it, else from its config.json.

    Raises:
        UserError: no such checkpoint, or a config of another shape.
    """
    if name in HUB_SHAPES and not Path(name).exists():
        return HUB_SHAPES[name].size, HUB_SHAPES[name].vocab
    from twllm.model.hub import fetch

    folder = fetch(name, revision, ["config.json"])
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
    return size, config["vocab_size"]
