"""MinHash signatures of many texts at once: one pass over the characters in numpy, whatever the number of hashes.

A text is folded (folding.py: width, case, punctuation, white space, variants and Simplified copies hide nothing), its shingles
are all runs of `SHINGLE` letters. One-permutation hashing (Li, Owen, Zhang, NIPS 2012): the hash of a shingle says which of
the `BINS` it falls into, and each bin keeps its smallest; a bin left empty in a short text borrows from another one, the same
in every text (optimal densification: Shrivastava, ICML 2017). So a character costs one hash in place of 128.
Stored are 16 bits of each bin: two different ones agree by chance once in 65,536 times. The share of equal bins estimates
the Jaccard similarity of the shingle sets with a standard error of 0.04 at 0.75 (0.05 for texts of 100 characters).
Price: docs/corpus.md. Not covered: texts of fewer than `SHINGLE` letters (they have no signature), similarity in meaning.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from twllm.corpus.folding import BOUNDARY, BOUNDARY_CODE, MULTIPLIER, fold

SHINGLE = 5  # letters; datatrove: 5 words. Chosen, not tuned
BINS = 128
BIN_BITS = 7
BANDS, ROWS = 21, 6  # a pair of similarity 0.75 shares a band with 98 %, of 0.8 with 99.8 %, of 0.5 with 28 %
BLOCK = 1 << 15  # shingles hashed at once: stays in the processor's cache
EMPTY = 0xFFFFFFFF
ATTEMPTS = 256  # bins asked in turn for an empty one
BATCH_CHARS = 1 << 16  # folded at once: measured fastest (170 MB/s; 1 << 20: 73)


class Signatures(NamedTuple):
    """Of a batch of texts: `bins` (texts, BINS) uint16; `letters` int64 counts them; none below SHINGLE means no signature."""

    bins: Any
    letters: Any


def signatures(texts: Sequence[str]) -> Signatures:
    """The signatures of texts; taken together in the batches that are fastest, so hand in many."""
    import numpy as np

    found, letters = np.full((len(texts), BINS), EMPTY, np.uint32), np.zeros(len(texts), np.int64)
    start = 0
    while start < len(texts):
        stop, size = start, 0
        while stop < len(texts) and (stop == start or size + len(texts[stop]) < BATCH_CHARS):
            size += len(texts[stop]) + 1
            stop += 1
        letters[start:stop] = _smallest(texts[start:stop], found[start:stop].reshape(-1))
        start = stop
    _fill(found)
    return Signatures((found ^ (found >> np.uint32(16))).astype(np.uint16), letters)


def _smallest(texts: Sequence[str], slots: Any) -> Any:
    """Put the smallest hash of each bin of each text into `slots`; how many letters the texts have."""
    import numpy as np

    if len(texts) == 1:  # also one too long to be folded at once
        codes = long_codes(texts[0])
        letters = np.array([len(codes)])
    else:
        codes = fold(BOUNDARY.join((*texts, ""))).codes
        ends = np.flatnonzero(codes == BOUNDARY_CODE)
        if len(ends) != len(texts):  # a text that has this noncharacter itself
            return _smallest([text.replace(BOUNDARY, "") for text in texts], slots)
        letters = np.diff(ends, prepend=-1) - 1
        owner = np.repeat(np.arange(len(texts)) * BINS, letters + 1)
        owner[np.maximum(ends[:, None] - np.arange(SHINGLE), 0)] = -1  # runs that reach over an end
    total = len(codes) - SHINGLE + 1
    for start in range(0, total, BLOCK):
        stop = min(start + BLOCK, total)
        hashes = shingle_hashes(codes[start : stop + SHINGLE - 1])
        at = (hashes >> np.uint64(64 - BIN_BITS)).astype(np.int64)
        if len(texts) > 1:
            inside = np.flatnonzero(owner[start:stop] >= 0)
            hashes, at = hashes[inside], at[inside] + owner[start:stop][inside]
        np.minimum.at(slots, at, (hashes >> np.uint64(20)).astype(np.uint32))
    return letters


def long_codes(text: str) -> Any:
    """The folded codes of a text of any length, folded piece by piece."""
    import numpy as np

    if BOUNDARY in text:
        text = text.replace(BOUNDARY, "")
    pieces = [fold(text[start : start + BATCH_CHARS]).codes for start in range(0, len(text), BATCH_CHARS)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)


def shingle_hashes(codes: Any) -> Any:
    """64 bits of each run of SHINGLE codes: a polynomial of the codes, well mixed."""
    import numpy as np

    wide = codes.astype(np.uint64)
    size = max(0, len(wide) - SHINGLE + 1)
    powers = _powers()
    total = wide[:size] * powers[0]
    for place in range(1, SHINGLE):
        total += wide[place : place + size] * powers[place]
    total ^= total >> np.uint64(32)
    total *= np.uint64(0xBF58476D1CE4E5B9)
    total ^= total >> np.uint64(29)
    total *= np.uint64(0x94D049BB133111EB)
    total ^= total >> np.uint64(32)
    return total


def band_keys(bins: Any) -> Any:
    """(BANDS, texts) uint64: texts with an equal key in a band are candidates."""
    import numpy as np

    powers = _powers(ROWS)
    keys = np.empty((BANDS, len(bins)), np.uint64)
    for band in range(BANDS):
        key = np.full(len(bins), band + 1, np.uint64)
        for row in range(ROWS):
            key += (bins[:, band * ROWS + row].astype(np.uint64) + np.uint64(1)) * powers[row]
            key ^= key >> np.uint64(29)
            key *= np.uint64(MULTIPLIER)
        keys[band] = key ^ (key >> np.uint64(32))
    return keys


def similarities(left: Any, right: Any) -> Any:
    """The estimated Jaccard similarity of rows of signatures."""
    return (left == right).mean(axis=1)


def jaccard(left: str, right: str) -> float:
    """The exact similarity that signatures estimate: of the sets of shingles.

    >>> jaccard("今天天氣很好，我們去夜市", "今天天氣很好我們去夜市！")
    1.0
    """
    import numpy as np

    one, other = (np.unique(shingle_hashes(fold(text).codes)) for text in (left, right))
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(1, len(one) + len(other) - both)


@cache
def _powers(count: int = SHINGLE) -> Any:
    import numpy as np

    return np.cumprod(np.full(count, MULTIPLIER, np.uint64))


@cache
def _donors() -> Any:
    """(ATTEMPTS, BINS): the bins that an empty one asks, in this order."""
    import numpy as np

    return np.random.RandomState(1).randint(0, BINS, (ATTEMPTS, BINS))


def _fill(slots: Any) -> None:
    """Give each empty bin the value of the first bin on its list that was not empty; rows without any value stay empty."""
    import numpy as np

    empty = slots == EMPTY
    rows, bins = np.nonzero(empty & ~empty.all(axis=1, keepdims=True))
    for attempt in range(ATTEMPTS):
        if not len(rows):
            return
        donors = _donors()[attempt, bins]
        found = ~empty[rows, donors]
        # mixed with the attempt, so that two bins that borrow one value in turn do not agree for that alone
        slots[rows[found], bins[found]] = slots[rows[found], donors[found]] + np.uint32(attempt * 0x9E3779B1 & EMPTY)
        rows, bins = rows[~found], bins[~found]
