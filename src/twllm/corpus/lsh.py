"""Near duplicates over sorted runs: candidates of each band, checked by their signatures, joined to clusters.

`scan` writes for each document the hash of its text and its band keys (sorted runs), its signature and what decides which of a
cluster stays. `pairs_of` takes one column: in each group of equal keys, every document is compared with the first and with the
one before it. `components` joins the pairs: 4 bytes a document in memory, pairs as a stream. Nothing depends on the number of
workers. A cluster is transitive: two of its members may be less alike than the threshold, through a third one between them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from twllm.corpus.dedup_runs import Runs, equal_keys
from twllm.corpus.minhash import BANDS, SHINGLE, band_keys, signatures, similarities

COLUMNS = 1 + BANDS  # the hash of the whole text, then the bands
VERIFY_ROWS = 1 << 15  # pairs whose signatures are in memory at once
NEW_ROUND = 1 << 19  # pairs joined at once


class Choice(NamedTuple):
    """What decides which document of a cluster stays: the first source, then the best score, then most letters, the first."""

    source: int
    score: float


def document_rows(texts: Sequence[str], choices: Sequence[Choice]) -> tuple[Any, dict[str, Any]]:
    """(keys, arrays beside them) of a batch of documents, for RunWriter.add."""
    import numpy as np

    from twllm.corpus.steps.dedup import text_hash

    found = signatures(texts)
    whole = np.array([text_hash(text) for text in texts], np.uint64)
    keys = np.concatenate([whole[None], band_keys(found.bins)])
    table = np.empty(len(texts), [("source", "i4"), ("score", "f4"), ("letters", "i8")])
    table["source"], table["score"] = np.array(choices, float).T
    table["letters"] = found.letters
    return keys, {"bins": found.bins, "choice": table, "whole": whole}


def pairs_of(runs: Runs, column: int, threshold: float) -> Iterator[Any]:
    """(pairs, 2) int64 arrays of numbers of documents that are alike, found in one column."""
    import numpy as np

    for numbers, starts in equal_keys(runs, column):
        place = np.arange(len(numbers))
        first = np.repeat(starts[:-1], np.diff(starts))
        near = np.flatnonzero(place > first)
        left = numbers[near - 1]
        far = near[near - 1 > first[near]]
        pairs = np.stack([np.append(left, numbers[first[far]]), np.append(numbers[near], numbers[far])], axis=1)
        if column == 0:
            yield np.stack([numbers[first[near]], numbers[near]], axis=1)
            continue
        for start in range(0, len(pairs), VERIFY_ROWS):
            some = pairs[start : start + VERIFY_ROWS]
            bins = [runs.take("bins", some[:, side]) for side in (0, 1)]
            usable = runs.take("choice", some[:, 0])["letters"] >= SHINGLE  # all empty signatures are equal
            alike = (similarities(*bins) >= threshold) & usable
            if alike.any():
                yield some[alike]


def components(rows: int, pairs: Iterable[Any]) -> Any:
    """For each document the smallest number of its cluster (its own, where it is alone)."""
    import numpy as np

    label = np.arange(rows, dtype=np.uint32 if rows < 1 << 32 else np.int64)
    for some in pairs:
        for start in range(0, len(some), NEW_ROUND):
            edges = some[start : start + NEW_ROUND]
            while True:
                left, right = roots(label, edges[:, 0]), roots(label, edges[:, 1])
                open_edges = left != right
                if not open_edges.any():
                    break
                edges = edges[open_edges]
                low = np.minimum(left, right)[open_edges]
                np.minimum.at(label, np.maximum(left, right)[open_edges].astype(np.int64), low)
    for start in range(0, rows, NEW_ROUND):
        label[start : start + NEW_ROUND] = roots(label, np.arange(start, min(start + NEW_ROUND, rows)))
    return label


def roots(label: Any, numbers: Any) -> Any:
    """Where following the labels ends."""
    import numpy as np

    found = label[numbers]
    while True:
        above = label[found.astype(np.int64)]
        if np.array_equal(above, found):
            return found
        found = above
