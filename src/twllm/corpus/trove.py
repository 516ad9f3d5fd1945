"""One phase of a job as a datatrove pipeline, and datatrove's executors around it."""

import os
import sys
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from twllm.corpus.engine import Job, Phase, Worker, load_job
from twllm.corpus.executors import note_error
from twllm.errors import UserError

_WORKERS: dict[tuple[str, float], Worker] = {}  # of this process, by work folder and age of its plan


class CorpusPhase(PipelineStep):  # type: ignore[misc]
    """Task `rank` of a phase: reads, filters and writes whole parts of the corpus; documents do not leave it."""

    type = "corpus"

    def __init__(self, work: str, phase: Phase, strict: bool = False) -> None:
        super().__init__()
        self.name = f"twllm {phase.name}"
        self.work, self.phase, self.strict = work, phase, strict

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Run the task. A bad input is noted for whoever started the phase; with `strict` it also fails the task."""
        worker = worker_of(Path(self.work))
        with self.track_time():
            try:
                worker.run(self.phase, rank)
            except UserError as error:
                note_error(worker.job, self.phase, rank, error)
                if self.strict:
                    raise
        self.stat_update("tasks")


class CorpusFinish(PipelineStep):  # type: ignore[misc]
    """The last job of a chain: the finished folder."""

    type = "corpus"
    name = "twllm finish"

    def __init__(self, work: str, out: str) -> None:
        super().__init__()
        self.work, self.out = work, out

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Write the folder."""
        from twllm.corpus.build import write_corpus

        write_corpus(load_job(Path(self.work)), Path(self.out))


def worker_of(work: Path) -> Worker:
    """This process's worker for a work folder."""
    key = (str(work), (work / "plan.json").stat().st_mtime)
    if key not in _WORKERS:
        _WORKERS.clear()
        _WORKERS[key] = Worker(load_job(work))
    return _WORKERS[key]


def phase_step(job: Job, phase: Phase, strict: bool = False) -> CorpusPhase:
    """The pipeline step of a phase."""
    return CorpusPhase(os.path.abspath(job.work), phase, strict)  # noqa: PTH100 - links are not followed


class QuietLocal(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's pool whose tasks log to files, and to the terminal only what fails."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        try:
            return super()._run_for_rank(rank, max(local_rank, 1), node_rank)
        finally:
            quiet()  # datatrove has put its own handler back


def quiet() -> None:
    """datatrove's log to its files only."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="ERROR")


def run_local(job: Job, phase: Phase, workers: int) -> None:
    """A phase in a pool of processes."""
    quiet()
    logs = str(job.work / "logs" / phase.name)
    step, tasks = phase_step(job, phase), phase.tasks
    # two workers at least: with one, datatrove would run the tasks here, among what this process has loaded
    QuietLocal([step], tasks=tasks, workers=max(2, min(workers, tasks)), logging_dir=logs, skip_completed=False).run()


def run_ray(job: Job, phase: Phase, workers: int) -> None:
    """A phase on a Ray cluster: the one of RAY_ADDRESS, else one on this machine.

    Raises:
        UserError: ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("需要 ray 套件 (package missing)", "--executor ray", "pip install 'twllm[ray]'") from error
    from datatrove.executor.ray import RayPipelineExecutor

    quiet()
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(
            **({"address": address} if address else {"num_cpus": max(1, workers)}),
            log_to_driver=False,
            configure_logging=False,
        )
    logs = str(job.work / "logs" / phase.name)
    try:
        RayPipelineExecutor(
            [phase_step(job, phase)],
            tasks=phase.tasks,
            workers=max(1, min(workers, phase.tasks)),
            logging_dir=logs,
            skip_completed=False,
            mem_per_cpu_gb=0.5,
        ).run()
    finally:
        if started:
            ray.shutdown()
