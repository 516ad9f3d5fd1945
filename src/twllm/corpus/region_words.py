"""The words that tell where a text was written, and those of spam and boilerplate, as one automaton over UTF-8.

The lists are words/{mainland,hongkong,taiwan,varieties,quality}.toml, OpenCC's TWPhrases and HKPhrases (through wording.py),
a few web addresses and telephone prefixes, and longer words that hold one of them by accident (not_words), which win
because the longest match at the leftmost place does. 4,000 words in one pass of Aho–Corasick (ahocorasick_rs): 40–70 MB/s a core.
Not covered: word boundaries beyond not_words (wording.py asks a segmenter, at a tenth of the speed).
"""

import tomllib
from functools import cache
from typing import Any, NamedTuple

from twllm.corpus.wording import WORDS, fold, lexicon, words_file

CN, HK, TW, YUE, NAN, HAK = "CN", "HK", "TW", "yue", "nan", "hak"
STRONG, MEDIUM, WEAK, CONVERTED = 3.0, 1.2, 0.5, 4.0  # chosen on the statutes and transcripts, see docs/region.md
LISTED = 1.5  # a word of OpenCC's lists
TAIWAN_STRONG, TAIWAN_MEDIUM, TAIWAN_WEAK = 2.5, 1.0, 0.4
ADDRESSES = {
    (TW, 3.0): (
        ".gov.tw .com.tw .edu.tw .org.tw .net.tw .idv.tw .mil.tw +886 (02)2 (02)8 0800- 09xx NT$ 新竹縣 苗栗縣 彰化縣 南投縣 雲林縣 "
        "嘉義縣 屏東縣 宜蘭縣 花蓮縣 台東縣 澎湖縣 金門縣"
    ),
    (HK, 3.0): ".com.hk .gov.hk .edu.hk .org.hk +852 HK$ .com.mo .gov.mo +853",
    (CN, 3.0): ".com.cn .gov.cn .edu.cn .org.cn +86- +86 ICP備 公網安備 京ICP RMB",
}


class Word(NamedTuple):
    """A word and what it says: `kind` is CN, HK, TW, yue, nan, hak, "" (nothing, by accident) or a kind of spam."""

    text: str
    kind: str
    weight: float


def _load(name: str) -> dict[str, Any]:
    return tomllib.loads((WORDS / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def words() -> tuple[Word, ...]:
    """Every word once for each kind; 臺 and 台 both."""
    found: dict[tuple[str, str], float] = {}

    def add(text: str, kind: str, weight: float) -> None:
        text = fold(text)
        if len(text) > 1 or kind == TW:
            found[text, kind] = max(weight, found.get((text, kind), 0.0))

    for text, (region, _) in lexicon().items():
        if region == "taiwan":
            add(text, TW, TAIWAN_MEDIUM)
        elif region:
            add(text, CN if region == "mainland" else HK, LISTED)
        else:
            add(text, "", 0)
    for name, kind in (("mainland", CN), ("hongkong", HK), ("taiwan", TW)):
        for strength, lists in _load(name).items():
            for text in " ".join(lists.values()).split():
                add(text, kind, _weight(kind, strength))
    for kind in (YUE, NAN, HAK):
        for text in _load("varieties")[kind]["words"].split():
            add(text, kind, 1.0)
    for (kind, weight), texts in ADDRESSES.items():
        for text in texts.split():
            add(text, kind, weight)
    for kind, lists in _load("quality").items():
        for text in " ".join(lists.values()).split():
            add(text, kind, 1.0)
    for text in [text for (text, kind), weight in found.items() if kind == CN and weight == CONVERTED]:
        found.pop((text, TW), None)  # OpenCC's list has it for Taiwan, Taiwan does not: 價效比
    for text in [text for text, kind in found if kind == CN and (text, HK) in found]:
        shared = max(found[text, CN], min(found[text, HK], LISTED))  # neither says which of the two it is
        found[text, CN] = found[text, HK] = max(shared, LISTED) if found[text, CN] != WEAK else LISTED
    for text in words_file("regions")["not_words"]["phrases"]:
        found = {key: weight for key, weight in found.items() if key[0] != fold(text)}
        add(text, "", 0)
    return tuple(Word(text, kind, weight) for (text, kind), weight in found.items())


@cache
def converter_words() -> frozenset[str]:
    """Taiwan's words that OpenCC writes when it converts from the mainland's: beside mainland words they say little."""
    return frozenset(fold(text) for text, (region, _) in lexicon().items() if region == "taiwan")


def _weight(kind: str, strength: str) -> float:
    if kind == TW:
        return {"strong": TAIWAN_STRONG, "medium": TAIWAN_MEDIUM}.get(strength, TAIWAN_WEAK)
    return {"strong": STRONG, "medium": MEDIUM, "weak": WEAK}.get(strength, CONVERTED)


class Finder:
    """The automaton: `find(text)` gives (number of the text pattern, byte offset of its beginning, of its end)."""

    def __init__(self) -> None:
        import ahocorasick_rs

        meanings: dict[str, list[Word]] = {}
        for word in words():
            meanings.setdefault(word.text, []).append(word)
        for text in [text for text in meanings if "台" in text]:
            meanings[text.replace("台", "臺")] = meanings[text]
        self.texts = tuple(meanings)
        self.meanings = tuple(tuple(found) for found in meanings.values())
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            [text.encode() for text in self.texts],
            matchkind=ahocorasick_rs.MatchKind.LeftmostLongest,
            implementation=ahocorasick_rs.Implementation.DFA,
        )

    def find(self, data: bytes) -> list[tuple[int, int, int]]:
        """Matches from left to right, not overlapping."""
        return self._automaton.find_matches_as_indexes(data)  # type: ignore[no-any-return]


@cache
def finder() -> Finder:
    """The one automaton of a process; building it takes about a second."""
    return Finder()
