"""Runs of units (n-grams) of many short texts in a hashed table, and where they stand in a long text, exactly.

A run's hash is a polynomial over its units' 64-bit values, computed for all lengths up to the longest in one sweep
(h ← h·M + next). Most places fail at one look into a table of bits by the hash's top bits; what passes is sought among the sorted
hashes, and what is found there is compared letter by letter, so a hash collision can cost time but never a hit.
Memory: about 70 bytes for each place of a run in the indexed texts; nothing for the text searched but arrays of its length.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from twllm.corpus.folding import MULTIPLIER, Units

SLOTS_PER_RUN = 16  # of the table of bits: one place in sixteen that holds no known run is looked at twice
MAX_SLOT_BITS = 28


class Runs(NamedTuple):
    """Places of runs of one length in the indexed units: `place` of the first unit, and who asks (any number)."""

    length: int
    place: Any
    owner: Any


class Hits(NamedTuple):
    """Runs found: `unit` where each begins in the searched units, its `length`, and the `owner` that was indexed."""

    unit: Any
    length: Any
    owner: Any


def run_hashes(values: Any, longest: int) -> Iterator[tuple[int, Any]]:
    """(length, uint64 hash of the run beginning at each unit) for lengths 1 … `longest`, each array one shorter."""
    import numpy as np

    hashes = np.zeros(len(values) + 1, np.uint64)
    for length in range(1, min(longest, len(values)) + 1):
        hashes = hashes[:-1] * np.uint64(MULTIPLIER) + values[length - 1 :]
        yield length, hashes


def spelling(units: Units, place: int, length: int) -> tuple[bytes, bytes]:
    """What a run says: its codes, and where its units end in them."""
    first = units.first[place : place + length + 1]
    return units.codes[first[0] : first[-1]].tobytes(), (first - first[0]).tobytes()


class GramTable:
    """The runs of one length."""

    def __init__(self, units: Units, hashes: Any, runs: Runs) -> None:
        import numpy as np

        self.units, self.length = units, runs.length
        order = np.argsort(hashes[runs.place], kind="stable")
        self.owner, places = runs.owner[order], runs.place[order]
        self.hashes, self.first = np.unique(hashes[places], return_index=True)
        self.stop = np.append(self.first[1:], len(places))
        self.place = places[self.first]  # one place that spells the run
        self._split_collisions(places)
        bits = max(16, min(MAX_SLOT_BITS, int(len(self.hashes) * SLOTS_PER_RUN).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.slots = np.zeros(1 << bits, bool)
        self.slots[self.hashes >> self.shift] = True

    def _split_collisions(self, places: Any) -> None:
        """Two different runs of one hash (never seen: 1e-8 for a million runs): the second one's places are left out."""
        for number in (self.stop - self.first > 1).nonzero()[0].tolist():
            first, stop = self.first[number], self.stop[number]
            wanted = spelling(self.units, self.place[number], self.length)
            same = [at for at in range(first, stop) if spelling(self.units, places[at], self.length) == wanted]
            if len(same) < stop - first:
                self.owner[first : first + len(same)] = self.owner[same]
                self.stop[number] = first + len(same)

    def find(self, units: Units, hashes: Any) -> Hits:
        """All known runs of this length in `units`, one hit for each owner."""
        import numpy as np

        unit = self.slots[hashes >> self.shift].nonzero()[0]
        run = np.minimum(np.searchsorted(self.hashes, hashes[unit]), len(self.hashes) - 1)
        equal = self.hashes[run] == hashes[unit]
        unit, run = unit[equal], run[equal]
        pairs = zip(unit.tolist(), self.place[run].tolist(), strict=True)
        same = np.fromiter(
            (spelling(units, u, self.length) == spelling(self.units, p, self.length) for u, p in pairs), bool, len(unit)
        )
        unit, run = unit[same], run[same]
        counts = self.stop[run] - self.first[run]
        offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        owner = self.owner[np.repeat(self.first[run], counts) + offsets]
        return Hits(np.repeat(unit, counts), np.full(len(owner), self.length), owner)


class GramIndex:
    """Runs of several lengths over the same indexed units."""

    def __init__(self, units: Units, runs: list[Runs]) -> None:
        wanted = {group.length: group for group in runs if len(group.place)}
        self.longest = max(wanted, default=0)
        hashes = run_hashes(units.values, self.longest)
        self.tables = {n: GramTable(units, found, wanted[n]) for n, found in hashes if n in wanted}

    def find(self, units: Units) -> Hits:
        """All hits, by length, then place."""
        import numpy as np

        found = [
            self.tables[n].find(units, hashes)
            for n, hashes in run_hashes(units.values, self.longest)
            if n in self.tables
        ]
        if not found:
            none = np.zeros(0, np.int64)
            return Hits(none, none, none)
        return Hits(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def densest(unit: Any, position: Any, width: int) -> tuple[int, int, int]:
    """(distinct positions, first unit, last unit) of the stretch of at most `width` units that holds the most positions."""
    order = unit.argsort(kind="stable")
    units, positions = unit[order].tolist(), position[order].tolist()
    if units[-1] - units[0] <= width:
        return len(set(positions)), units[0], units[-1]
    best, low, held = (0, 0, 0), 0, dict[int, int]()
    for high, place in enumerate(positions):
        held[place] = held.get(place, 0) + 1
        while units[high] - units[low] > width:
            left = positions[low]
            held[left] -= 1
            if not held[left]:
                del held[left]
            low += 1
        best = max(best, (len(held), units[low], units[high]), key=lambda found: found[0])
    return best


def covered(group: Any, position: Any, size: Any, num_groups: int) -> Any:
    """Units that lie in at least one run, for each group; runs of a group are of one length.

    >>> import numpy as np
    >>> covered(np.array([0, 0, 1]), np.array([3, 5, 0]), np.array([4, 4, 7]), 2).tolist()
    [6, 7]
    """
    import numpy as np

    order = np.lexsort((position, group))
    group, position = group[order], position[order]
    size = np.broadcast_to(size, len(order))[order] if np.ndim(size) else np.full(len(order), size)
    gap = np.append(np.diff(position), 0)
    last = np.append(np.diff(group) != 0, True)[: len(order)]
    return np.bincount(group, np.where(last, size, np.minimum(size, gap[: len(order)])), num_groups).astype(np.int64)


def longest_run(unit: Any, position: Any) -> int:
    """The most n-grams in a row that follow each other in both texts."""
    steps = set(zip((unit - position).tolist(), unit.tolist(), strict=True))
    best = 0
    for lag, place in steps:
        if (lag, place - 1) not in steps:
            length = 1
            while (lag, place + length) in steps:
                length += 1
            best = max(best, length)
    return best
