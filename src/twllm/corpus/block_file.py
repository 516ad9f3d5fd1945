"""A .jsonl file rewritten line by line: streamed, several processes, never half-written.

Lines go to the workers in blocks and come back in order, so the result does not depend on the number of processes. Finished
blocks are appended to a journal beside the result (`.OUT.journal`): after `kill -9` the same command reads past what is done.
The result appears under its name in one rename. Memory: a few blocks of a megabyte for each worker. Not covered: a
result that is packed (name it .jsonl).
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twllm.artifact import fingerprint
from twllm.corpus.files import open_stream
from twllm.corpus.rows import BrokenRow, LongLine, bounded_lines, parse_lines
from twllm.errors import UserError

BLOCK_BYTES = 1 << 20
Block = tuple[int, list[bytes]]  # number of the first line, lines
Work = Callable[[Block], tuple[bytes, dict[str, Any]]]  # → the lines written, what is told of them (JSON)


def rewrite(
    file: Path, out: Path, settings: list[Any], work: Work, workers: int, title: str
) -> Iterator[dict[str, Any]]:
    """Write `work` of each block of `file` to `out`; yields what is told of each block, also of those done before.

    `out` appears when all of it has been yielded. `settings` are what the result depends on beside the file. `work` must be
    picklable.

    Raises:
        UserError: `out` is `file`, or cannot be written.
    """
    if out.exists() and out.samefile(file):
        raise UserError("結果不能寫回同一個檔案 (output is the input)", out, "換一個 --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    part, journal = (out.with_name(f".{out.name}.{end}") for end in ("partial", "journal"))
    status = file.stat()
    key = fingerprint([title, str(file.resolve()), status.st_size, status.st_mtime_ns, *settings, BLOCK_BYTES])
    done = _resume(journal, part, key)
    yield from done
    with part.open("ab") as stream, journal.open("a", encoding="utf-8") as notes:
        stream.truncate(done[-1]["size"] if done else 0)
        if not done:
            notes.write(json.dumps({"key": key}) + "\n")
        for data, told in _results(file, len(done), workers or os.cpu_count() or 1, work, title):
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            told["size"] = stream.tell()
            notes.write(json.dumps(told, ensure_ascii=False) + "\n")
            notes.flush()
            yield told
    part.replace(out)
    journal.unlink()


def rows_of(block: Block) -> Iterator[tuple[int, dict[str, Any] | BrokenRow]]:
    """(line number, row) of a block; blank lines are passed over."""
    first, lines = block
    for number, line in enumerate(lines, first):
        whole = line if isinstance(line, LongLine) else line.removeprefix(b"\xef\xbb\xbf")
        for _, row in parse_lines([whole]):
            yield number, row


def line_of(row: dict[str, Any]) -> bytes:
    """The row as a line."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _resume(journal: Path, part: Path, key: str) -> list[dict[str, Any]]:
    """What was told of the blocks that an interrupted run of the same command has finished."""
    done = list[dict[str, Any]]()
    if journal.exists() and part.exists():
        whole = part.stat().st_size
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and lines[0].endswith("\n") and json.loads(lines[0]).get("key") == key:
            for line in lines[1:]:
                if not line.endswith("\n") or (told := json.loads(line))["size"] > whole:
                    break
                done.append(told)
            if done:
                journal.write_text("".join(lines[: 1 + len(done)]), encoding="utf-8")
                return done
    for path in (journal, part):
        path.unlink(missing_ok=True)
    return done


def blocks(file: Path) -> Iterator[Block]:
    """The lines in blocks of about a megabyte."""
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


def _results(file: Path, done: int, workers: int, work: Work, title: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The blocks after the first `done`, worked on, in order, with a progress bar."""
    from rich.progress import Progress

    left = (block for number, block in enumerate(blocks(file)) if number >= done)
    packed = file.suffix in (".gz", ".zst", ".xz", ".bz2")
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=None if packed else file.stat().st_size)
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
