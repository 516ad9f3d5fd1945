"""Which words of a text belong to which region: mainland, Hong Kong, Taiwan.

The lists are OpenCC's TWPhrases (mainland word → Taiwan's) and HKPhrases, without the words that Taiwan writes too, and
`words/regions.toml`. A hit must stand at word boundaries (jieba's dictionary, through rjieba): 「電視頻道」 does not hold 「視頻」. A
word that stands alone in 「」 is talked about, not used, and does not count. About 8 M characters/s where there is
nothing to find: numpy looks for the first two characters of a word, Python only where they stand. Not covered: words
that differ only in sense (土豆, 窩心, 品質 in a factory): no list can tell.
"""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from twllm.corpus.opencc_lists import entries, in_taiwan_form, taiwan_variants, to_simplified_table, to_taiwan_table
from twllm.corpus.steps.characters import code_points

Region = Literal["mainland", "hongkong", "taiwan", ""]
WINDOW = 12  # characters around a hit that the segmenter sees
ALSO_TAIWAN = (
    "粧污祕泄癡參蔘峯梁樑棱檐痹覈鍼纔睾鉢竈皁幺汙潀潙蔿齶"  # forms that are seen in Taiwan too (化粧品), or names
)
WORDS = Path(__file__).parent / "words"


class Hit(NamedTuple):
    """A word of a region in a text; `suggest` is what Taiwan says, '' for Taiwan's own words."""

    start: int
    text: str
    region: Region
    suggest: str


@cache
def words_file(name: str) -> dict[str, Any]:
    """One of the word files that were written for twllm."""
    return tomllib.loads((WORDS / f"{name}.toml").read_text(encoding="utf-8"))


def fold(text: str) -> str:
    """The text in the form words are compared in: Taiwan's characters one for one, 臺 as 台.

    >>> fold("爲視频臺")
    '為視頻台'
    """
    return text.translate(to_taiwan_table())


@cache
def lexicon() -> dict[str, tuple[Region, str]]:
    """Folded word → (region, what Taiwan says). Region '' : no word of a region, but holds one by accident."""
    ours = words_file("regions")
    spared = {fold(word) for word in ours["also_taiwan"]["words"]}
    found: dict[str, tuple[Region, str]] = {}
    for words in (entries("TWPhrases"), _hong_kong()):
        region: Region = "mainland" if words is entries("TWPhrases") else "hongkong"
        for word, forms in words.items():
            taiwan = in_taiwan_form(forms[0])
            key = fold(word)
            if key in spared or key in map(fold, forms) or len(key) < 2:
                continue
            found[key] = (region, taiwan)
            if len(taiwan) > 1 and fold(taiwan) not in spared:
                found.setdefault(fold(taiwan), ("taiwan", ""))
    found |= {fold(word): ("mainland", suggest) for word, suggest in ours["mainland"].items()}
    found |= {fold(word): ("hongkong", suggest) for word, suggest in ours["hongkong"].items()}
    for word in ours["taiwan"]["words"]:
        found.setdefault(fold(word), ("taiwan", ""))
    return found | {fold(phrase): ("", "") for phrase in ours["not_words"]["phrases"]}


def _hong_kong() -> dict[str, tuple[str, ...]]:
    """Hong Kong's word → Taiwan's, by way of the mainland's word that both lists start from."""
    taiwan = entries("TWPhrases")
    pairs = ((forms[0], taiwan.get(word, (word,))) for word, forms in entries("HKPhrases").items())
    return {word: forms for word, forms in pairs if word not in forms and word not in taiwan}


@cache
def mainland_words() -> frozenset[str]:
    """Folded words that the mainland writes, also those that Hong Kong shares (軟件)."""
    both = {fold(word) for word in (*words_file("regions")["mainland"], *entries("TWPhrases"))}
    return frozenset(
        word
        for word, (region, _) in lexicon().items()
        if region == "mainland" or (region == "hongkong" and word in both)
    )


@cache
def _tables() -> tuple[Any, Any, dict[str, int]]:
    """Which code points begin a word, which stand second, and the longest word for each pair that begins one."""
    import numpy as np

    first, second = np.zeros(0x110000, bool), np.zeros(0x110000, bool)
    longest: dict[str, int] = {}
    for word in lexicon():
        first[ord(word[0])] = second[ord(word[1])] = True
        longest[word[:2]] = max(longest.get(word[:2], 0), len(word))
    return first, second, longest


def find_words(text: str) -> list[Hit]:
    """All words of regions, from left to right, not overlapping, the longest at each place.

    >>> [(hit.text, hit.suggest) for hit in find_words("這個視頻要用什麼軟件？電視頻道呢？")]
    [('視頻', '影片'), ('軟件', '軟體')]
    """
    folded = fold(text)
    first, second, longest = _tables()
    points = code_points(folded)
    words, hits, end = lexicon(), list[Hit](), 0
    for place in (first[points[:-1]] & second[points[1:]]).nonzero()[0].tolist():
        if place < end:
            continue
        for size in range(longest.get(folded[place : place + 2], 0), 1, -1):
            region_word = words.get(folded[place : place + size])
            if region_word and (not region_word[0] or _is_word(folded, place, size)):
                end = place + size
                if region_word[0] and not _is_quoted(text, place, size):
                    hits.append(Hit(place, text[place:end], *region_word))
                break
    return hits


def _is_word(text: str, start: int, size: int) -> bool:
    """Whether no dictionary word reaches over an end of the span."""
    import rjieba

    left = max(0, start - WINDOW)
    window = text[left : start + size + WINDOW].translate(to_simplified_table())
    place, begin, end = 0, start - left, start - left + size
    for token in rjieba.cut(window, False):
        after = place + len(token)
        if (place < begin < after < end) or (begin < place < end < after):
            return False
        place = after
    return True


def _is_quoted(text: str, start: int, size: int) -> bool:
    """Whether the span stands alone, or as one of a list, between quotation marks: talked about, not used."""
    before, after = text[max(0, start - 30) : start], text[start + size : start + size + 1]
    if not before or before[-1] not in '「『“"、／/' or after not in ("」", "』", "”", '"', "、", "／", "/"):
        return False
    opened = max(before.rfind(mark) for mark in '「『“"')
    return opened >= 0 and not any(mark in before[opened + 1 :] for mark in "」』”。，")


@cache
def foreign_variants() -> dict[str, str]:
    """Character forms of OpenCC's standard or Hong Kong that Taiwan hardly writes → Taiwan's form (説 → 說, 裏 → 裡)."""
    table = dict(taiwan_variants())
    for char, forms in entries("HKVariants").items():
        table |= {form: taiwan_variants().get(char, char) for form in forms if form != char and form in fold_only()}
    return {char: form for char, form in table.items() if char not in ALSO_TAIWAN}


@cache
def fold_only() -> frozenset[str]:
    """Characters that folding changes, but for 臺."""
    return frozenset(map(chr, to_taiwan_table())) - set("臺污")
