"""`twllm train watch RUN`: the live view of a run that trains in another process, or how a finished one went."""

import glob
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from twllm.train.live import View

DONE = "完成 done"


def watch(
    run: Annotated[
        Path,
        typer.Argument(
            help="執行資料夾、階段資料夾，或 twllm train --out 的資料夾 (run, phase or output folder)", metavar="RUN"
        ),
    ],
    phase: Annotated[str | None, typer.Option(help="看哪個階段；不給就看最近有動靜的 (default: the latest)")] = None,
    once: Annotated[bool, typer.Option("--once", help="印一次就結束 (print once)")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="幾秒更新一次 (seconds between updates)")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="另外畫成 PNG：損失、學習率、梯度、速度")] = None,
) -> None:
    """看訓練：損失、速度、剩多久、警報、模型說的話 (watch a run, live or finished)."""
    from rich.console import Console
    from rich.live import Live

    from twllm.artifact import is_running
    from twllm.train.live import draw
    from twllm.train.plots import plot_training
    from twllm.train.rows import read_rows

    folder = find_phase(run, phase)
    if plot:
        plot_training(read_rows(folder / "metrics.jsonl"), read_rows(folder / "alarms.jsonl"), plot, str(run))
    console = Console(highlight=False)
    view = read_view(folder)
    if once or not console.is_terminal:
        console.print(draw(view, console.width))
        return
    pause = every
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(draw(view, console.width), refresh=True)
            if view.state == DONE and (phase or not is_running(folder.parent)):  # else the next phase is to come
                return
            time.sleep(pause)
            began = time.perf_counter()
            folder = find_phase(run, phase)  # the next phase may have begun; a finished one moves to its own folder
            view = read_view(folder)
            pause = max(every, 9 * (time.perf_counter() - began))  # long logs must not cost the training a core


def seen(
    run: Annotated[Path, typer.Argument(help="執行資料夾或階段資料夾 (run or phase folder)", metavar="RUN")],
    step: Annotated[int | None, typer.Option(min=1, help="第幾步；不給就列出帳本有哪些步")] = None,
    phase: Annotated[str | None, typer.Option(help="哪個階段；不給就看最近有動靜的 (default: the latest)")] = None,
    document: Annotated[str | None, typer.Option(help="改問：這份文件（名稱）在哪些步看過 (steps that saw it)")] = None,
) -> None:
    """第幾步學了哪些文件：分片、文件、從第幾個詞元起 (which documents a step saw)."""
    from twllm.train.ledger import tell

    tell(find_phase(run, phase), step, document)


def find_phase(run: Path, phase: str | None) -> Path:
    """The folder with the metrics.jsonl that changed last.

    Raises:
        UserError: nothing was trained there.
    """
    from twllm.errors import UserError, require_file

    places = [
        run,
        *run.glob("*"),
        *run.glob(".work/*"),
        *run.parent.glob(f".{glob.escape(run.name)}.work-*"),
        *run.glob(".*.partial-*"),
    ]
    found = [place for place in places if (place / "metrics.jsonl").is_file()]
    if phase:
        found = [p for p in found if p.name.startswith(f"{phase}-") or phase in (p.name, *_names(p))]
    if not found:
        if not run.exists():
            require_file(run, "沒有這個資料夾 (no such folder)")
        what = f"這裡還沒有{phase or '訓練'}的紀錄 (nothing trained here yet)"
        raise UserError(what, run, "等它開始，或檢查資料夾；twllm status 說做到哪裡")
    return max(found, key=lambda place: (place / "metrics.jsonl").stat().st_mtime)


def _names(folder: Path) -> Iterator[str]:
    """What the phase in it is called, if `twllm train` put it there."""
    from twllm.artifact import read_manifest
    from twllm.train.watch import FACTS

    if manifest := read_manifest(folder):
        yield str(manifest.get("stage"))
    if (folder / FACTS).is_file():
        yield str(json.loads((folder / FACTS).read_text(encoding="utf-8"))["name"])


def state_of(folder: Path, last_s: float) -> str:
    """Whether the phase in `folder` is done, or going on ("": as the numbers say), or was interrupted. By the lock: a run on
    another host is known only where the file system shares locks, so the time since the last step is told.
    """
    from twllm.artifact import MANIFEST, is_running
    from twllm.train.live import clock

    if (folder / MANIFEST).is_file():
        return DONE
    run = folder.parent.parent if folder.parent.name == ".work" else folder.parent
    beside = re.match(r"\.(.+)\.(work|partial)-", folder.name)
    if is_running(run, run / f".{beside[1]}.lock" if beside else None):
        return ""
    return f"沒有在跑 (not running)，上一步在 {clock(last_s)} 前；用同一個指令接續 (the same command goes on)"


def read_view(folder: Path) -> "View":
    """What the files say."""
    from twllm.train.alarms import as_text
    from twllm.train.live import View
    from twllm.train.rows import read_rows
    from twllm.train.watch import FACTS

    rows = read_rows(folder / "metrics.jsonl")
    facts = {"name": folder.name, "steps": max((row["step"] for row in rows), default=0)}
    if (folder / FACTS).is_file():
        facts |= json.loads((folder / FACTS).read_text(encoding="utf-8"))
    view = View(str(facts["name"]), int(facts["steps"]))
    view.rows += rows
    view.state = state_of(folder, max(0.0, time.time() - (folder / "metrics.jsonl").stat().st_mtime))
    samples = read_rows(folder / "samples.jsonl")
    view.samples = [row for row in samples if row["step"] == samples[-1]["step"]]
    view.alarms = [as_text(row) for row in read_rows(folder / "alarms.jsonl")]
    return view
