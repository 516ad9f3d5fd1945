"""Lines and paragraphs that stand in many documents: found over the whole corpus and cut out of the texts.

A unit (line, or paragraph between blank lines) is told by its letters and digits alone (folding.py), hashed for a whole batch of
texts in numpy: about 80 MB/s a core. The scan writes the hashes as sorted runs (dedup_runs.py), `decide` picks the units that go, part by
part, and `apply` cuts them; what was cut is counted and sampled in the funnel like a drop. A document of nothing else goes.
Memory: that of a run, and the numbers of the units that go. Not covered: units that differ in a letter (near_dedup).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from twllm.corpus.dedup_runs import Runs, RunWriter, equal_keys, folders_of
from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.folding import MULTIPLIER, fold, mix
from twllm.corpus.global_step import GlobalStep
from twllm.corpus.overlap import nfc
from twllm.corpus.steps.characters import code_points

SCAN_CHARS = 1 << 16
LONGEST = 1 << 16  # letters of a unit after which their order no longer counts


def unit_hashes(texts: Sequence[str]) -> tuple[Any, Any]:
    """(hash, letters) of each line of the texts, one after the other; a text of n line feeds has n + 1 lines."""
    import numpy as np

    whole = nfc("\n".join(texts))
    feeds = np.flatnonzero(code_points(whole) == 10)
    codes, at = fold(whole)
    firsts = np.searchsorted(at, feeds)
    letters = np.diff(firsts, prepend=0, append=len(at))
    hashes = np.zeros(len(letters), np.uint64)
    some = np.flatnonzero(letters)
    if len(some):
        begins = np.insert(firsts, 0, 0)[some]
        inside = np.arange(len(codes)) - np.repeat(begins, letters[some])
        hashes[some] = np.add.reduceat(mix(codes) * _powers()[inside % LONGEST], begins)
    return hashes, letters


@cache
def _powers() -> Any:
    import numpy as np

    return np.cumprod(np.full(LONGEST, MULTIPLIER, np.uint64))


class CutStep(GlobalStep):
    """Cuts units that stand in several documents; overridden by the steps. `reason` is counted in the funnel."""

    reason = ""
    separator = "\n"
    smallest = 1  # letters of a unit that is looked at

    def group(self, document: Document) -> str | None:
        """Units of documents of the same group are compared; of None, with nothing."""
        return ""

    def goes(self, documents: Any, starts: Any, groups: Any) -> Any:
        """Which of the equal units go: `documents` are their numbers, a group `starts[g]:starts[g + 1]`."""
        raise NotImplementedError

    def scan(self, documents: Iterable[Document], folder: Path) -> Iterator[Document]:
        writer = RunWriter(folder)
        batch, size, first = list[Document](), 0, 0
        for document in documents:
            batch.append(document)
            size += len(document.text)
            if size >= SCAN_CHARS:
                self._write(batch, first, writer)
                first += len(batch)
                batch, size = [], 0
            yield document
        if batch:
            self._write(batch, first, writer)
            first += len(batch)
        writer.close()
        (folder / "documents").write_text(str(first), encoding="ascii")

    def _write(self, batch: Sequence[Document], first: int, writer: RunWriter) -> None:
        import numpy as np

        texts = [as_lines(document.text, self.separator) for document in batch]
        hashes, letters = unit_hashes(texts)
        counts = np.array([text.count("\n") + 1 for text in texts])
        owner = np.repeat(np.arange(len(batch)), counts)
        groups = [self.group(document) for document in batch]
        seeds = np.array([group_seed(group or "") for group in groups], np.uint64)
        wanted = np.array([group is not None for group in groups])
        keep = np.flatnonzero((letters >= self.smallest) & wanted[owner])
        inside = (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts))[keep]
        owner = owner[keep]
        keys = mix(hashes[keep] ^ seeds[owner])
        writer.add(
            keys[None], document=(owner + first).astype(np.uint32), unit=inside.astype(np.uint32), group=seeds[owner]
        )

    def decide(self, scans: Sequence[Path], out: Path, part: int) -> None:
        import numpy as np

        runs = folders_of(scans)
        counts = [int((folder / "documents").read_text(encoding="ascii")) for folder in scans]
        documents_before = np.cumsum([0, *counts])
        gone = list[Any]()
        for numbers, starts in equal_keys(runs, 0):
            documents = runs.take("document", numbers).astype(np.int64) + documents_before[_folder_of(runs, numbers)]
            gone.append(numbers[self.goes(documents, starts, runs.take("group", numbers[starts[:-1]]))])
        every = np.sort(np.concatenate(gone)) if gone else np.zeros(0, np.int64)
        for number in range(len(scans)):
            own = runs.of_folder(number)
            low, high = (own[0].first, own[-1].first + own[-1].rows) if own else (0, 0)
            mine = every[np.searchsorted(every, low) : np.searchsorted(every, high)]
            if len(mine):
                table = np.stack([runs.take("document", mine), runs.take("unit", mine)], axis=1)
                np.save(out / f"{number:05}.cut.npy", table)

    def apply(self, documents: Iterable[Document], out: Path, number: int) -> Iterator[Document | Dropped]:
        import numpy as np

        file = out / f"{number:05}.cut.npy"
        table = np.load(file) if file.is_file() else np.zeros((0, 2), np.uint32)
        edges, units = (
            np.searchsorted(table[:, 0], np.arange(int(table[-1, 0]) + 2) if len(table) else [0]),
            table[:, 1],
        )
        for place, document in enumerate(documents):
            here = units[edges[place] : edges[place + 1]].tolist() if place + 1 < len(edges) else []
            if not here:
                yield document.passed(self.name)
                continue
            yield from self._cut(document, set(here))

    def _cut(self, document: Document, gone: set[int]) -> Iterator[Document | Dropped]:
        parts = document.text.split(self.separator)
        left = self.separator.join(part for number, part in enumerate(parts) if number not in gone).strip("\n")
        away = self.separator.join(part for number, part in enumerate(parts) if number in gone)
        told = f"{len(gone)} of {len(parts)} units"
        if not left.strip():
            yield Dropped(document, self.name, self.reason, told)
            return
        yield Noted(replace(document, text=away), self.name, f"cut_{self.reason}", told)
        yield document.passed(self.name, left)


def as_lines(text: str, separator: str) -> str:
    """The text with one line for each unit."""
    if separator == "\n":
        return text
    return text.replace(separator, "\x1e").replace("\n", " ").replace("\x1e", "\n")


def later_documents(documents: Any, starts: Any) -> Any:
    """Units that stand in a document before: True. The first document keeps its own, also where it has one twice."""
    import numpy as np

    return documents != np.repeat(documents[starts[:-1]], np.diff(starts))


def documents_of(documents: Any, starts: Any) -> Any:
    """In how many different documents the units of each group stand (documents ascend in a group)."""
    import numpy as np

    new = np.append(True, documents[1:] != documents[:-1])
    new[starts[:-1]] = True
    return np.add.reduceat(new.astype(np.int64), starts[:-1])


@cache
def group_seed(group: str) -> int:
    """64 bits of a group's name; 0 for no name."""
    data = group.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") if group else 0


def _folder_of(runs: Runs, numbers: Any) -> Any:
    import numpy as np

    places = {folder: number for number, folder in enumerate(runs.folders)}
    folders = np.array([places[run.folder] for run in runs.every])
    return folders[np.searchsorted(runs.firsts, numbers, side="right") - 1]
