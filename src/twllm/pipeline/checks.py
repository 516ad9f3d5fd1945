"""Everything that can be known to be wrong before the first costly step."""

import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from twllm import data
from twllm.errors import UserError, did_you_mean, require_file
from twllm.evaluate.sources import DATASETS, find_files, read_items, with_gold
from twllm.evaluate.task import find_tasks
from twllm.export.build import check_release
from twllm.model.rope import context_limit, scaled
from twllm.model.sizes import SIZES
from twllm.recipe import Loaded, Recipe
from twllm.tokens.build import check_licences
from twllm.tokens.contract import check_same_tokenizer
from twllm.tokens.conversation import read_dataset
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import OptimConfig


def check_recipe(loaded: Loaded, missing: list[str] | None = None) -> None:
    """Cross-checks between sections, and that every named file exists; with a list, those that do not are put into it instead.

    Raises:
        UserError: the first problem found.
    """
    recipe, where = loaded.recipe, loaded.file
    _check_base(recipe, where)
    _check_context(recipe, where)
    _check_teachers(recipe, where)
    _check_phases(recipe, where)
    _check_paths(recipe, missing)
    _check_licences(recipe, missing or ())
    check_release(recipe)
    _check_evaluation(recipe, where, missing)


def _check_base(recipe: Recipe, where: Path) -> None:
    base = recipe.base
    if (base.size is None) == (base.model is None):
        raise UserError("[base] 要給 size 或 model 其中一個 (exactly one of size, model)", where, '例如 size = "tiny"')
    if base.size is not None and base.size not in SIZES:
        raise UserError("沒有這個模型大小 (unknown size)", f"base.size = {base.size}", did_you_mean(base.size, SIZES))
    if base.size and (base.prune or base.deepen):
        raise UserError(
            "從頭訓練沒有東西可剪或可加深 (nothing to prune or deepen)", f"{where}: base.size = {base.size}", "改給 base.model"
        )  # fmt: skip
    if base.prune and base.deepen:
        raise UserError("剪和加深只能選一個 (prune or deepen, not both)", where, "拿掉 [base.prune] 或 [base.deepen]")
    if base.prune and not recipe.corpus.sources:
        raise UserError("剪模型要有文字 (pruning needs texts)", f"{where}: [base.prune]", "加上 [[corpus.sources]]")
    if base.size and base.rope:
        fix = "拿掉 [base.rope]，直接把 context 設成要的長度"
        raise UserError("從頭訓練不必縮放位置 (nothing to extend from scratch)", f"{where}: base.rope", fix)
    if base.model and recipe.tokenizer.method == "train":
        raise UserError(
            "已有的模型不能換成全新的分詞器 (its embeddings would mean nothing)", f"{where}: tokenizer.method = train",
            '改成 [tokenizer] method = "keep"，或用 "extend" 加上新的詞元',
        )  # fmt: skip
    if base.size and recipe.tokenizer.method != "train":
        raise UserError(
            "從頭訓練沒有分詞器可以沿用 (nothing to keep)",
            f"{where}: tokenizer.method = {recipe.tokenizer.method}",
            '改成 method = "train"',
        )
    if base.model and Path(base.model).is_dir():
        for name, hint in (("config.json", "不是模型資料夾"), ("tokenizer", "沒有分詞器")):
            if not any(p.name.startswith(name) for p in Path(base.model).iterdir()):
                raise UserError(f"{hint} (checkpoint folder without {name})", base.model, "補上檔案，或換一個資料夾")


def _check_context(recipe: Recipe, where: Path) -> None:
    """A local base model's positions are enough for every phase."""
    file = Path(str(recipe.base.model)) / "config.json"
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= scaled(config, recipe.base.rope, where) if recipe.base.rope else {}
        limit = context_limit(config)
    except (ValueError, AttributeError) as error:
        raise UserError(f"JSON 壞了 (broken JSON): {error}", file, "重新下載或重建這個檔案") from error
    for name, phase in phases(recipe):
        if limit is not None and phase.context > limit:
            what = f"{name}.context {phase.context} 超過模型的 {limit} (longer than the model's positions)"
            raise UserError(what, where, f"把 {name}.context 降到 {limit} 以下，或用 [base.rope] 加長")


def _check_teachers(recipe: Recipe, where: Path) -> None:
    """Every teacher is a model folder (or a hub name) whose tokenizer can be the model's own."""
    for name, phase in phases(recipe):
        teacher = getattr(phase, "teacher", None)
        if teacher is None:
            continue
        if recipe.tokenizer.method == "train":
            raise UserError(
                "老師的分詞器要和模型的一樣，全新的分詞器不可能 (a new tokenizer is not the teacher's)",
                f"{where}: {name}.teacher",
                '給 [base] model，並用 [tokenizer] method = "keep"',
            )
        if "/" not in teacher.model or Path(teacher.model).is_absolute():
            require_file(Path(teacher.model) / "config.json", "老師不是模型資料夾 (the teacher is no model folder)")
        if recipe.tokenizer.method == "keep" and all(Path(str(m)).is_dir() for m in (recipe.base.model, teacher.model)):
            ours = ChatTokenizer.load(str(recipe.base.model)).with_template(recipe.template.name)
            check_same_tokenizer(ChatTokenizer.load(teacher.model), ours, f"{where}: {name}.teacher")


def phases(recipe: Recipe) -> Iterator[tuple[str, OptimConfig]]:
    """The enabled training phases, in order."""
    for name, config in (("pretrain", recipe.pretrain), ("sft", recipe.sft), ("feedback", recipe.feedback)):
        if config.enabled:
            yield name, config


def _check_phases(recipe: Recipe, where: Path) -> None:
    enabled = dict(phases(recipe))
    if not enabled and not (recipe.vision and recipe.base.model):
        raise UserError(
            "沒有任何訓練階段 (every phase is disabled)", where, "至少啟用 pretrain、sft、feedback 其中一個"
        )
    for name, config in enabled.items():
        if config.batch_tokens < config.context:
            raise UserError(
                f"{name}.batch_tokens 比 context 小 (smaller than one row)", where, f"至少 {config.context}"
            )
    if recipe.pretrain.enabled and recipe.pretrain.eval_every and not recipe.corpus.held_out:
        what = "沒有保留的文件，pretrain.eval_every 會被忽略 (would be ignored)"
        raise UserError(what, where, "給 corpus.held_out，或拿掉 eval_every")
    if recipe.pretrain.enabled and not recipe.corpus.sources:
        raise UserError(
            "要繼續預訓練但沒有語料 (no [corpus] sources)",
            where,
            "加上 [[corpus.sources]]，或 pretrain.enabled = false",
        )
    if (recipe.base.size or recipe.tokenizer.method == "extend") and not recipe.corpus.sources:
        raise UserError("要訓練分詞器但沒有語料 (no [corpus] sources)", where, "加上 [[corpus.sources]]")
    for name, config in (("sft", recipe.sft), ("feedback", recipe.feedback)):
        if config.enabled and not config.datasets:
            raise UserError(
                f"[{name}] 沒有資料 (no datasets)", where, f"加上 [[{name}.datasets]]，或 {name}.enabled = false"
            )


def _check_paths(recipe: Recipe, missing: list[str] | None = None) -> None:
    datasets = [
        d.path
        for name, phase in (("sft", recipe.sft), ("feedback", recipe.feedback))
        if phase.enabled
        for d in phase.datasets
    ]
    if vision := recipe.vision:
        named = [phase for phase in (vision.encode, vision.align, vision.instruct) if phase and phase.enabled]
        datasets += [d.path for phase in named for d in phase.datasets] + (
            [vision.questions] if vision.questions else []
        )
        if vision.encoder and vision.encoder.startswith((".", "/")):
            datasets.append(vision.encoder)
    for path in [
        *(source.path for source in recipe.corpus.sources),
        *datasets,
        *recipe.corpus.decontaminate_against,
        *recipe.evaluate.contamination,
        *(text for _, phase in phases(recipe) if phase.forgetting for text in phase.forgetting.texts),
    ]:
        try:
            _check_path(path)
        except UserError:
            if missing is None or path.startswith(data.PREFIX):
                raise
            missing.append(path)
    if "culture" in recipe.evaluate.suites:
        _check_path(recipe.evaluate.questions)


def _check_licences(recipe: Recipe, missing: Collection[str] = ()) -> None:
    """The first conversation of each data set that names no licence carries its own (all are checked when tokenised)."""
    for phase in (recipe.sft, recipe.feedback):
        for dataset in phase.datasets if phase.enabled else ():
            if not dataset.license and not dataset.path.startswith(data.PREFIX) and dataset.path not in missing:
                check_licences(dataset, islice(read_dataset(dataset), 1))


def _check_path(path: str) -> None:
    resolved = data.resolve(path)
    if any(sign in str(resolved) for sign in "*?["):
        if not any(True for _ in Path(resolved.anchor or ".").glob(str(resolved.relative_to(resolved.anchor)))):
            raise UserError("沒有符合的檔案 (pattern matches nothing)", path, "檢查路徑與萬用字元")
        return
    if "://" not in path and not resolved.exists():
        parent = next(p for p in resolved.parents if p.exists())
        raise UserError(
            "找不到檔案 (file not found)",
            path,
            f"{parent} 裡有：{'、'.join(sorted(p.name for p in parent.iterdir())[:8])}",
        )


def _check_evaluation(recipe: Recipe, where: Path, missing: list[str] | None = None) -> None:
    evaluate = recipe.evaluate
    data_folder = None if evaluate.tceval_data is None else Path(evaluate.tceval_data)
    there = None if missing is not None and data_folder and not data_folder.exists() else data_folder
    tasks, _ = with_gold(find_tasks(evaluate.suites), evaluate.suites, there)
    for task in tasks:
        if task.kind.startswith("judge"):
            fix = "訓練完再跑 twllm eval MODEL --suite … --judge-url …"
            raise UserError(f"配方裡還不能用裁判評測 {task.label} (a judged suite)", f"{where}: evaluate.suites", fix)
        if task.kind == "perplexity" and task.name in evaluate.gates:
            what = f"{task.name} 低比較好，不能當發布門檻 (lower is better: no gate)"
            raise UserError(what, f"{where}: evaluate.gates.{task.name}", "換一個題組當門檻")
        if task.reader in ("texts", "needle"):
            continue  # what ships is read
        if task.reader == "questions":
            read_items(task, evaluate.questions, None)
        elif data_folder is None:
            raise UserError("TC-Eval 要有題目資料夾 (evaluate.tceval_data missing)", where, '加上 tceval_data = "…"')
        elif missing is not None and "://" not in str(data_folder) and not data_folder.exists():
            missing += [] if str(data_folder) in missing else [str(data_folder)]
        elif not DATASETS.match(str(data_folder)):
            find_files(task, data_folder)
    for suite in evaluate.gates:
        if suite not in (names := [task.name for task in tasks]):
            raise UserError(
                "門檻的題組沒有要評測 (gate of a suite that is not run)", f"{where}: evaluate.gates.{suite}", did_you_mean(suite, names)
            )  # fmt: skip
    for ablation, phase in (("no_cpt", recipe.pretrain), ("no_feedback", recipe.feedback)):
        if ablation in evaluate.ablations and not phase.enabled:
            raise UserError(
                f"ablations 的 {ablation} 要拿掉的階段本來就沒開 (phase is disabled)", where, f"拿掉 {ablation}"
            )
