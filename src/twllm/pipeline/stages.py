"""The stages of a run, and what each depends on.

A stage is a function of its config and of earlier stages' folders into a folder of its own. `build_stages` turns a recipe into
the list, in order; `Stage.fingerprint` covers config, inputs and outside files, so a changed key makes exactly the
stages below it stale. What a machine file says is no part of it. Running them is run.py's work.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twllm import data
from twllm.artifact import hash_path, stage_fingerprint
from twllm.recipe import Loaded, Recipe
from twllm.tokens.config import DatasetConfig
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, PretrainConfig, SftConfig

Facts = dict[str, Any]
SHAPES = {"moe", "prune", "deepen"}  # of [base]: what the model becomes, which the tokenizer does not depend on


@dataclass(frozen=True)
class Context:
    """What a stage gets while it runs: where to write, where its inputs are, where to keep unfinished work."""

    out: Path
    inputs: dict[str, Path]
    work: Path
    machine: MachineConfig


@dataclass
class Stage:
    """One folder of a run. `run` fills `Context.out` and returns counts and metrics for the manifest."""

    name: str
    needs: tuple[str, ...]
    config: Facts
    run: Callable[[Context], Facts]
    files: dict[str, str] = field(default_factory=dict)  # outside inputs: name as written -> hash of the content
    fingerprint: str = ""
    together: bool = False  # with several processes all of them run it, else process 0 alone

    def inputs(self, stages: dict[str, "Stage"]) -> dict[str, str]:
        """Fingerprints of everything this stage reads."""
        return {**{name: stages[name].fingerprint for name in self.needs}, **self.files}


def build_stages(loaded: Loaded) -> dict[str, Stage]:
    """All stages of a recipe by name, in running order, fingerprints filled in."""
    recipe = loaded.recipe
    found: list[Stage] = []
    if recipe.corpus.sources:
        found.append(_corpus_stage(recipe))
    found.append(_tokenizer_stage(recipe))
    found += _token_stages(recipe)
    chain = {"full": [name for name, phase in _phases(recipe) if phase.enabled]}
    if "no_cpt" in recipe.evaluate.ablations:
        chain["no_cpt"] = [name for name in chain["full"] if name != "pretrain"]
    if "no_feedback" in recipe.evaluate.ablations:
        chain["no_feedback"] = [name for name in chain["full"] if name != "feedback"]
    last: dict[str, str] = {}
    for variant, names in chain.items():
        last[variant] = _add_training(recipe, found, variant, names)
    if recipe.vision:
        from twllm.pipeline.vision_stages import add_vision

        last["full"] = add_vision(recipe.vision, found, last["full"], recipe.base)
    found += [_evaluate_stage(recipe, variant, model, chain[variant]) for variant, model in last.items()]
    sets = tuple(
        stage.name for stage in found if stage.name in ("corpus", "tokens-sft", "tokens-feedback", "align", "instruct")
    )
    found.append(_release_stage(recipe, last["full"], sets))
    stages: dict[str, Stage] = {}
    for stage in found:
        stages[stage.name] = stage
        stage.fingerprint = stage_fingerprint(stage.name, stage.config, stage.inputs(stages))
    return stages


def _phases(recipe: Recipe) -> list[tuple[str, OptimConfig]]:
    return [("pretrain", recipe.pretrain), ("sft", recipe.sft), ("feedback", recipe.feedback)]


def _file_hashes(paths: list[str]) -> dict[str, str]:
    return {path: hash_path(data.resolve(path)) for path in sorted(set(paths))}


def _tokenizer_hashes(recipe: Recipe) -> dict[str, str]:
    """Of a local base model, the files that its tokenizer is read from."""
    folder = Path(str(recipe.base.model))
    files = sorted([*folder.glob("tokenizer*"), *folder.glob("chat_template.jinja")]) if folder.is_dir() else []
    return _file_hashes([str(file) for file in files])


# -- corpus and tokens ------------------------------------------------------------------------------------------


def _corpus_stage(recipe: Recipe) -> Stage:
    from twllm.corpus.build import build_corpus, input_hashes

    config = recipe.corpus.model_dump(mode="json")
    del config["mix"]  # how often documents are shown matters to training only
    for source in config["sources"]:
        del source["weight"], source["group"], source["max_epochs"]

    def run(c: Context) -> Facts:
        return build_corpus(recipe.corpus, c.out, c.work)

    return Stage("corpus", (), config, run, input_hashes(recipe.corpus))


def _tokenizer_stage(recipe: Recipe) -> Stage:
    datasets = [d for phase in (recipe.sft, recipe.feedback) if phase.enabled for d in phase.datasets]
    config = {"tokenizer": recipe.tokenizer.model_dump(mode="json"), "template": recipe.template.name}
    chats = [d.model_dump(mode="json", exclude={"weight", "license"}) for d in datasets]  # how their files are read

    def run(c: Context) -> Facts:
        from twllm.tokens.train import train_tokenizer, training_texts

        texts = training_texts(c.inputs["corpus"], datasets, recipe.template.name, recipe.tokenizer.max_chars)
        tokenizer = train_tokenizer(texts, recipe.tokenizer, recipe.template.name)
        tokenizer.save(c.out)
        return {"vocab_size": tokenizer.vocab_size, "template_fingerprint": tokenizer.template_fingerprint}

    def keep(c: Context) -> Facts:
        from twllm.model.hub import fetch
        from twllm.tokens.tokenizer import ChatTokenizer

        tokenizer = ChatTokenizer.load(fetch(str(recipe.base.model), recipe.base.revision)).with_template(
            recipe.template.name
        )
        tokenizer.save(c.out)
        return {"vocab_size": tokenizer.vocab_size, "template_fingerprint": tokenizer.template_fingerprint}

    if recipe.tokenizer.method == "extend":
        return _extend_stage(recipe, config, datasets, chats)
    if recipe.tokenizer.method == "keep":
        return Stage(
            "tokenizer",
            (),
            {**config, "base": recipe.base.model_dump(mode="json", exclude=SHAPES)},
            keep,
            _tokenizer_hashes(recipe),
        )
    return Stage("tokenizer", ("corpus",), config | {"datasets": chats}, run, _file_hashes([d.path for d in datasets]))


def _extend_stage(recipe: Recipe, config: Facts, datasets: list[DatasetConfig], chats: list[Facts]) -> Stage:
    def run(c: Context) -> Facts:
        from twllm.model.hub import fetch
        from twllm.tokens.extend import check, extend_tokenizer
        from twllm.tokens.tokenizer import ChatTokenizer
        from twllm.tokens.train import sample_texts, training_texts

        settings, folder = recipe.tokenizer, fetch(str(recipe.base.model), recipe.base.revision)
        base = ChatTokenizer.load(folder).with_template(recipe.template.name)
        texts = training_texts(c.inputs["corpus"], datasets, recipe.template.name, settings.max_chars)
        extended = extend_tokenizer(
            base, texts, settings.add, folder=folder, max_chars=settings.max_piece_chars, min_frequency=settings.min_frequency
        )  # fmt: skip
        extended.save(c.out)
        facts = check(base, extended, sample_texts(c.inputs["corpus"], 1_000_000))
        return facts | {
            "vocab_size": extended.tokenizer.vocab_size,
            "template_fingerprint": extended.tokenizer.template_fingerprint,
        }

    files = _file_hashes([d.path for d in datasets]) | _tokenizer_hashes(recipe)
    base = {"base": recipe.base.model_dump(mode="json", exclude=SHAPES)}
    return Stage("tokenizer", ("corpus",), config | base | {"datasets": chats}, run, files)


def _token_stages(recipe: Recipe) -> list[Stage]:
    stages = []
    if recipe.pretrain.enabled:
        stages.append(Stage("tokens-pretrain", ("corpus", "tokenizer"), {}, _tokenize_corpus(recipe)))
    for name, phase in (("sft", recipe.sft), ("feedback", recipe.feedback)):
        if phase.enabled:
            config = {
                "datasets": [d.model_dump(mode="json", exclude={"weight"}) for d in phase.datasets],
                "context": phase.context,
                "held_out": getattr(phase, "held_out", 0.0),
            } | ({"method": phase.method} if isinstance(phase, FeedbackConfig) else {})
            stages.append(
                Stage(
                    f"tokens-{name}",
                    ("tokenizer",),
                    config,
                    _tokenize_chats(phase),
                    _file_hashes([d.path for d in phase.datasets]),
                )
            )
    return stages


def _tokenize_corpus(recipe: Recipe) -> Callable[[Context], Facts]:
    def run(c: Context) -> Facts:
        from twllm.tokens.build import tokenize_corpus
        from twllm.tokens.tokenizer import ChatTokenizer

        labels = [source.label for source in recipe.corpus.sources]
        return tokenize_corpus(c.out, c.inputs["corpus"], labels, ChatTokenizer.load(c.inputs["tokenizer"]))

    return run


def _tokenize_chats(phase: SftConfig | FeedbackConfig) -> Callable[[Context], Facts]:
    def run(c: Context) -> Facts:
        from twllm.tokens.build import tokenize_chats
        from twllm.tokens.tokenizer import ChatTokenizer

        tokenizer = ChatTokenizer.load(c.inputs["tokenizer"])
        held_out, method = getattr(phase, "held_out", 0.0), getattr(phase, "method", None)
        return tokenize_chats(c.out, phase.datasets, tokenizer, phase.context, held_out, method)

    return run


# -- training ---------------------------------------------------------------------------------------------------


def _add_training(recipe: Recipe, found: list[Stage], variant: str, names: list[str]) -> str:
    """Add the training stages of one variant (sharing those that equal the full run's) and return the last one's name."""
    full = [name for name, phase in _phases(recipe) if phase.enabled]
    before = ""
    for i, name in enumerate(names):
        shared = names[: i + 1] == full[: i + 1]
        stage = name if shared else f"{name}-{variant}"
        if not any(s.name == stage for s in found):
            found.append(_training_stage(recipe, stage, name, before))
        before = stage
    return before


def _training_stage(recipe: Recipe, stage: str, phase_name: str, start: str) -> Stage:
    phase: OptimConfig = dict(_phases(recipe))[phase_name]
    config = phase.model_dump(mode="json", exclude=phase.unseen - {"forgetting"})
    weights = [
        source.weight for source in (recipe.corpus.sources if phase_name == "pretrain" else config_datasets(phase))
    ]
    config["weights"] = weights
    mixed = phase_name == "pretrain" and bool(recipe.corpus.mix.shares)
    if mixed:
        config["mix"] = _mix_config(recipe)
    config.pop("datasets", None)
    context = max(p.context for p in recipe.all_phases() if p.enabled)
    files: dict[str, str] = {}
    order = [name for name, _ in _phases(recipe)]
    moe = recipe.base.moe
    if moe and order.index(phase_name) < order.index(moe.before):
        moe = None  # still dense
    if moe:
        config["moe"] = moe.model_dump(mode="json")
    extends = not start and recipe.tokenizer.method == "extend"
    if not start:
        config |= {"base": recipe.base.model_dump(mode="json", exclude={"moe"}), "max_context": context}
        if recipe.base.model and Path(recipe.base.model).is_dir():
            files = {recipe.base.model: hash_path(recipe.base.model)}
    if phase.forgetting:
        files |= _file_hashes(list(phase.forgetting.texts))

    teacher = phase.teacher if isinstance(phase, PretrainConfig | SftConfig) else None
    if teacher and Path(teacher.model).is_dir():
        files[teacher.model] = hash_path(teacher.model)

    def run(c: Context) -> Facts:
        from twllm.tokens.tokenizer import ChatTokenizer
        from twllm.tokens.train import sample_texts
        from twllm.train.phase import start_model, train_phase

        tokenizer = ChatTokenizer.load(c.inputs["tokenizer"])
        base = recipe.base
        origin = str(c.inputs[start]) if start else base.model
        texts = sample_texts(c.inputs["corpus"], 2_000_000) if extends else ()
        reshaped: Facts = {}

        def begin() -> Any:
            """The model that the phase starts from; made again where a quantised one is merged."""
            model = start_model(
                base.size, origin, base.revision if not start else None, tokenizer, context, phase.seed,
                *((recipe.tokenizer.init, recipe.tokenizer.multiple, texts) if extends else ()),
                rope=base.rope if not start else None,
            )  # fmt: skip
            if not start and (base.prune or base.deepen):
                from twllm.model.reshape import reshape

                read = texts or (sample_texts(c.inputs["corpus"], 2_000_000) if base.prune else ())
                model, facts = reshape(model, tokenizer, base.prune, base.deepen, read, context)
                reshaped.update(facts)
            if moe and model.config.model_type != "mixtral":
                from twllm.model.upcycle import upcycle

                model = upcycle(model, moe, phase.seed)
            return model

        tokens, shown, mix = c.inputs[f"tokens-{phase_name}"], weights, None
        if mixed:
            from twllm.corpus.mix import plan_mix
            from twllm.tokens.build import tokens_by_source

            mix = plan_mix(recipe.corpus, tokens_by_source(tokens, [source.label for source in recipe.corpus.sources]))
            shown = mix.list_weights(recipe.corpus.sources)
        facts = train_phase(
            stage, phase, shown, begin(), tokenizer, tokens, c.out, c.work, c.machine, begin, recipe.watch
        )
        facts |= {"reshaped": reshaped} if reshaped else {}
        return facts | {"mix": mix.to_row()} if mix else facts

    reads = extends or (not start and recipe.base.prune)
    needs = ("tokenizer", f"tokens-{phase_name}", *((start,) if start else ()), *(("corpus",) if reads else ()))
    return Stage(stage, needs, config, run, files, together=True)


def _mix_config(recipe: Recipe) -> Facts:
    """What the weights of the sources depend on, but for their tokens."""
    sources = [(source.label, source.group, source.max_epochs) for source in recipe.corpus.sources]
    return {**recipe.corpus.mix.model_dump(mode="json"), "sources": sources}


def config_datasets(phase: OptimConfig) -> tuple[DatasetConfig, ...]:
    """The datasets of a chat phase."""
    assert isinstance(phase, SftConfig | FeedbackConfig)
    return phase.datasets


# -- evaluation and release -------------------------------------------------------------------------------------


def _evaluate_stage(recipe: Recipe, variant: str, model: str, trained: list[str]) -> Stage:
    """`trained`: the phases behind the model, whose data the questions are compared with."""
    evaluate = recipe.evaluate
    suites = evaluate.suites if variant == "full" else [s for s in evaluate.suites if s == "culture"] or evaluate.suites
    local = [evaluate.questions] if "culture" in suites else []
    if evaluate.tceval_data and "://" not in evaluate.tceval_data and variant == "full":
        local.append(evaluate.tceval_data)
    chats = [
        d for name, phase in _phases(recipe) if name in trained and name != "pretrain" for d in config_datasets(phase)
    ]
    corpus = ("corpus",) if "pretrain" in trained else ()
    files = _file_hashes([*local, *evaluate.contamination, *(d.path for d in chats)])

    def run(c: Context) -> Facts:
        from twllm.evaluate.runner import evaluate_model

        folder = None if evaluate.tceval_data is None else Path(evaluate.tceval_data)
        result = evaluate_model(
            str(c.inputs[model]), suites=list(suites), questions=evaluate.questions, data=folder, out=c.work / "result.json",
            limit=evaluate.limit, max_new_tokens=evaluate.max_new_tokens, batch_size=evaluate.batch_size,
            contamination=[*(str(c.inputs[name]) for name in corpus), *chats, *evaluate.contamination],
        )  # fmt: skip
        shutil.copytree(c.work, c.out, dirs_exist_ok=True)  # answers are kept in `work`, so that a killed run goes on
        return {
            "scores": {
                name: {k: block[k] for k in ("score", "correct", "n") if k in block}
                for name, block in result.items()
                if isinstance(block, dict) and "n" in block
            }
        }

    config = evaluate.model_dump(mode="json", exclude={"ablations", "gates", "batch_size"}) | {"suites": list(suites)}
    return Stage(f"evaluate-{variant}", (model, *corpus), config, run, files)


def _release_stage(recipe: Recipe, model: str, data_sets: tuple[str, ...]) -> Stage:
    gate = recipe.vision.gate if recipe.vision else None
    seeing = ("evaluate-vision",) if gate is not None else ()

    def run(c: Context) -> Facts:
        from twllm.export.build import write_release

        if recipe.vision and seeing:
            from twllm.pipeline.vision_stages import check_picture_gate

            check_picture_gate(recipe.vision, c.inputs["evaluate-vision"])
        folders = [c.inputs[name] for name in data_sets]
        return write_release(recipe, c.inputs[model], c.inputs["evaluate-full"], c.out, folders)

    config: Facts = {"name": recipe.name, "release": recipe.release.model_dump(mode="json")}
    config |= {} if gate is None else {"picture_gate": gate}
    return Stage("model", (model, "evaluate-full", *seeing, *data_sets), config, run)
