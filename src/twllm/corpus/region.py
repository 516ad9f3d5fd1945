"""Where a Chinese text was written: Taiwan, Hong Kong (and Macau), the mainland; with a score and the words that say so.

`look(text)` weighs what it finds: words of the three regions (region_words.py), forms of characters (codes.py: 爲 is OpenCC's,
衞 Hong Kong's, 裏 either's), curly quotes in place of 「」. A word weighs more if it is repeated, but only logarithmically.
The score is Taiwan's share of the weight, with a prior for Taiwan that grows with the length (a long text holds
some foreign word by accident), and less sure where nothing tells: 0.8 for neutral text, near 1 for plain Taiwan text.
From 0.5 on a text is Taiwan's. Measured per source: docs/region.md, benchmarks/region_quality.py.
Not covered: neutral text of other regions (「我默書一百分。」), Singapore and Malaysia (as CN, by script and words).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from twllm.corpus.codes import Code, Counts, class_of, count
from twllm.corpus.language import Language, language_of
from twllm.corpus.quality import Fault
from twllm.corpus.quality import judge as judge_page
from twllm.corpus.region_words import CN, CONVERTED, HK, TW, converter_words, finder

PRIOR, PRIOR_PER_ROOT = 2.0, 1.0  # weight for Taiwan: to begin with, and for the root of the length in thousands of Han
REPEATED = 0.5  # how much the logarithm of a word's count adds to its weight
UNSURE = 0.2  # what the score of a text without evidence loses
KEEP_FROM = 0.5
CURLY_BESIDE = 4.0  # foreign weight beside which curly quotes say that Taiwan's words came with a conversion
CONVERTED_KIND = "converted"  # what only a converter writes: Taiwan's words beside it are the converter's, too
CONVERTER_WROTE = "converter wrote"  # of Taiwan's weight, the words that a converter knows (軟體, 計程車)
DOUBT_BELOW = 150  # Han; in a longer text native technical prose would suffer (kept of rust-book-tw: 0.94 for 0.98)
DOUBT = 3.0  # mainland weight beside which those count for half
HOSTS = {".tw": TW, ".hk": HK, ".mo": HK, ".cn": CN}
HOST_WEIGHT = 2.0
MENTION = re.compile("[「『“](.)[」』”]")  # a character spoken about: 「裏」和「裡」是異體字
MENTIONS = 2
FOREIGN_LANGUAGES = {"yue": "HK", "nan": "TW", "hak": "TW"}
SHOWN = 6


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a text: counts of characters, matches of words, language and script, region, score, reasons."""

    counts: Counts
    matches: list[tuple[int, int, int]]
    language: Language
    weights: dict[str, float]
    region: str
    score: float
    found: dict[str, dict[str, int]]  # kind → word → times

    @property
    def reasons(self) -> list[str]:
        """The evidence, for a person."""
        told = [self.language.reason] if self.language.reason else []
        for kind in (CN, HK, TW):
            if words := self.found.get(kind):
                best = sorted(words, key=lambda word: -words[word])[:SHOWN]
                told.append(f"{kind} {self.weights[kind]:.1f}: {'、'.join(best)}")
        return told


def look_at(text: str, url: str = "") -> Look:
    """Everything about the language and region of a text."""
    counts = count(text)
    _forget_mentions(text, counts)
    data = fold_bytes(text, counts) if counts.han else b""
    matches = finder().find(data) if data else []
    found = _by_kind(matches)
    marks: dict[str, float] = {
        kind: float(sum(found[kind].values())) for kind in ("yue", "nan", "hak") if kind in found
    }
    language = language_of(text, counts, marks)
    if language.lang not in ("zh", "lzh"):
        region = FOREIGN_LANGUAGES.get(language.lang, "")
        return Look(counts, matches, language, dict.fromkeys((CN, HK, TW), 0.0), region, 0.0, found)
    weights = weigh(counts, found, url)
    region, score = judge(counts, weights, language.script)
    return Look(counts, matches, language, weights, region, score, found)


look = lru_cache(maxsize=1)(look_at)  # the last text is remembered: the next step asks for it again


def _forget_mentions(text: str, counts: Counts) -> None:
    """A regional form of a character in quotation marks of its own is spoken about; where that happens twice, all are."""
    regional = (Code.OPENCC, Code.HONGKONG, Code.EITHER)
    if any(counts.by[code] for code in regional):
        spoken = [code for char in MENTION.findall(text) if (code := class_of(char)) in regional]
        every = [code for code in regional for _ in range(counts.by[code])]
        for one in every if len(spoken) >= MENTIONS else spoken:
            counts.by[one] -= 1
            counts.by[Code.HAN] += 1


def fold_bytes(text: str, counts: Counts) -> bytes:
    """The text as UTF-8, variants of characters as Taiwan writes them where there are any."""
    by = counts.by
    if by[Code.OPENCC] or by[Code.HONGKONG] or by[Code.EITHER] or by[Code.SIMPLIFIED]:
        from twllm.corpus.wording import fold

        text = fold(text)
    return text.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=1)
def page_fault(text: str, url: str = "") -> Fault | None:
    """The first rule of page quality that a text breaks (corpus/quality.py); steps that ask one after the other share the answer."""
    seen = look(text, url)
    return judge_page(text, seen.counts, seen.found)


def _by_kind(matches: list[tuple[int, int, int]]) -> dict[str, dict[str, int]]:
    times: dict[int, int] = {}
    for number, _, _ in matches:
        times[number] = times.get(number, 0) + 1
    found: dict[str, dict[str, int]] = {}
    known = finder()
    for number, n in times.items():
        for word in known.meanings[number]:
            kind = found.setdefault(word.kind, {})
            kind[word.text] = kind.get(word.text, 0) + n
    return found


def weigh(counts: Counts, found: Mapping[str, Mapping[str, int]], url: str = "") -> dict[str, float]:
    """Evidence for each region; what was read from characters is added to `found` under a name in brackets."""
    weights = {kind: _weight_of(found.get(kind, {}), kind) for kind in (CN, HK, TW)}
    weights[CONVERTED_KIND] = sum(w for word in found.get(CN, {}) if (w := _weights()[CN].get(word, 0.0)) == CONVERTED)
    written = {word: n for word, n in found.get(TW, {}).items() if word in converter_words()}
    weights[CONVERTER_WROTE] = _weight_of(written, TW)
    by, han = counts.by, max(counts.han, 1)
    few = han // 1000  # a form of a character as rare as that is a slip or a quotation
    for code, kinds, weight, name in (
        (Code.OPENCC, (CN,), 3.0, "（異體 variants）"), (Code.HONGKONG, (HK,), 3.0, "（港字 forms）"),
        (Code.EITHER, (CN, HK), 2.5, "（裏着 forms）"),
    ):  # fmt: skip
        if by[code] > few:
            for kind in kinds:
                weights[kind] += weight * (1 + REPEATED * math.log(by[code]))
                _add(found, kind, name, by[code])
    curly, corner = by[Code.CURLY], by[Code.CORNER]
    if curly > 2 * corner and curly >= 1:
        weights[CN] += 1.0 + REPEATED * math.log(curly)
        _add(found, CN, "（“”）", curly)
        if not corner and curly > 1 and weights[CN] > CURLY_BESIDE:
            weights[CONVERTED_KIND] += 2 * CONVERTED
    host = url.split("//")[-1].split("/")[0].split(":")[0]
    for suffix, kind in HOSTS.items():
        if host.endswith(suffix):
            weights[kind] += HOST_WEIGHT
    return weights


def _add(found: Any, kind: str, name: str, times: int) -> None:
    found.setdefault(kind, {})[name] = times


def _weight_of(words: Mapping[str, int], kind: str) -> float:
    weight = _weights()[kind]
    return sum(weight[word] * (1 + REPEATED * math.log(n)) for word, n in words.items())


_WEIGHTS: dict[str, dict[str, float]] = {}


def _weights() -> dict[str, dict[str, float]]:
    if not _WEIGHTS:
        for meaning in finder().meanings:
            for word in meaning:
                _WEIGHTS.setdefault(word.kind, {})[word.text] = word.weight
    return _WEIGHTS


def judge(counts: Counts, weights: Mapping[str, float], script: str) -> tuple[str, float]:
    """Region and score of Chinese text."""
    if script == "Hans":
        return CN, 0.0
    foreign = max(weights[CN], weights[HK])
    wrote = weights.get(CONVERTER_WROTE, 0.0)
    own = weights[TW] - wrote + wrote / (1 + weights[CN] / DOUBT) if counts.han < DOUBT_BELOW else weights[TW]
    taiwan = (
        own / (1 + weights.get(CONVERTED_KIND, 0.0) / CONVERTED) + PRIOR + PRIOR_PER_ROOT * math.sqrt(counts.han / 1000)
    )
    share = taiwan / (taiwan + foreign)
    score = share * (1 - UNSURE * math.exp(-(weights[TW] + foreign) / 3))
    if script == "Mixed":
        telling = counts.simplified + counts.traditional
        score *= 1 - min(1.0, 2 * counts.simplified / telling)
    if share >= KEEP_FROM:
        return TW, score
    return (HK if weights[HK] > weights[CN] else CN), min(score, KEEP_FROM - 0.01)
