"""A .jsonl file without the personal data in it (privacy.py), and a report of what went (block_file.py: resumable, several processes).

Every string of a row is scrubbed, conversations' too, but those that say where it comes from (id, url, source, license,
history). Lines without a hit are written as they were, byte for byte. The report has the number of places of each kind and samples
with everything masked; the numbers themselves are in neither. A broken line is counted, named and left out.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twllm.corpus.block_file import Block, line_of, rewrite, rows_of
from twllm.corpus.rows import BrokenRow

NOT_SCRUBBED = frozenset(("id", "url", "source", "license", "history"))
SAMPLES = 20  # of each kind
SHOWN_PLACES = 10
AROUND = 40


@dataclass
class ScrubReport:
    """What was found in a file."""

    documents: int = 0
    with_hits: int = 0
    chars: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # kind → places
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    broken: int = 0
    broken_places: list[str] = field(default_factory=list)

    def add(self, told: dict[str, Any]) -> None:
        """Add what is told of a block."""
        self.documents += told["documents"]
        self.with_hits += told["with_hits"]
        self.chars += told["chars"]
        self.kinds.update(told["kinds"])
        for kind, found in told["samples"].items():
            kept = self.samples.setdefault(kind, [])
            kept += found[: SAMPLES - len(kept)]
        self.broken += len(told["broken"])
        self.broken_places += told["broken"][: SHOWN_PLACES - len(self.broken_places)]

    def to_row(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "documents": self.documents, "with_hits": self.with_hits, "chars": self.chars, "kinds": dict(self.kinds.most_common()),
            "per_million_chars": {kind: round(n * 1e6 / max(self.chars, 1), 2) for kind, n in self.kinds.most_common()},
            "broken": self.broken, "broken_places": self.broken_places, "samples": self.samples,
        }  # fmt: skip


def scrub_file(
    file: Path, out: Path, workers: int = 0, keep: Collection[str] = (), keep_offices: bool = False, text_key: str = ""
) -> ScrubReport:
    """Write `file` without personal data to `out`. `keep`: names of KINDS left alone; `text_key`: scrub this field only.

    Raises:
        UserError: `out` is `file`, or cannot be written.
    """
    from twllm.corpus.privacy import KINDS

    report = ScrubReport()
    left = sorted(KINDS[name] for name in keep)
    work = partial(_scrub_block, keep=left, keep_offices=keep_offices, text_key=text_key)
    for told in rewrite(file, out, [left, keep_offices, text_key], work, workers, "scrub"):
        report.add(told)
    return report


def _scrub_block(block: Block, keep: list[str], keep_offices: bool, text_key: str) -> tuple[bytes, dict[str, Any]]:
    """The lines without personal data, and what went."""
    first, lines = block
    told: dict[str, Any] = {"documents": 0, "with_hits": 0, "chars": 0, "kinds": {}, "samples": {}, "broken": []}
    written = list[bytes]()
    for number, row in rows_of(block):
        if isinstance(row, BrokenRow) or (text_key and not isinstance(row.get(text_key), str)):
            told["broken"].append(str(number))
            continue
        worker = _RowScrubber(told, number, keep, keep_offices)
        clean = (row | {text_key: worker.scrub(row[text_key])}) if text_key else worker.scrub(row)
        told["documents"] += 1
        told["with_hits"] += worker.hits > 0
        line = lines[number - first]
        as_is = line if line.endswith(b"\n") else line + b"\n"
        written.append(line_of(clean) if worker.hits else as_is)
    return b"".join(written), told


class _RowScrubber:
    """Scrubs the strings of one row and tells what it found."""

    def __init__(self, told: dict[str, Any], number: int, keep: list[str], keep_offices: bool) -> None:
        self.told, self.number, self.hits = told, number, 0
        self._keep, self._offices = keep, keep_offices

    def scrub(self, value: Any) -> Any:
        """The value with its strings scrubbed."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            return [self.scrub(part) for part in value]
        if isinstance(value, dict):
            return {key: part if key in NOT_SCRUBBED else self.scrub(part) for key, part in value.items()}
        return value

    def _text(self, text: str) -> str:
        from twllm.corpus.privacy import passes, placed, shape

        self.told["chars"] += len(text)
        for found, after in passes(text, self._keep, self._offices):
            for (kind, start, end), at in zip(found, placed(found), strict=True):
                self.hits += 1
                self.told["kinds"][kind] = self.told["kinds"].get(kind, 0) + 1
                samples = self.told["samples"].setdefault(kind, [])
                if len(samples) < SAMPLES:
                    around = after[max(0, at - AROUND) : at + len(kind) + 2 + AROUND]
                    samples.append({"line": self.number, "shape": shape(text[start:end]), "text": around})
            text = after
        return text
