"""Run a recipe's stages into one folder, resume what was interrupted, and say what is done, stale, or missing."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape

from twllm import artifact
from twllm.errors import UserError, did_you_mean
from twllm.pipeline.checks import check_recipe, phases
from twllm.pipeline.stages import Context, Stage, build_stages
from twllm.recipe import Loaded, Recipe
from twllm.train.config import MachineConfig

T = TypeVar("T")
RECIPE_FILE = "recipe.json"  # the resolved recipe of the run, for `status` and for the people who find the folder later
WORK = ".work"  # unfinished stages: training states, logs
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class State:
    """Where a stage stands: done, stale (with the reason), interrupted, running or missing."""

    name: str
    state: str
    detail: str


def run_recipe(loaded: Loaded, out: Path, machine: MachineConfig, until: str | None = None) -> None:
    """Run every stage that is not up to date, in order, then write the report.

    Raises:
        UserError: bad recipe or input; another process runs in the same folder; the disk is full.
    """
    check_recipe(loaded)
    stages = build_stages(loaded)
    wanted = list(stages)
    if until is not None:
        if until not in stages:
            raise UserError("沒有這個階段 (unknown stage)", f"--until {until}", did_you_mean(until, stages))
        wanted = wanted[: wanted.index(until) + 1]
    if machine.context_parallel > 1:
        from twllm.train.context import check_phase

        for name, phase in phases(loaded.recipe):
            check_phase(name, phase)
    if is_one_of_several():
        from twllm.train import distributed

        distributed.start(machine)
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(artifact.lock(out))
            artifact.write_json(out / RECIPE_FILE, run_record(loaded))

        from_main(begin)
        if is_one_of_several():
            distributed.check_shared(out)
        for name in wanted:
            run_stage(stages[name], stages, out, machine)
        if until is None:
            from_main(lambda: write_run_report(loaded.recipe, out, list(stages)))


def is_one_of_several() -> bool:
    """Whether this process was started next to others (torch is not imported to find out that it was not)."""
    return "RANK" in os.environ or "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def from_main(work: Callable[[], T]) -> T:
    """`work` by process 0, its result for all (train/distributed.py)."""
    if not is_one_of_several():
        return work()
    from twllm.train import distributed

    return distributed.from_main(work)


def run_record(loaded: Loaded) -> dict[str, Any]:
    """What `status` needs later: where the recipe lies, the overrides, the folder they were given in, and every value."""
    return {
        "file": str(loaded.file.absolute()),
        "set": list(loaded.overrides),
        "cwd": str(Path.cwd()),
        "recipe": loaded.recipe.model_dump(mode="json"),
    }


def run_stage(stage: Stage, stages: dict[str, Stage], out: Path, machine: MachineConfig) -> None:
    """Run one stage unless its folder is up to date; the folder appears whole, with its manifest."""
    reason = from_main(lambda: stale_reason(stage, stages, out))
    if reason is None:
        console.print(f"[dim]· {stage.name} 已完成 (up to date)[/]")
    elif not is_one_of_several():
        _run_stage(stage, stages, out, machine, reason)
    elif stage.together:
        _run_together(stage, stages, out, machine, reason)
    else:
        from_main(lambda: _run_stage(stage, stages, out, machine, reason))


def _run_together(stage: Stage, stages: dict[str, Stage], out: Path, machine: MachineConfig, reason: str) -> None:
    """All processes: process 0 as if it were alone, the others beside it, writing nothing."""
    work = out / WORK / f"{stage.name}-{stage.fingerprint}"
    if os.environ["RANK"] == "0":
        _run_stage(stage, stages, out, machine, reason)
    else:
        stage.run(Context(work, {name: out / name for name in stage.needs}, work, machine))
    from_main(lambda: None)


def _run_stage(stage: Stage, stages: dict[str, Stage], out: Path, machine: MachineConfig, reason: str) -> None:
    console.print(f"[bold]▶ {stage.name}[/] [dim]{escape(reason)}[/]")
    work = out / WORK / f"{stage.name}-{stage.fingerprint}"
    for old in (out / WORK).glob(f"{stage.name}-????????????????"):
        if old != work:
            shutil.rmtree(old)  # the work of another configuration
    started = time.perf_counter()
    with artifact.write_folder(out / stage.name) as folder:
        facts = stage.run(Context(folder, {name: out / name for name in stage.needs}, work, machine))
        seconds = round(time.perf_counter() - started, 2)
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        artifact.write_manifest(
            folder, stage.name, stage.config, stage.inputs(stages), metrics=facts, seconds=seconds, peak_rss_mb=peak
        )
    shutil.rmtree(work, ignore_errors=True)
    console.print(f"[green]✓ {stage.name}[/] {seconds:.1f} s {escape(summary(facts))}")


def summary(facts: dict[str, Any]) -> str:
    """The few numbers of a stage that a person looks for."""
    keys = ("documents", "vocab_size", "steps", "tokens", "loss", "held_out_loss", "held_out_bits_per_char", "scores")
    return "  ".join(
        f"{key} {facts[key]:,.4g}" if isinstance(facts[key], float) else f"{key} {facts[key]}"
        for key in keys
        if key in facts
    )


def stale_reason(stage: Stage, stages: dict[str, Stage], out: Path) -> str | None:
    """None if the stage's folder is up to date, else why it must be run."""
    manifest = artifact.read_manifest(out / stage.name)
    if manifest is None:
        return "尚未執行 (not run yet)"
    if manifest.get("fingerprint") == stage.fingerprint:
        return None
    return "要重跑 (stale)：" + "；".join(_differences(manifest, stage, stages)[:3])


def _differences(manifest: dict[str, Any], stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """What changed between a manifest and what the recipe now says."""
    from twllm.recipe import leaves

    old, new = (
        dict(leaves(json.loads(artifact.canonical_json(c)))) for c in (manifest.get("config", {}), stage.config)
    )
    found = [
        f"{key} {old.get(key, '（無）')} → {new.get(key, '（無）')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    old, new = manifest.get("inputs", {}), stage.inputs(stages)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            found.append(f"輸入 {Path(name).name} 變了 (input changed)")
    return found or ["設定變了 (configuration changed)"]


def run_status(out: Path) -> list[State]:
    """The state of every stage of the run in `out`, by the recipe it was started with (as the file says now, if it still exists).

    Raises:
        UserError: the folder is not a run.
    """
    try:
        saved = json.loads((out / RECIPE_FILE).read_text(encoding="utf-8"))
        loaded = current_recipe(saved, out / RECIPE_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError("這裡沒有跑過配方 (not a run folder)", out, "twllm run RECIPE --out 這個資料夾") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "執行紀錄壞了 (damaged run record)", out / RECIPE_FILE, "用同一份配方再跑一次 twllm run"
        ) from error
    stages = build_stages(loaded)
    running = artifact.is_running(out)
    return [_state(stage, stages, out, running) for stage in stages.values()]


def current_recipe(saved: dict[str, Any], record: Path) -> Loaded:
    """The recipe as its file says now, with the run's overrides; as it was run, where the file is gone."""
    from twllm.recipe import load_recipe, validate

    file = Path(saved["file"])
    if file.is_file():
        return load_recipe(file, saved.get("set", ()), Path(saved.get("cwd", ".")))
    return Loaded(validate(Recipe, saved["recipe"], record), file)


def _state(stage: Stage, stages: dict[str, Stage], out: Path, running: bool) -> State:
    reason = stale_reason(stage, stages, out)
    manifest = artifact.read_manifest(out / stage.name)
    if reason is None and manifest is not None:
        old = "" if manifest["code_version"] == artifact.code_version() else "（由另一版程式產生 made by other code）"
        return State(stage.name, "done", f"{manifest['seconds']:.1f} s {summary(manifest['metrics'])}{old}")
    work = out / WORK / f"{stage.name}-{stage.fingerprint}"
    active = any(out.glob(f".{stage.name}.partial-*"))
    states = sorted(p.name for p in (work / "states").glob("step-*"))
    kept = f"，保存到 {states[-1]} (resumable)" if states else ""
    if active:
        return State(stage.name, "running" if running else "interrupted", ("執行中" if running else "中斷") + kept)
    if states:
        return State(stage.name, "interrupted", f"中斷{kept}")
    return State(stage.name, "stale" if manifest else "missing", str(reason))


def write_run_report(recipe: Recipe, out: Path, stages: list[str]) -> None:
    """`report.json`, `report.md` and the pictures, from the stages' folders."""
    from twllm.pipeline.report import write_report

    report = write_report(recipe, out, stages)
    Console(file=sys.stdout, highlight=False).print(report, markup=False)  # it holds what a model said
