"""The normal form in which overlap is looked for, as numpy arrays that keep the way back into the text.

Compared are letters and digits only: NFKC, case folded, and every Han character stood for by one of its family (臺 台 颱; 后 後;
發 髮 发; 著 着), so that width, punctuation, white space, variants and Simplified copies hide nothing. Families come from
OpenCC's character lists (read at run time); 8,225 characters fall into 3,986 of them, the largest has six. The price: 發 and 髮
are one character here, which a run of thirteen characters does not mind.
Units of comparison: single characters, or whole words of scripts that write spaces (`word_units`). Measured on one core:
147 M characters/s for `fold`. Not covered: half-width kana with voicing marks, jamo, mainland words (软件 is not 軟體).
"""

import unicodedata
from functools import cache
from typing import Any, NamedTuple

from twllm.corpus.steps.characters import code_points

BOUNDARY = "\U0010ffff"  # a noncharacter that stands between two texts; no window reaches over it
BOUNDARY_CODE = 1
CJK_FROM = 0x2E80  # radicals, kana, Bopomofo, Han, Hangul: written without spaces, or with few characters a word
LAST_LETTER = 0x32400  # behind it, nothing is assigned but tags, variation selectors and private use
MULTIPLIER = 0x9E3779B97F4A7C15  # odd: 2^64 over the golden ratio


class Folded(NamedTuple):
    """A text's letters and digits: `codes` (uint32) of the normal form, `at` (int64) their places in the text."""

    codes: Any
    at: Any


class Units(NamedTuple):
    """What windows are made of. Unit u spells `codes[first[u]:first[u + 1]]` and stands at `[start[u], stop[u])` of the text."""

    values: Any  # uint64, well mixed; equal spelling has equal value
    codes: Any
    first: Any
    start: Any
    stop: Any


@cache
def families() -> dict[str, str]:
    """Han character → the one that stands for all that are written for each other, in either script."""
    from twllm.corpus.opencc_lists import entries

    parent: dict[str, str] = {}

    def root(char: str) -> str:
        while (above := parent.setdefault(char, char)) != char:
            char = above
        return char

    for name in ("TSCharacters", "STCharacters", "TWVariants", "HKVariants"):
        pairs = ((char, form) for char, forms in entries(name).items() for form in forms)
        for char, form in pairs:
            if len(char) == len(form) == 1:
                low, high = sorted((root(char), root(form)))
                parent[high] = low
    return {char: root(char) for char in parent}


def fold_char(char: str) -> str:
    """The normal form of one character: none, one or several letters and digits.

    >>> fold_char("Ａ"), fold_char("，"), fold_char("㎡"), fold_char("臺") == fold_char("颱")
    ('a', '', 'm2', True)
    """
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", char).casefold())
    return "".join(families().get(letter, letter) for letter in plain if letter.isalnum())


@cache
def _table() -> tuple[Any, list[Any]]:
    """(code point → code: 0 leaves it out, above 0x10FFFF: number of an expansion; the expansions). 0.3 s the first time."""
    import numpy as np

    table, expansions = np.zeros(0x110000, np.uint32), list[Any]()
    for code in range(LAST_LETTER):
        folded = fold_char(chr(code)) if not 0xD800 <= code < 0xE000 else ""
        if len(folded) == 1:
            table[code] = ord(folded)
        elif folded:
            table[code] = 0x110000 + len(expansions)
            expansions.append(code_points(folded))
    table[ord(BOUNDARY)] = BOUNDARY_CODE
    return table, expansions


def fold(text: str) -> Folded:
    """The letters and digits of a text. Places are those of its NFC form: hand in NFC where you need them.

    >>> fold("臺 灣！").at.tolist()
    [0, 2]
    """
    import numpy as np

    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    table, expansions = _table()
    codes = table.take(code_points(text))
    at = np.flatnonzero(codes)
    codes = codes[at]
    many = np.flatnonzero(codes >= 0x110000)
    if many.size:
        lengths = np.ones(len(codes), np.int64)
        parts = [expansions[number] for number in (codes[many] - 0x110000).tolist()]
        lengths[many] = [len(part) for part in parts]
        ends = np.cumsum(lengths)
        codes, at = np.repeat(codes, lengths), np.repeat(at, lengths)
        for end, part in zip(ends[many].tolist(), parts, strict=True):
            codes[end - len(part) : end] = part
    return Folded(codes, at)


def folded_text(text: str) -> str:
    """The normal form as a string.

    >>> folded_text("Ｎ．Ｔ．Ｕ. 1 ㎡")
    'ntu1m2'
    """
    return str(fold(text).codes.astype("<u4").tobytes().decode("utf-32-le"))


def is_cjk(codes: Any) -> Any:
    """Whether each code is of a script written without spaces."""
    return codes >= CJK_FROM


def is_digit(codes: Any) -> Any:
    """Whether each code is 0 to 9 (full-width and other forms of them are folded)."""
    return (codes >= 0x30) & (codes <= 0x39)


def character_units(folded: Folded) -> Units:
    """Each letter or digit is a unit."""
    import numpy as np

    codes, at = folded
    return Units(mix(codes), codes, np.arange(len(codes) + 1), at, at + 1)


def word_units(folded: Folded) -> Units:
    """Each run of letters and digits with nothing between them is a unit; CJK characters are left out."""
    import numpy as np

    keep = np.flatnonzero(~is_cjk(folded.codes))
    codes, at = folded.codes[keep], folded.at[keep]
    if not len(codes):
        empty = np.zeros(0, np.int64)
        return Units(empty.astype(np.uint64), codes, np.zeros(1, np.int64), empty, empty)
    boundary = codes == BOUNDARY_CODE
    begins = np.flatnonzero(np.append(True, (np.diff(at) > 1) | boundary[1:] | boundary[:-1]))
    first = np.append(begins, len(codes))
    powers = np.cumprod(np.full(int(np.diff(first).max()), MULTIPLIER, np.uint64))
    inside = np.arange(len(codes)) - np.repeat(begins, np.diff(first))
    values = np.add.reduceat(mix(codes) * powers[inside], begins)
    return Units(values, codes, first, at[begins], at[first[1:] - 1] + 1)


def mix(codes: Any) -> Any:
    """Code points as well mixed 64-bit numbers, one for one (the finalizer of splitmix64)."""
    import numpy as np

    mixed = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(MULTIPLIER)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
