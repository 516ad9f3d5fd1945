"""A corpus build as a chain of Slurm job arrays (datatrove's SlurmPipelineExecutor): one array a phase, then the finished folder.

Each job waits for the one before it (`afterok`), so bad input stops the chain; its error is in the job's log and in
`errors/` of the work folder. Submitting again goes on with the unfinished tasks. The work folder must be on a disk that
all nodes see. Settings are those of the executor: partition, time, qos, cpus_per_task, mem_per_cpu_gb, max_array_size,
tasks_per_job, env_command, venv_path, ….
"""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

from twllm.corpus.engine import Job
from twllm.errors import UserError, did_you_mean

DEFAULTS = {"time": "24:00:00", "mail_type": "NONE", "qos": ""}


def submit(job: Job, out: Path, workers: int, settings: dict[str, Any]) -> list[str]:
    """Submit the chain; returns the job ids, the last one writes `out`.

    Raises:
        UserError: an unknown setting, no partition, or no sbatch on this machine.
    """
    from datatrove.executor.slurm import SlurmPipelineExecutor

    from twllm.corpus.trove import CorpusFinish, phase_step, quiet

    known = set(inspect.signature(SlurmPipelineExecutor).parameters) - {"pipeline", "tasks", "depends", "logging_dir"}
    for name in settings:
        if name not in known:
            raise UserError(
                f"Slurm 沒有這個設定 (unknown setting) {name}", f"--slurm {name}=…", did_you_mean(name, known)
            )
    if "partition" not in settings:
        raise UserError("要指定 partition (no partition)", "--slurm", "加上 --slurm partition=名稱（sinfo 列出有哪些）")
    quiet()
    out = Path(os.path.abspath(out))  # noqa: PTH100 - links are not followed
    common = {**DEFAULTS, "skip_completed": False, **_environment(settings), **settings}
    if workers > 1:
        common["workers"] = workers
    steps: list[tuple[str, Any, int]] = [
        (phase.name, phase_step(job, phase, strict=True), phase.tasks) for phase in job.phases
    ]
    steps.append(("finish", CorpusFinish(os.path.abspath(job.work), str(out)), 1))  # noqa: PTH100
    before, ids = None, list[str]()
    for name, step, tasks in steps:
        logs = str(job.work / "logs" / name)
        job_name = {"job_name": f"corpus-{name}"} if "job_name" not in settings else {}
        executor = SlurmPipelineExecutor(
            [step], tasks=tasks, logging_dir=logs, depends_job_id=before, **{**common, **job_name}
        )
        try:
            executor.run()
        except FileNotFoundError as error:
            raise UserError(
                "這台機器沒有 sbatch (no Slurm here)", "--executor slurm", "在登入節點執行，或用 --executor local"
            ) from error
        before = str(executor.job_id)
        ids.append(before)
    return ids


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    """The virtual environment that this process runs in, unless another one is named."""
    if {"env_command", "condaenv", "venv_path"} & set(settings) or sys.prefix == sys.base_prefix:
        return {}
    return {"venv_path": str(Path(sys.prefix) / "bin" / "activate")}
