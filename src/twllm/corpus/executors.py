"""Who runs the tasks of a job: this process, a pool of processes or a Ray cluster (datatrove's executors). Slurm: slurm.py.

With one worker nothing is started and nothing imported: a small corpus takes a second. The pool and Ray are datatrove's
LocalPipelineExecutor and RayPipelineExecutor around one pipeline step (trove.py), phase after phase; which tasks are finished is told
by our own folders, not by datatrove's marks. An error of a task lets the others finish; then the first one (in the
order of the parts) is raised. Ray's machines must see the work folder under the same path.
"""

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

from twllm.corpus.engine import Job, Listener, Phase, Worker
from twllm.errors import UserError

ERRORS = "errors"


def run_job(job: Job, executor: str = "local", workers: int = 1) -> None:
    """Run all phases that are not finished yet.

    Raises:
        UserError: bad input, or an executor whose package is missing.
    """
    if executor == "local" and workers <= 1:
        with progress_bar(job) as listener:
            worker = Worker(job, listener)
            for phase in job.phases:
                if phase.kind == "map":
                    listener.on_phase()
                for task in range(phase.tasks):
                    worker.run(phase, task)
        return
    from twllm.corpus.trove import run_local, run_ray

    runners = {"local": run_local, "ray": run_ray}
    for phase in job.phases:
        if all(job.done(phase, task) for task in range(phase.tasks)):
            continue
        shutil.rmtree(job.work / ERRORS, ignore_errors=True)
        with watch(job, phase):
            if phase.tasks == 1 and phase.kind != "map":
                Worker(job).run(phase, 0)
            else:
                runners[executor](job, phase, workers)
        raise_first_error(job)
        if left := [task for task in range(phase.tasks) if not job.done(phase, task)]:
            what = f"{phase.name} 有 {len(left)} 個工作沒有完成 (unfinished tasks)"
            raise UserError(what, job.work / "logs" / phase.name, "看這裡的紀錄；用同一個指令重跑會接續")


def note_error(job: Job, phase: Phase, task: int, error: UserError) -> None:
    """Keep an error of a task for the process that started it."""
    from twllm.artifact import write_json

    write_json(job.work / ERRORS / f"{phase.name}-{task:05}.json", [error.what, error.where, error.fix])


def raise_first_error(job: Job) -> None:
    """The first error that tasks noted, if there is one."""
    for file in sorted((job.work / ERRORS).glob("*.json")):
        raise UserError(*json.loads(file.read_text(encoding="utf-8")))


@contextlib.contextmanager
def _bar(total: float, *columns: Any, **fields: Any) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    shown = (*columns, BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True)) as progress:
        yield progress, progress.add_task("corpus", total=total, **fields)


@contextlib.contextmanager
def progress_bar(job: Job) -> Iterator[Listener]:
    """A bar over the bytes of all parts with the number of documents kept so far, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Listener()
        return
    from rich.progress import TextColumn

    total = sum(part.size for _, part in job.parts) or 1
    with _bar(total, TextColumn("語料 {task.fields[kept]:,} 份"), kept=0) as (progress, task):
        kept = 0

        def on_document() -> None:
            nonlocal kept
            kept += 1
            if kept % 64 == 0:
                progress.update(task, kept=kept)

        def on_phase() -> None:
            nonlocal kept
            kept = 0

        yield Listener(lambda count: progress.advance(task, count), on_document, on_phase)
        progress.update(task, kept=kept, completed=total)


@contextlib.contextmanager
def watch(job: Job, phase: Phase) -> Iterator[None]:
    """A bar over the finished tasks of a phase that runs elsewhere, if stderr is a terminal."""
    if not sys.stderr.isatty() or phase.tasks == 1:
        yield
        return
    from rich.progress import TextColumn

    over = threading.Event()
    with _bar(phase.tasks, TextColumn(f"語料 {phase.name} {{task.completed}}/{{task.total}}")) as (progress, bar):

        def look() -> None:
            while not over.wait(1.0):
                progress.update(bar, completed=sum(job.done(phase, task) for task in range(phase.tasks)))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            progress.update(bar, completed=sum(job.done(phase, task) for task in range(phase.tasks)))
