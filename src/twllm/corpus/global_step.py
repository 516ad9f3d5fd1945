"""Steps that need to see the whole corpus (dedup, statistics by site): the plug that the engine runs them through.

Three phases. `scan` looks at the documents of one part as they pass and writes what the decision needs into a folder of
that part; all parts at the same time. `decide` reads those folders (and no document) and writes into one folder `out`: for
part number n the documents that go, by their place in the part (`write_drops`), and whatever reports it has. It runs
as `parts` tasks side by side, then `conclude` once. `apply` sends the documents of a part on or drops them. Nothing may depend
on how many workers there are, and a phase that was killed is run again from its beginning.

A step registers with `@global_step("name")` and, for streams of one process (tests, `corpus classify`), also as an
ordinary step of the same name.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twllm.corpus.document import Document, Drop, Dropped


class GlobalStep:
    """One global step with its settings; overridden by the steps."""

    name = ""
    parts = 1  # tasks of `decide`

    def scan(self, documents: Iterable[Document], folder: Path) -> Iterator[Document]:
        """Pass the documents of a part on, changed or not, and fill `folder` by their end.

        A part whose source skips this step is scanned as one without documents.
        """
        raise NotImplementedError

    def decide(self, scans: Sequence[Path], out: Path, part: int) -> None:
        """Task number `part` of `parts`: write into `out`. `scans` holds the folders of all parts, in order."""
        raise NotImplementedError

    def conclude(self, scans: Sequence[Path], out: Path) -> None:
        """After all `decide` tasks: put together what they wrote."""

    def apply(self, documents: Iterable[Document], out: Path, number: int) -> Iterator[Document | Dropped]:
        """The documents of part `number`, in the order in which they were scanned: on, or dropped."""
        drops = read_drops(out, number)
        for place, document in enumerate(documents):
            drop = drops.get(place)
            if drop is None:
                yield document.passed(self.name)
            else:
                yield Dropped(document, self.name, drop.reason, drop.detail)

    def publish(self, out: Path, folder: Path) -> Mapping[str, Any]:
        """Copy reports for people from `out` into the finished corpus folder; what is returned goes into funnel.json."""
        return {}


def write_drops(out: Path, number: int, drops: Iterable[tuple[int, str, str]]) -> None:
    """The documents of part `number` that go: (place in the part, reason, detail), places ascending."""
    with (out / f"{number:05}.drops.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as lines:
        for place, reason, detail in drops:
            lines.write(json.dumps([int(place), reason, detail], ensure_ascii=False) + "\n")


def read_drops(out: Path, number: int) -> dict[int, Drop]:
    """What `write_drops` wrote for a part; nothing where it wrote nothing."""
    file = out / f"{number:05}.drops.jsonl"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        return {place: Drop(reason, detail) for place, reason, detail in map(json.loads, lines)}
