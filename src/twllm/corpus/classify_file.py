"""A .jsonl file with the labels of the Taiwan pipeline added to each line: streamed, several processes, never half-written.

Lines go to the workers in blocks and come back in order, so the result does not depend on the number of processes. Finished
blocks are appended to a journal beside the result (`.OUT.classify`): after `kill -9` the same command reads past what
is done. The result appears under its name in one rename. A broken line is counted and named, the others are not lost.
Memory: a few blocks of a megabyte for each worker. Not covered: a result that is packed (name it .jsonl).
"""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint
from twllm.corpus.files import open_stream
from twllm.corpus.rows import LongLine, bounded_lines, parse_lines
from twllm.errors import UserError

BLOCK_BYTES = 1 << 20
SHOWN_PLACES = 10


@dataclass
class FileCounts:
    """What was found in a file."""

    documents: int = 0
    kept: int = 0
    broken: int = 0
    broken_places: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, told: dict[str, Any]) -> None:
        """Add the counts of a block."""
        self.documents += told["documents"]
        self.kept += told["kept"]
        self.reasons.update(told["reasons"])
        self.broken += len(told["broken"])
        self.broken_places += told["broken"][: SHOWN_PLACES - len(self.broken_places)]


def classify_file(
    file: Path, out: Path, workers: int = 0, min_score: float = 0.5, text_key: str = "text", cut: bool = False
) -> FileCounts:
    """Write `file` with labels to `out`; counts of what was kept and why the rest was not.

    Raises:
        UserError: `out` is `file`, or cannot be written.
    """
    if out.exists() and out.samefile(file):
        raise UserError("結果不能寫回同一個檔案 (output is the input)", out, "換一個 --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    part, journal = (out.with_name(f".{out.name}.{end}") for end in ("partial", "classify"))
    status = file.stat()
    key = fingerprint([str(file.resolve()), status.st_size, status.st_mtime_ns, min_score, text_key, cut, BLOCK_BYTES])
    counts, done, size = _resume(journal, part, key)
    work = partial(_label_block, min_score=min_score, text_key=text_key, cut=cut)
    with part.open("ab") as stream, journal.open("a", encoding="utf-8") as notes:
        stream.truncate(size)
        if not done and not size:
            notes.write(json.dumps({"key": key}) + "\n")
        for data, told in _results(file, done, workers or os.cpu_count() or 1, work):
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            told["size"] = stream.tell()
            notes.write(json.dumps(told, ensure_ascii=False) + "\n")
            notes.flush()
            counts.add(told)
    part.replace(out)
    journal.unlink()
    return counts


def _resume(journal: Path, part: Path, key: str) -> tuple[FileCounts, int, int]:
    """(counts, blocks done, bytes of the partial result that are whole) of an interrupted run of the same command."""
    counts, done, size = FileCounts(), 0, 0
    if journal.exists() and part.exists():
        whole = part.stat().st_size
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and lines[0].endswith("\n") and json.loads(lines[0]).get("key") == key:
            kept = lines[:1]
            for line in lines[1:]:
                if not line.endswith("\n") or (told := json.loads(line))["size"] > whole:
                    break
                counts.add(told)
                done, size = done + 1, told["size"]
                kept.append(line)
            if done:
                journal.write_text("".join(kept), encoding="utf-8")
                return counts, done, size
    for path in (journal, part):
        path.unlink(missing_ok=True)
    return FileCounts(), 0, 0


def _blocks(file: Path) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first line, lines) in blocks of about a megabyte."""
    with open_stream(file, lambda _: None) as stream:
        block, size, first = list[bytes](), 0, 1
        for number, line in enumerate(bounded_lines(stream), 1):
            block.append(line)
            size += len(line)
            if size >= BLOCK_BYTES:
                yield first, block
                block, size, first = [], 0, number + 1
        if block:
            yield first, block


def _results(file: Path, done: int, workers: int, work: Any) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The labelled blocks after the first `done`, in order, with a progress bar."""
    from rich.progress import Progress

    left = (block for number, block in enumerate(_blocks(file)) if number >= done)
    packed = file.suffix in (".gz", ".zst", ".xz", ".bz2")
    with Progress(transient=True) as progress:
        task = progress.add_task("classify", total=None if packed else file.stat().st_size)
        if workers == 1:
            for block in left:
                yield work(block)
                progress.advance(task, sum(map(len, block[1])))
            return
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            waiting: list[tuple[Any, int]] = []
            for block in left:
                waiting.append((pool.apply_async(work, (block,)), sum(map(len, block[1]))))
                if len(waiting) > 2 * workers:
                    result, size = waiting.pop(0)
                    yield result.get()
                    progress.advance(task, size)
            for result, size in waiting:
                yield result.get()
                progress.advance(task, size)


def _label_block(
    block: tuple[int, list[bytes]], min_score: float, text_key: str, cut: bool
) -> tuple[bytes, dict[str, Any]]:
    """The lines with their labels, and the counts; a broken line goes and is named."""
    from twllm.corpus.classify import classify
    from twllm.corpus.rows import BrokenRow

    first, lines = block
    told: dict[str, Any] = {"documents": 0, "kept": 0, "reasons": {}, "broken": []}
    written = list[bytes]()
    for number, line in enumerate(lines, first):
        _, row = next(
            parse_lines([line if isinstance(line, LongLine) else line.removeprefix(b"\xef\xbb\xbf")]), (0, None)
        )
        if row is None:
            continue
        if isinstance(row, BrokenRow) or not isinstance(row.get(text_key), str):
            told["broken"].append(str(number))
            continue
        label = classify(row[text_key], str(row.get("url") or ""), min_score)
        if cut and label.cut:
            row[text_key] = label.text
        told["documents"] += 1
        told["kept"] += label.keep
        if not label.keep:
            told["reasons"][label.reason] = told["reasons"].get(label.reason, 0) + 1
        data = json.dumps(row | label.to_row(), ensure_ascii=False)
        written.append(data.encode("utf-8", "surrogatepass") + b"\n")
    return b"".join(written), told
