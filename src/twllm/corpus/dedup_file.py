"""`twllm corpus dedup`: files of JSON lines without their duplicates, all fields kept, and the clusters.

The global steps of the engine over lines: scan → decide → apply, in a work folder beside the result (`.OUT.work`). A file is cut into pieces of
`PIECE_BYTES` (a packed one is one piece), pieces run in processes, a finished task is a folder that appeared in one rename: after
`kill -9` the same command goes on and gives the same bytes. The first file given is the first source (it keeps its documents).
A line that is kept is copied byte for byte, unless boilerplate was cut out of its text. Broken lines are counted, named and left out.
"""

import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint, write_folder, write_json, write_manifest
from twllm.corpus.config import CorpusConfig
from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.files import broken_file_errors, open_stream
from twllm.corpus.global_step import GlobalStep
from twllm.corpus.rows import BrokenRow, LongLine, bounded_lines, parse_lines
from twllm.corpus.steps import make_global
from twllm.errors import UserError

PIECE_BYTES = 64 << 20
DOCUMENTS, REPORT = "documents.jsonl", "report.json"
LINE = "\0line"  # metadata key of the bytes a document came from
SHOWN = 20


@dataclass(frozen=True)
class Piece:
    """The lines of a file that begin in a range of bytes; `source` is the file's number."""

    file: str
    source: int
    start: int
    stop: int | None


@dataclass(frozen=True)
class DedupJob:
    """What is done, and where."""

    work: Path
    pieces: tuple[Piece, ...]
    steps: tuple[str, ...]
    threshold: float
    text_key: str
    score_key: str

    def whole(self, stage: int) -> GlobalStep:
        """The global step of a stage."""
        config = CorpusConfig(dedup={"threshold": self.threshold, "score_key": self.score_key})
        made = make_global(self.steps[stage], config)
        if hasattr(made, "sources"):
            made.sources = {piece.file: piece.source for piece in self.pieces}
        return made

    def folder(self, name: str, task: int) -> Path:
        """Where a task's result appears."""
        return self.work / name / f"{task:05}"

    def decided(self, stage: int) -> Path:
        """The decision of a stage."""
        return self.work / f"decided-{stage}" / "00000"

    def scans(self, stage: int) -> list[Path]:
        """The scans of a stage, piece after piece."""
        return [self.folder(f"scan-{stage}", number) for number in range(len(self.pieces))]


def dedup_files(
    files: Sequence[Path],
    out: Path,
    workers: int = 0,
    threshold: float = 0.75,
    boilerplate: bool = False,
    text_key: str = "text",
    score_key: str = "score",
) -> dict[str, Any]:
    """Write DOCUMENTS, clusters.jsonl and REPORT into `out`; returns the report.

    Raises:
        UserError: a file is damaged, or `out` is not ours to replace.
    """
    steps = ("boilerplate", "near_dedup") if boilerplate else ("near_dedup",)
    job = _plan(files, out.parent / f".{out.name}.work", steps, threshold, text_key, score_key)
    tasks = len(job.pieces)
    with closing(_Pool(workers or os.cpu_count() or 1)) as pool:
        for stage in range(len(steps)):
            pool.run(partial(_scan, job, stage), tasks)
            pool.run(partial(_decide, job, stage), job.whole(stage).parts)
            _conclude(job, stage)
        pool.run(partial(_keep, job), tasks)
    with write_folder(out) as folder:
        report = _finish(job, folder)
        inputs = {str(file): fingerprint([file.stat().st_size, file.stat().st_mtime_ns]) for file in files}
        settings = {"steps": list(steps), "threshold": threshold, "text_key": text_key, "score_key": score_key}
        write_manifest(folder, "dedup", settings, inputs, metrics=report)
    shutil.rmtree(job.work)
    return report


def _plan(
    files: Sequence[Path], work: Path, steps: tuple[str, ...], threshold: float, text_key: str, score_key: str
) -> DedupJob:
    from twllm.corpus.engine import code_hash

    pieces = tuple(piece for number, file in enumerate(files) for piece in _pieces(file, number))
    job = DedupJob(work, pieces, steps, threshold, text_key, score_key)
    stamps = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = [[asdict(piece) for piece in pieces], stamps, steps, threshold, text_key, score_key, code_hash()]
    mark, note = fingerprint(settings), work / "plan.json"
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != mark:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(note, mark)
    return job


def _pieces(file: Path, number: int) -> Iterator[Piece]:
    path = str(file.resolve())
    if file.suffix in (".gz", ".zst", ".xz", ".bz2"):
        yield Piece(path, number, 0, None)
        return
    size = file.stat().st_size
    for start in range(0, max(size, 1), PIECE_BYTES):
        yield Piece(path, number, start, min(start + PIECE_BYTES, size))


class _Pool:
    """Runs the tasks of a phase, here or in processes."""

    def __init__(self, workers: int) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else None

    def run(self, work: Callable[[int], None], tasks: int) -> None:
        """All tasks; the first error is raised."""
        for _ in self._pool.imap_unordered(work, range(tasks)) if self._pool and tasks > 1 else map(work, range(tasks)):
            pass

    def close(self) -> None:
        """Stop the processes."""
        if self._pool:
            self._pool.terminate()
            self._pool.join()


# -- tasks ------------------------------------------------------------------------------------------------------


def _scan(job: DedupJob, stage: int, number: int) -> None:
    target = job.folder(f"scan-{stage}", number)
    if target.is_dir():
        return
    with write_folder(target) as folder:
        for _ in job.whole(stage).scan(_documents(job, number, stage, {}), folder):
            pass


def _decide(job: DedupJob, stage: int, task: int) -> None:
    target = job.folder(f"decide-{stage}", task)
    if not target.is_dir():
        with write_folder(target) as folder:
            job.whole(stage).decide(job.scans(stage), folder, task)


def _conclude(job: DedupJob, stage: int) -> None:
    if job.decided(stage).is_dir():
        return
    whole = job.whole(stage)
    with write_folder(job.decided(stage)) as folder:
        for task in range(whole.parts):
            shutil.copytree(job.folder(f"decide-{stage}", task), folder, dirs_exist_ok=True)
        whole.conclude(job.scans(stage), folder)


def _keep(job: DedupJob, number: int) -> None:
    """The lines of a piece that stay, and what was counted."""
    target = job.folder("kept", number)
    if target.is_dir():
        return
    told: dict[str, Any] = {"kept": 0, "reasons": {}, "cut": {}}
    with write_folder(target) as folder, (folder / DOCUMENTS).open("wb") as lines:
        for document in _documents(job, number, len(job.steps), told):
            lines.write(document.metadata[LINE])
            told["kept"] += 1
        write_json(folder / REPORT, told)


def _documents(job: DedupJob, number: int, stages: int, told: dict[str, Any]) -> Iterator[Document]:
    """The documents of a piece after the first `stages` stages; what was left out is counted in `told`."""
    documents: Iterator[Document | Dropped] = _rows(job, job.pieces[number], told)
    for stage in range(stages):
        whole = job.whole(stage)
        documents = whole.apply(_only(documents, told), job.decided(stage), number)
    for document in _only(documents, told):
        old = document.metadata["\0text"]
        yield document if document.text is old else _rewritten(document, job.text_key)


def _only(documents: Iterator[Document | Dropped], told: dict[str, Any]) -> Iterator[Document]:
    for document in documents:
        if isinstance(document, Document):
            yield document
            continue
        counts = told.setdefault("cut" if isinstance(document, Noted) else "reasons", {})
        counts[document.reason] = counts.get(document.reason, 0) + 1


def _rewritten(document: Document, text_key: str) -> Document:
    row = json.loads(document.metadata[LINE]) | {text_key: document.text}
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    return Document(
        document.id, document.text, document.source, document.url, metadata=document.metadata | {LINE: line}
    )


def _rows(job: DedupJob, piece: Piece, told: dict[str, Any]) -> Iterator[Document]:
    told |= {"documents": 0, "broken": 0, "broken_places": []}
    try:
        for at, line in _lines(piece):
            _place, row = next(parse_lines([line]), ("", None))
            if row is None:
                continue
            if isinstance(row, BrokenRow) or not isinstance(row.get(job.text_key), str):
                told["broken"] += 1
                told["broken_places"] += [f"{Path(piece.file).name}@{at}"][: SHOWN - len(told["broken_places"])]
                continue
            told["documents"] += 1
            text = row[job.text_key]
            yield Document(
                id=str(row.get("id") or f"{Path(piece.file).name}@{at}"),
                text=text,
                source=piece.file,
                url=str(row.get("url") or ""),
                metadata={job.score_key: row.get(job.score_key), "\0text": text, LINE: line.rstrip(b"\r\n") + b"\n"},
            )
    except broken_file_errors() as error:
        what = f"檔案損壞 (damaged file): {error}"
        raise UserError(what, piece.file, "重新取得這個檔案，或拿掉它") from error


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin in the piece."""
    if piece.stop is None:
        with open_stream(Path(piece.file)) as stream:
            yield from enumerate(bounded_lines(stream), 1)  # of a packed file: the number of the line
        return
    with Path(piece.file).open("rb") as stream:
        at = piece.start
        if at:
            stream.seek(at - 1)
            at += _rest_of_line(stream) - 1
        for line in bounded_lines(stream):
            if at >= piece.stop:
                return
            yield at, line
            at = stream.tell() if isinstance(line, LongLine) else at + len(line)


def _rest_of_line(stream: io.BufferedReader) -> int:
    """Read to the end of the line; so many bytes."""
    size = 0
    while piece := stream.readline(1 << 20):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


# -- result -----------------------------------------------------------------------------------------------------


def _finish(job: DedupJob, out: Path) -> dict[str, Any]:
    report: dict[str, Any] = {"documents": 0, "kept": 0, "broken": 0, "broken_places": [], "reasons": {}, "cut": {}}
    with (out / DOCUMENTS).open("wb") as lines:
        for number in range(len(job.pieces)):
            folder = job.folder("kept", number)
            with (folder / DOCUMENTS).open("rb") as stream:
                shutil.copyfileobj(stream, lines, 1 << 20)
            told = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            for key in ("documents", "kept", "broken"):
                report[key] += told[key]
            report["broken_places"] += told["broken_places"][: SHOWN - len(report["broken_places"])]
            for key in ("reasons", "cut"):
                for reason, count in told[key].items():
                    report[key][reason] = report[key].get(reason, 0) + count
    last = len(job.steps) - 1
    report |= job.whole(last).publish(job.decided(last), out)
    write_json(out / REPORT, report)
    return report
