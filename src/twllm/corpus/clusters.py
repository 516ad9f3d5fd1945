"""Which document of each cluster stays, and the report of the clusters that a person reads: clusters.jsonl.

One line a cluster, in the order of their first documents: {"cluster", "size", "kept": {"id", "url", "source"}, "members": [{…,
"similarity"}]}; similarity is estimated with the kept document, 1.0 for the same text. At most `SHOWN` members are listed.
Which one stays: see lsh.Choice. Memory: clusters are taken in ranges of about CHUNK_ROWS documents; names are read from disk.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twllm.corpus.dedup_runs import CHUNK_ROWS, Runs
from twllm.corpus.global_step import write_drops
from twllm.corpus.minhash import similarities

CLUSTERS = "clusters.jsonl"
SUMMARY = "clusters.json"
NAMES, OFFSETS = "names.jsonl", "names.npy"
SHOWN = 1000
TAKE_ROWS = 1 << 15
KEPT = -1.0  # similarity of what stays


class NameWriter:
    """Ids, URLs and sources of the documents of a part, each to be found again by its place."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lines, self._at, self._offsets = folder, (folder / NAMES).open("wb"), 0, list[int]()

    def write(self, name: dict[str, str]) -> None:
        """One document's."""
        self._offsets.append(self._at)
        self._at += self._lines.write(json.dumps(name, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def close(self) -> None:
        """All are written."""
        import numpy as np

        self._lines.close()
        np.save(self._folder / OFFSETS, np.array([*self._offsets, self._at], np.uint64))


class Names:
    """Reads what NameWriter wrote, of all parts, one file open at a time for each part asked."""

    def __init__(self, folders: Sequence[Path], firsts: Sequence[int]) -> None:
        self._folders, self._firsts = folders, firsts
        self._open: dict[int, tuple[int, Any]] = {}

    def read(self, number: int) -> dict[str, str]:
        """Of the document with this number."""
        import bisect

        import numpy as np

        part = bisect.bisect_right(self._firsts, number) - 1
        if part not in self._open:
            if len(self._open) > 200:
                self.close()
            folder = self._folders[part]
            self._open[part] = os.open(folder / NAMES, os.O_RDONLY), np.load(folder / OFFSETS, mmap_mode="r")
        file, offsets = self._open[part]
        start, stop = (int(offsets[number - self._firsts[part] + step]) for step in (0, 1))
        found: dict[str, str] = json.loads(os.pread(file, stop - start, start))
        return found

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._open.values():
            os.close(file)
        self._open.clear()


def part_firsts(runs: Runs) -> list[int]:
    """The number of the first document of each part, and behind them how many there are."""
    rows = [sum(run.rows for run in runs.of_folder(number)) for number in range(len(runs.folders))]
    firsts = [0]
    for count in rows:
        firsts.append(firsts[-1] + count)
    return firsts


def decide_clusters(runs: Runs, label: Any, out: Path) -> dict[str, Any]:
    """Write clusters.jsonl and the drops of each part into `out`; returns the counts, which are also in clusters.json."""
    import numpy as np

    firsts = part_firsts(runs)
    names = Names(runs.folders, firsts[:-1])
    facts: dict[str, Any] = {"documents": runs.rows, "clusters": 0, "duplicates": 0, "near_duplicates": 0, "sizes": {}}
    # of each document that goes: its cluster, the one that stays, how alike
    decided = np.lib.format.open_memmap(
        out / "decided.npy", mode="w+", dtype=[("kept", "i8"), ("cluster", "i8"), ("like", "f4")], shape=(runs.rows,)
    )
    for start in range(0, runs.rows, CHUNK_ROWS):
        decided["kept"][start : start + CHUNK_ROWS] = -1
    with (out / CLUSTERS).open("w", encoding="utf-8", errors="backslashreplace") as lines:
        for members, like in _clusters(runs, label):
            _write_cluster(lines, facts["clusters"], members, like, names)
            gone = members[1:]
            decided["kept"][gone], decided["cluster"][gone], decided["like"][gone] = (
                members[0],
                facts["clusters"],
                like[1:],
            )
            facts["clusters"] += 1
            same = int((like[1:] == 1.0).sum())
            facts["duplicates"] += same
            facts["near_duplicates"] += len(gone) - same
            size = str(len(members)) if len(members) < 10 else f"{10 ** (len(str(len(members))) - 1)}+"
            facts["sizes"][size] = facts["sizes"].get(size, 0) + 1
    for part, (first, stop) in enumerate(itertools.pairwise(firsts)):
        write_drops(out, part, _drops(decided[first:stop], names))
    names.close()
    del decided
    (out / "decided.npy").unlink()
    facts["sizes"] = dict(sorted(facts["sizes"].items(), key=lambda item: int(item[0].rstrip("+"))))
    (out / SUMMARY).write_text(json.dumps(facts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return facts


def _drops(decided: Any, names: Names) -> Iterator[tuple[int, str, str]]:
    import numpy as np

    for place in np.flatnonzero(decided["kept"] >= 0).tolist():
        row = decided[place]
        reason = "duplicate" if row["like"] == 1.0 else "near_duplicate"
        yield place, reason, f"cluster {row['cluster']}: {row['like']:.2f} like {names.read(int(row['kept']))['id']}"


def _clusters(runs: Runs, label: Any) -> Iterator[tuple[Any, Any]]:
    """(numbers, the one that stays first, then in order; similarity with it), cluster after cluster."""
    import numpy as np

    low = 0
    counts = np.bincount(label, minlength=len(label)).astype(np.uint32) if len(label) else np.zeros(0, np.uint32)
    big = np.flatnonzero(counts > 1)
    sizes = np.cumsum(counts[big], dtype=np.int64)
    del counts
    while low < len(big):
        high = max(low + 1, int(np.searchsorted(sizes, (sizes[low - 1] if low else 0) + CHUNK_ROWS)))
        chosen = np.zeros(len(label), bool)
        chosen[big[low:high]] = True
        members = np.flatnonzero(chosen[label])
        choice = runs.take("choice", members)
        of = label[members]
        order = np.lexsort((members, -choice["letters"], -choice["score"], choice["source"], of))
        members, of = members[order], of[order]
        begins = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
        kept = np.repeat(members[begins], np.diff(np.append(begins, len(members))))
        like = _likeness(runs, kept, members)
        for start, stop in zip(begins.tolist(), np.append(begins[1:], len(members)).tolist(), strict=True):
            rest = np.argsort(members[start + 1 : stop]) + start + 1
            yield np.append(members[start], members[rest]), np.append(np.float32(1.0), like[rest])
        low = high


def _likeness(runs: Runs, kept: Any, members: Any) -> Any:
    """1 for the same text, else the estimate (at most 0.9999)."""
    import numpy as np

    found = np.ones(len(members), np.float32)
    for start in range(0, len(members), TAKE_ROWS):
        sides = kept[start : start + TAKE_ROWS], members[start : start + TAKE_ROWS]
        whole = [runs.take("whole", side) for side in sides]
        like = similarities(*(runs.take("bins", side) for side in sides))
        found[start : start + TAKE_ROWS] = np.where(whole[0] == whole[1], 1.0, np.minimum(like, 0.9999))
    return found


def _write_cluster(lines: Any, number: int, members: Any, like: Any, names: Names) -> None:
    shown = [
        names.read(int(member)) | {"similarity": round(float(value), 4)}
        for member, value in zip(members[1 : SHOWN + 1].tolist(), like[1 : SHOWN + 1].tolist(), strict=True)
    ]
    row = {"cluster": number, "size": len(members), "kept": names.read(int(members[0])), "members": shown}
    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
