"""`twllm train PHASE`: one phase on its own, a checkpoint folder in and one out, resumable like a run.

Unfinished work waits in `.NAME.work-*` beside the output, named by all that the result depends on: the same command goes on, another
one starts anew and says so. An output that is finished with the same settings and inputs is left as it is.
"""

import glob
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from twllm import data as shipped
from twllm.artifact import (
    fingerprint,
    hash_path,
    lock,
    read_manifest,
    stage_fingerprint,
    write_folder,
    write_json,
    write_manifest,
)
from twllm.errors import UserError
from twllm.tokens.build import tokenize_chats, tokenize_corpus
from twllm.tokens.tokenizer import ChatTokenizer
from twllm.train.config import FeedbackConfig, MachineConfig, OptimConfig, PretrainConfig, SftConfig
from twllm.train.watch_config import WatchConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from twllm.corpus.config import CorpusConfig

PHASES: dict[str, type[OptimConfig]] = {"pretrain": PretrainConfig, "sft": SftConfig, "feedback": FeedbackConfig}
FACTS = "data.json"  # in the tokens folder: what tokenising met


@dataclass
class Job:
    """What was asked for, checked."""

    phase: str
    config: OptimConfig
    corpus: "CorpusConfig | None"  # pretraining's
    watch: WatchConfig
    start: Path
    tokenizer: ChatTokenizer
    sources: list[str]
    out: Path
    base: str  # `start`, as it was named
    note: str = ""  # to be told with what the data is

    @property
    def weights(self) -> list[float]:
        """How often an epoch shows each document of each source."""
        return [float(dataset.weight) for dataset in getattr(self.config, "datasets", ())] or [1.0] * len(self.sources)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hashes of everything read."""
        from twllm.model.hub import fetch

        found = {"model": hash_path(self.start)}
        found |= {source: hash_path(shipped.resolve(source)) for source in map(_absolute, self.sources)}
        if isinstance(self.config, PretrainConfig | SftConfig) and self.config.teacher:
            found["teacher"] = hash_path(fetch(self.config.teacher.model, self.config.teacher.revision))
        texts = self.config.forgetting.texts if self.config.forgetting else ()
        return found | {text: hash_path(shipped.resolve(text)) for text in texts}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The settings that the result depends on."""
        found = self.config.model_dump(mode="json") | {"template": self.tokenizer.template_fingerprint}
        return found | ({"corpus": self.corpus.model_dump(mode="json")} if self.corpus else {})

    @cached_property
    def work(self) -> Path:
        """Where unfinished work waits."""
        return self.out.parent / f".{self.out.name}.work-{fingerprint([self.phase, self.facts, self.inputs])}"

    def begin(self) -> "PreTrainedModel":
        """The model that training starts from."""
        from twllm.train.phase import start_model

        return start_model(None, str(self.start), None, self.tokenizer, self.config.context, self.config.seed)

    def tokenize(self, out: Path) -> None:
        """Fill `out` with shards, and with what there is to say about the data."""
        if self.corpus is None:
            assert isinstance(self.config, SftConfig | FeedbackConfig)
            held_out, method = getattr(self.config, "held_out", 0.0), getattr(self.config, "method", None)
            found = tokenize_chats(out, self.config.datasets, self.tokenizer, self.config.context, held_out, method)
        else:
            from twllm.corpus.build import build_corpus

            built = out / "corpus"
            built.mkdir()
            kept = build_corpus(self.corpus, built)
            labels = [source.label for source in self.corpus.sources]
            found = tokenize_corpus(out, built, labels, self.tokenizer)
            found |= {"dropped": kept["dropped"], "licenses": kept["licenses"]}
        write_json(out / FACTS, found)

    def card(self, folder: Path, counts: dict[str, Any]) -> dict[str, Any]:
        """Write the result's model card: the base's licence and data, then this data, as it was counted; gives the manifest's part."""
        from twllm.corpus.licences import DataUse
        from twllm.release.card import trained_card
        from twllm.release.facts import phase_settings, shown

        if self.corpus is None:
            found = [(shown(source), counts[f"{number:03}"]) for number, source in enumerate(self.sources)]
            uses = [DataUse(name, self.phase, f.get("licenses") or {}, f.get("generators") or {}) for name, f in found]
        else:
            uses = [DataUse("、".join(map(shown, self.sources)), "預訓練 pretrain", counts.get("licenses") or {})]
        return trained_card(self.start, self.base, folder, self.out, uses, [(self.phase, phase_settings(self.config))])


def train_alone(
    phase: str, model: str, sources: list[str], out: Path, sets: list[str], machine: Path | None, template: str | None, licence: str, show: int,
    find_lr: bool = False,
) -> None:  # fmt: skip
    """Tokenise `sources`, train from `model`, write `out`; `find_lr`: only look for a learning rate, `out` gets curve and picture.

    Raises:
        UserError: bad model, data or settings.
    """
    from twllm.recipe import load_machine
    from twllm.train import distributed
    from twllm.train.state import list_states

    job, settings_of = make_job(phase, model, sources, out, sets, template, licence), load_machine(machine)
    if show:
        from twllm.train.show import show_masks

        show_masks(job.config, job.tokenizer, show)
        return
    if find_lr:
        if distributed.launched():
            raise UserError("找學習率只用一個行程 (one process only)", "--find-lr", "拿掉 torchrun")
        _find_rate(job, settings_of)
        return
    distributed.start(settings_of)
    with ExitStack() as stack:
        distributed.from_main(lambda: _take(stack, job))
        if distributed.from_main(lambda: _is_done(job)):
            return
        try:
            metrics = _train(job, settings_of)
        except UserError:
            if distributed.is_main() and not list_states(job.work / "states"):
                shutil.rmtree(job.work, ignore_errors=True)  # nothing that the corrected command could go on from
            raise
    if distributed.is_main():
        told = f"{metrics.get('stopped_at', metrics['steps'])} 步 (steps)  loss {metrics['loss']:.4f}"
        Console(stderr=True).print(f"[green]✓[/] {escape(str(out))}  {told}", soft_wrap=True)


def make_job(
    phase: str, model: str, sources: list[str], out: Path, sets: list[str], template: str | None, licence: str
) -> Job:
    """The command line, checked. `--set KEY` and `--set PHASE.KEY` are the same; `watch.`, and `datasets.` (SFT, feedback) or
    `corpus.` (pretraining), are for all of `--data`.

    Raises:
        UserError: something is not as it should be.
    """
    from twllm.corpus.config import CorpusConfig
    from twllm.model.hub import fetch
    from twllm.model.rope import folder_limit
    from twllm.recipe import parse_settings, validate

    settings = parse_settings(sets)
    own = settings.pop(phase, {})
    settings |= own if isinstance(own, dict) else {phase: own}
    if others := sorted((PHASES.keys() - {phase}) & settings.keys()):
        raise UserError(
            f"這裡只訓練 {phase}，{others[0]} 的設定會被忽略 (would be ignored)", f"--set {others[0]}.…", "拿掉它"
        )
    watch = validate(WatchConfig, settings.pop("watch", {}), "--set watch")
    about, corpus = "corpus" if phase == "pretrain" else "datasets", None
    of_data = settings.pop(about, {})
    if not isinstance(of_data, dict) or {"path", "sources"} & of_data.keys():
        raise UserError(
            "資料用 --data 給 (name the data with --data)", f"--set {about}", f"--set {about}.on_broken=skip 之類可以"
        )
    if phase == "pretrain":
        if "mix" in of_data:
            what = "單獨訓練時各份資料一樣重，mix 會被忽略 (mix would be ignored)"
            raise UserError(what, "--set corpus.mix", "配比寫在配方裡，用 twllm run")
        listed = [{"path": _absolute(source), "license": licence or _shipped_licence(source)} for source in sources]
        corpus = validate(CorpusConfig, {**of_data, "sources": listed}, "--set corpus")
    else:
        settings["datasets"] = [{"license": licence, **of_data, "path": _absolute(source)} for source in sources]
    config = validate(PHASES[phase], settings, "--set")
    if not config.enabled:
        raise UserError(
            "enabled = false 會被忽略 (would be ignored)", f"twllm train {phase}", "拿掉它；enabled 是配方用的"
        )
    start = fetch(model)
    if out.exists() and start.resolve() == out.resolve():
        raise UserError("輸出就是起點模型，訓練完會蓋掉它 (the output is the starting model)", out, "換一個 --out")
    tokenizer = ChatTokenizer.load(start)
    if phase != "pretrain":
        tokenizer = tokenizer.with_template(template) if template else tokenizer.with_own_end()
    limit, note = folder_limit(start), ""
    if limit is not None and config.context > limit:
        if "context" in settings:
            what = f"context {config.context} 超過模型的 {limit} (longer than the model's positions)"
            raise UserError(
                what, start, f"--set context={limit} 或更小，或先用 twllm model rope 加長（docs/methods.md）"
            )
        note = f"※ 沒有說 context：模型只到 {limit}，用 {limit} (the model's positions)"
        config = config.model_copy(update={"context": limit})
    return Job(phase, config, corpus, watch, start, tokenizer, sources, out, model, note)


def _absolute(source: str) -> str:
    """The same place from every folder that the command is given in: unfinished work is found again."""
    return source if source.startswith(shipped.PREFIX) or "://" in source else os.path.abspath(source)  # noqa: PTH100


def _shipped_licence(source: str) -> str:
    return "CC-BY-4.0" if source.startswith(shipped.PREFIX) else ""


def _take(stack: ExitStack, job: Job) -> None:
    """The output is ours until the end; two commands may not write one folder."""
    file = job.out.parent / f".{job.out.name}.lock"
    stack.enter_context(lock(job.out, file))
    stack.callback(file.unlink, missing_ok=True)


def _is_done(job: Job) -> bool:
    """Whether `out` is the result already; another result of the same phase is replaced at the end, and that is told.

    Raises:
        UserError: `out` is something else that twllm made.
    """
    from twllm.train.state import list_states

    console, there = Console(stderr=True, highlight=False), read_manifest(job.out)
    if there and there.get("fingerprint") == stage_fingerprint(job.phase, job.facts, job.inputs):
        console.print(
            f"✓ {job.out} 已經完成，設定與資料都沒變 (done before, nothing to do)", markup=False, soft_wrap=True
        )
        return True
    _refuse_other(job.out, job.phase)
    if there:
        console.print(f"※ {job.out} 是以前的結果，訓練完會被取代 (will be replaced)", markup=False)
    for other in sorted(job.out.parent.glob(f".{glob.escape(job.out.name)}.work-*")):
        if other != job.work and list_states(other / "states"):
            why = "另有中斷的訓練，設定或資料不同，這次從頭開始；不要了就刪掉 (unfinished work of other settings)"
            console.print(f"※ {why}：{other}", markup=False, soft_wrap=True)
    return False


def _refuse_other(out: Path, stage: str) -> None:
    """What was made by another command stays.

    Raises:
        UserError: `out` holds that.
    """
    if (there := read_manifest(out)) and there.get("stage") != stage:
        what = f"這裡是別的東西 (holds something else): {there.get('stage')}"
        raise UserError(what, out, "換一個 --out，或先移開它")


def _train(job: Job, machine: MachineConfig) -> dict[str, Any]:
    from twllm.train import distributed
    from twllm.train.phase import train_phase

    tokens = job.work / "tokens"

    def tokenize() -> None:
        if not tokens.is_dir():  # whole where it is there, and `work` is named by everything it depends on
            with write_folder(tokens) as shards:
                job.tokenize(shards)
        _tell(job, tokens)

    with distributed.shared_folder(job.out) as folder:
        distributed.check_shared(job.work)
        distributed.from_main(tokenize)
        metrics = train_phase(
            job.phase, job.config, job.weights, job.begin(), job.tokenizer, tokens, folder, job.work, machine, job.begin, job.watch
        )  # fmt: skip
        if distributed.is_main():
            for names in tokens.glob("*/names.jsonl"):  # `twllm train seen` reads them, the tokens go
                kept = folder / "tokens" / names.parent.name / names.name
                kept.parent.mkdir(parents=True)
                shutil.copyfile(names, kept)
            counts = json.loads((tokens / FACTS).read_text(encoding="utf-8"))
            metrics |= job.card(folder, counts)
            write_manifest(folder, job.phase, job.facts, job.inputs, counts=counts, metrics=metrics)
    if distributed.is_main():
        shutil.rmtree(job.work)
    return metrics


def _tell(job: Job, tokens: Path) -> None:
    """A line a data set: documents and tokens, and what was left out or cut; nothing goes missing in silence."""
    console = Console(stderr=True, highlight=False)
    facts = json.loads((tokens / FACTS).read_text(encoding="utf-8"))
    if job.note:
        console.print(job.note, markup=False, soft_wrap=True)
    for number, source in enumerate(job.sources):
        found = facts[f"{number:03}"]
        learned, known = found["num_learned_tokens"], found["num_documents"]
        text = f"{source}：{known:,} 份，{found['num_tokens']:,} 個詞元，學 {learned:,} 個 (documents, tokens, learned)"
        lost = {"太長略過 too long": found.get("num_too_long"), "截短 shortened": found.get("num_shortened")}
        lost |= {f"略過 skipped {reason}": count for reason, count in found.get("skipped", {}).items()}
        told = "、".join(f"{name} {count:,}" for name, count in lost.items() if count)
        console.print(text + (f"；{told}" if told else ""), markup=False, soft_wrap=True)
    share = getattr(job.config, "held_out", 0.0)
    if held := facts.get("held_out", {}).get("num_documents"):
        console.print(f"保留 {held:,} 份，只量損失 (held out)", markup=False)
    elif share:
        console.print(
            f"※ held_out = {share} 一份也沒分到，不量保留損失 (nothing was held out)：調大，或資料多一點",
            soft_wrap=True,
        )
    if dropped := {name: count for name, count in facts.get("dropped", {}).items() if count}:
        told = "、".join(f"{name} {count}" for name, count in dropped.items())
        console.print(
            f"※ 語料步驟丟掉的 (dropped by corpus steps)：{told}；--set corpus.steps=[] 不過濾",
            markup=False,
            soft_wrap=True,
        )


def _find_rate(job: Job, machine: MachineConfig) -> None:
    """Everything but the picture, the curve and the table is gone afterwards."""
    from twllm.train.lr_finder import STAGE, find_rate, write_found
    from twllm.train.phase import make_trainer

    _refuse_other(job.out, STAGE)
    with TemporaryDirectory(prefix="twllm-lr-") as folder, write_folder(job.out) as out:
        tokens = Path(folder) / "tokens"
        tokens.mkdir()
        job.tokenize(tokens)
        model, work = job.begin(), Path(folder) / "work"
        trainer = make_trainer(job.phase, job.config, job.weights, model, job.tokenizer, tokens, work, machine)
        write_found(find_rate(trainer), out, job.phase, job.inputs, job.facts)
