"""Build a corpus: sources → steps → documents, a held-out part, and the funnel as numbers, table, picture and samples.

The folder: `documents.jsonl.zst` (or `documents/NNNNN.jsonl.zst` with `write = "shards"`), `held_out.jsonl.zst`,
`funnel.json`, `.md`, `.html`, `.png`, `drops/REASON.jsonl`, reports of global steps. The same input gives the same bytes with any executor
and any number of workers, killed in between or not (engine.py).

Which documents are held out depends on the hash of (seed, id) alone: adding a source moves no document of another one
from one part to the other, as long as `max_held_out` does not bind; where it does, the smallest hashes stay. At most
half of the documents are held out.
"""

import json
import os
import shutil
from collections import Counter
from heapq import nsmallest
from pathlib import Path
from typing import Any

from twllm.corpus.config import CorpusConfig
from twllm.corpus.engine import CANDIDATES, REPORT, Job, held_out_place, plan_job
from twllm.corpus.files import OUTPUT, SHARDS, input_hashes, open_stream
from twllm.corpus.funnel import dropped, merge_states, size, to_rows
from twllm.corpus.funnel_files import write_funnel
from twllm.corpus.mix import plan_mix
from twllm.corpus.steps import make_global
from twllm.corpus.store import HELD_OUT, read_documents
from twllm.errors import UserError

__all__ = ["build_corpus", "build_folder", "held_out_place", "input_hashes", "read_documents"]
WORK = ".work"


def build_corpus(
    config: CorpusConfig, out: Path, work: Path | None = None, workers: int = 1, executor: str = "local"
) -> dict[str, Any]:
    """Fill the folder `out`; returns the counts (and `seconds` by stage, which are in no file).

    `work` keeps unfinished tasks, for a build that is to go on after it was killed; None: below `out`, removed at the end.

    Raises:
        UserError: no sources, a source that cannot be read, or no document left (the reasons are told).
    """
    from twllm.corpus.executors import run_job

    if not config.sources:
        raise UserError(
            "沒有語料來源 (no corpus sources)",
            "corpus.sources",
            '加上 [[corpus.sources]]，例如 path = "twllm:knowledge"',
        )
    work = work or out / WORK
    job = plan_job(config, work)
    run_job(job, executor, workers)
    facts = finish(job, out)
    shutil.rmtree(work)
    return facts


def build_folder(
    config: CorpusConfig, out: Path, workers: int = 1, executor: str = "local", slurm: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """`twllm corpus build`: the same into a new folder with a manifest; unfinished work waits in `.NAME.work` beside it.

    With Slurm the jobs are only submitted, and None comes back: the last of them writes the folder.
    """
    if executor == "slurm":
        from twllm.corpus.slurm import submit

        submit(plan_job(config, work_beside(out)), out, workers, slurm or {})
        return None
    from twllm.corpus.executors import run_job

    job = plan_job(config, work_beside(out))
    run_job(job, executor, workers)
    return write_corpus(job, out)


def work_beside(out: Path) -> Path:
    """Where unfinished work of a corpus folder waits."""
    out = Path(os.path.abspath(out))  # noqa: PTH100 - `.` gets a name; links are not followed
    return out.parent / f".{out.name}.work"


def write_corpus(job: Job, out: Path) -> dict[str, Any]:
    """The finished folder with its manifest, from finished phases; the work folder goes."""
    from twllm.artifact import write_folder, write_manifest

    with write_folder(out) as folder:
        facts = finish(job, folder)
        settings = job.config.model_dump(mode="json")
        write_manifest(folder, "corpus", settings, input_hashes(job.config), metrics=facts)
    shutil.rmtree(job.work)
    return facts


def finish(job: Job, out: Path) -> dict[str, Any]:
    """The folder's files from the finished phases; returns the counts.

    Raises:
        UserError: no document is left.
    """
    config, last = job.config, len(job.segments) - 1
    every = [[_report(folder) for folder in job.map_folders(segment)] for segment in range(last + 1)]
    reports = every[last]
    state = merge_states((report["funnel"] for one in every for report in one), config.samples_per_reason)
    kept, held = write_parts(job, reports, out)
    rows = to_rows(state, (source.label for source in config.sources))
    if not kept["documents"]:
        raise UserError("沒有任何文件留下 (no documents left)", "corpus", explain_empty(state))
    licenses: Counter[str] = Counter()
    for report in reports:
        licenses.update(report["licenses"])
    facts: dict[str, Any] = {
        **kept,
        "held_out": held,
        "dropped": dropped(state),
        "sources": source_facts(config, rows),
        "licenses": dict(sorted(licenses.items(), key=lambda item: (-item[1], item[0]))),
        "tokens_counted_by": config.count_tokens or "UTF-8 bytes / 4.5",
    }
    for number, segment in enumerate(job.segments):
        if segment.then:
            facts |= make_global(segment.then, config).publish(job.decided(number), out)
    if config.mix.shares:
        facts["mix"] = plan_mix(
            config, {name: found["kept_tokens"] for name, found in facts["sources"].items()}
        ).to_row()
    write_funnel(out, rows, state["samples"], **facts)
    taken_down = sum(report["taken_down"] for report in every[0])
    seconds = {row["stage"]: round(state["seconds"][row["stage"]], 3) for row in rows}
    return {**facts, **({"taken_down": taken_down} if config.takedown else {}), "seconds": seconds}


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return found


def source_facts(config: CorpusConfig, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each source gave and keeps, by name."""
    first, last = rows[0]["sources"], rows[-1]["sources"]
    none = dict.fromkeys(("documents", "chars", "tokens"), 0)
    return {
        source.label: {
            **{f"read_{key}": count for key, count in first.get(source.label, none).items()},
            **{f"kept_{key}": count for key, count in last.get(source.label, none).items()},
            "weight": source.weight,
            "path": source.origin,
        }
        for source in config.sources
    }


def write_parts(job: Job, reports: list[dict[str, Any]], out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Write both parts. Candidates beyond the limit go back to training, after the other documents."""
    config, folders = job.config, job.map_folders(len(job.segments) - 1)
    places = [(place, chars) for report in reports for place, chars in report["candidates"]]
    others = {key: sum(report[key] for report in reports) for key in ("documents", "chars")}
    limit = min(config.max_held_out, (others["documents"] + len(places)) // 2)
    chosen = set(nsmallest(limit, range(len(places)), key=lambda number: places[number][0]))
    shards = config.write == "shards"
    (out / SHARDS).mkdir() if shards else None
    rest = out / SHARDS / f"{len(folders):05}.jsonl.zst" if shards else out / OUTPUT
    with _Lines(rest) as kept, _Lines(out / HELD_OUT) as held:
        for number, (folder, report) in enumerate(zip(folders, reports, strict=True)):
            if not shards:
                kept.copy(folder / OUTPUT)
            elif report["documents"]:
                link(folder / OUTPUT, out / SHARDS / f"{number:05}.jsonl.zst")
        number = 0
        for folder in folders:
            with open_stream(folder / CANDIDATES) as lines:
                for line in lines:
                    (held if number in chosen else kept).write(line)
                    number += 1
    held_count = {"documents": len(chosen), "chars": sum(places[number][1] for number in chosen)}
    total = {"documents": len(places), "chars": sum(chars for _, chars in places)}
    return {key: others[key] + total[key] - held_count[key] for key in others}, held_count


class _Lines:
    """A Zstandard file of lines."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = path.open("wb")
        self._stream: Any = zstandard.ZstdCompressor(level=3).stream_writer(self._file)

    def write(self, line: bytes) -> None:
        self._stream.write(line)

    def copy(self, path: Path) -> None:
        with open_stream(path) as lines:
            for line in lines:
                self._stream.write(line)

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._file.close()


def link(old: Path, new: Path) -> None:
    """The same file under a second name, or a copy where the disk cannot do that."""
    try:
        new.hardlink_to(old)
    except OSError:
        shutil.copyfile(old, new)


def explain_empty(state: dict[str, Any]) -> str:
    """Why nothing is left, and where to look."""
    reasons = "、".join(f"{reason} {count}" for reason, count in dropped(state).items())
    read = size(state["stages"]["read"])["documents"]
    return (
        f"讀入 {read} 份，丟掉的原因：{reasons}。放寬 [corpus] 的門檻或換來源"
        if reasons
        else "來源是空的：檢查 corpus.sources 的 path"
    )
