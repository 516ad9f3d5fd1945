"""A .jsonl file with the labels of the Taiwan pipeline added to each line (block_file.py: resumable, any number of processes).

A broken line is counted and named, the others are not lost.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from twllm.corpus.block_file import Block, line_of, rewrite, rows_of
from twllm.corpus.classify import Label, Limits
from twllm.corpus.document import KEEP, Drop
from twllm.corpus.rows import BrokenRow

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
    file: Path,
    out: Path,
    workers: int = 0,
    min_score: float = 0.5,
    text_key: str = "text",
    cut: bool = False,
    documents: bool = False,
) -> FileCounts:
    """Write `file` with labels to `out`; counts of what was kept and why the rest was not.

    `documents`: the limits of the step quality (length, a sentence …) hold, too, so that `keep` is what a build with the default
    steps keeps before it removes duplicates. Without them single sentences and chat turns pass.

    Raises:
        UserError: `out` is `file`, or cannot be written.
    """
    counts = FileCounts()
    work = partial(_label_block, min_score=min_score, text_key=text_key, cut=cut, documents=documents)
    for told in rewrite(file, out, [min_score, text_key, cut, documents], work, workers, "classify"):
        counts.add(told)
    return counts


def _label_block(
    block: Block, min_score: float, text_key: str, cut: bool, documents: bool
) -> tuple[bytes, dict[str, Any]]:
    """The lines with their labels, and the counts; a broken line goes and is named."""
    from twllm.corpus.classify import classify

    limits = Limits(min_score)
    told: dict[str, Any] = {"documents": 0, "kept": 0, "reasons": {}, "broken": []}
    written = list[bytes]()
    for number, row in rows_of(block):
        if isinstance(row, BrokenRow) or not isinstance(row.get(text_key), str):
            told["broken"].append(str(number))
            continue
        url = str(row.get("url") or "")
        label = _of_document(row[text_key], url, limits) if documents else classify(row[text_key], url, limits)
        if cut and label.cut:
            row[text_key] = label.text
        told["documents"] += 1
        told["kept"] += label.keep
        if not label.keep:
            told["reasons"][label.reason] = told["reasons"].get(label.reason, 0) + 1
        written.append(line_of(row | label.to_row()))
    return b"".join(written), told


def _of_document(text: str, url: str, limits: Limits) -> Label:
    """What the steps normalize, region and quality of a build say."""
    from twllm.corpus.classify import classify
    from twllm.corpus.config import CorpusConfig
    from twllm.corpus.steps.normalize import clean
    from twllm.corpus.steps.quality import judge

    label = classify(clean(text), url, limits)
    verdict = judge(label.text, CorpusConfig(), url) if label.keep else KEEP
    if isinstance(verdict, Drop):
        return replace(label, keep=False, reason=verdict.reason, reasons=(verdict.detail, *label.reasons))
    return label
