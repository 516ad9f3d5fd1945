"""Sorted runs on disk: keys of very many things, found equal without holding more than a few megabytes.

`RunWriter` takes columns of 64-bit keys, one row a thing, and writes runs of `RUN_ROWS`, each column sorted. `equal_keys`
walks one column of all runs in ranges of keys of about `CHUNK_ROWS` rows, so memory does not grow with their number: a range is
cut out of each run by binary search. A thing's number is its place in the order of the folders and in each folder, so the result
depends on the order of the documents and not on how they are cut into folders. Other arrays may lie beside the keys, one row a thing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

RUN_ROWS = 1 << 16
CHUNK_ROWS = 1 << 19


class RunWriter:
    """Collects rows and writes a run whenever enough have come together; `close` writes the rest."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._runs, self._rows = folder, 0, 0
        self._waiting: list[dict[str, Any]] = []

    def add(self, keys: Any, **beside: Any) -> None:
        """`keys` (columns, rows) uint64; arrays `beside` have a row for each."""
        self._waiting.append({"keys": keys, **beside})
        self._rows += keys.shape[1]
        if self._rows >= RUN_ROWS:
            self.close()

    def close(self) -> None:
        """Write what is there."""
        import numpy as np

        if not self._rows:
            return
        name = f"run-{self._runs:05}"
        for kind in self._waiting[0]:
            whole = np.concatenate([found[kind] for found in self._waiting], axis=-1 if kind == "keys" else 0)
            if kind != "keys":
                np.save(self._folder / f"{name}.{kind}.npy", whole)
                continue
            order = np.argsort(whole, axis=1, kind="stable").astype(np.uint32)
            np.save(self._folder / f"{name}.places.npy", order)
            np.save(self._folder / f"{name}.keys.npy", np.take_along_axis(whole, order.astype(np.int64), axis=1))
        self._runs, self._rows, self._waiting = self._runs + 1, 0, []


@dataclass(frozen=True)
class Run:
    """One run: its files, the number of its first thing, how many."""

    folder: Path
    name: str
    first: int
    rows: int

    def load(self, kind: str) -> Any:
        """An array of the run, mapped from disk: hold it only for a moment."""
        import numpy as np

        return np.load(self.folder / f"{self.name}.{kind}.npy", mmap_mode="r")


@dataclass(frozen=True)
class Runs:
    """The runs of many folders, in order."""

    folders: tuple[Path, ...]

    @cached_property
    def every(self) -> tuple[Run, ...]:
        """All runs."""
        found, first = list[Run](), 0
        for folder in self.folders:
            for file in sorted(folder.glob("run-*.keys.npy")):
                run = Run(folder, file.name.removesuffix(".keys.npy"), first, 0)
                rows = int(run.load("keys").shape[1])
                found.append(Run(folder, run.name, first, rows))
                first += rows
        return tuple(found)

    @cached_property
    def firsts(self) -> Any:
        """Number of the first thing of each run."""
        import numpy as np

        return np.array([run.first for run in self.every], np.int64)

    @property
    def rows(self) -> int:
        """How many things."""
        return sum(run.rows for run in self.every)

    def of_folder(self, number: int) -> list[Run]:
        """The runs of one folder."""
        return [run for run in self.every if run.folder == self.folders[number]]

    def take(self, kind: str, numbers: Any) -> Any:
        """The rows `numbers` of the array `kind`, in the order asked."""
        import numpy as np

        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        cuts = np.searchsorted(ordered, np.append(self.firsts, self.rows))
        pieces = []
        for run, start, stop in zip(self.every, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if stop > start:
                pieces.append(run.load(kind)[ordered[start:stop] - run.first])
        found = np.concatenate(pieces)
        result = np.empty_like(found)
        result[order] = found
        return result

    def chunks(self, column: int) -> Iterator[tuple[Any, Any]]:
        """(keys, numbers) of ranges of keys, ascending by key and then by number."""
        import numpy as np

        count = max(1, -(-self.rows // CHUNK_ROWS))
        edges = [(1 << 64) * step // count for step in range(1, count)]
        starts = [0] * len(self.every)
        for edge in (*edges, None):
            keys, numbers = list[Any](), list[Any]()
            for place, run in enumerate(self.every):
                column_keys = run.load("keys")[column]
                stop = run.rows if edge is None else int(np.searchsorted(column_keys, np.uint64(edge)))
                if stop > starts[place]:
                    keys.append(np.array(column_keys[starts[place] : stop]))
                    numbers.append(run.load("places")[column, starts[place] : stop].astype(np.int64) + run.first)
                starts[place] = stop
            if keys:
                joined, places = np.concatenate(keys), np.concatenate(numbers)
                order = np.argsort(joined, kind="stable")  # runs come in order, so numbers ascend within a key
                yield joined[order], places[order]


def equal_keys(runs: Runs, column: int) -> Iterator[tuple[Any, Any]]:
    """(numbers, starts) of the things that share a key with another one: group g is `numbers[starts[g]:starts[g + 1]]`."""
    import numpy as np

    for keys, numbers in runs.chunks(column):
        same = keys[1:] == keys[:-1]
        if not same.any():
            continue
        shared = np.append(same, False) | np.insert(same, 0, False)
        begins = np.flatnonzero(np.insert(~same, 0, True)[shared])
        found = numbers[shared]
        yield found, np.append(begins, len(found))


def folders_of(scans: Sequence[Path]) -> Runs:
    """The runs below the scans of all parts."""
    return Runs(tuple(scans))
