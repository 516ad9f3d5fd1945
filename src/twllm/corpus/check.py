"""The zh-TW checker: what in a text is not written as Taiwan writes, where, and what Taiwan would write.

Four kinds of spans: characters that only Simplified script has, words of the mainland or Hong Kong, half-width
punctuation next to Han, and forms of characters that Taiwan hardly uses (説, 裏; 台 and 臺 are both fine). The leak rate
is the share of the Han characters in the first two kinds. The verdict names the variety: Simplified by the share of
Simplified-only among the characters that tell the scripts apart, Cantonese, Taigi and Hakka by characters that
Mandarin hardly has, the region of Traditional text by its words. Precision and recall per source: docs/check.md.
It serves the corpus filter, the gate for conversations, the leak rate of model outputs and `twllm check`.
Not covered: words that differ only in sense, Traditional text without any word of a region (it passes as Taiwan's).
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

from twllm.corpus.opencc_lists import entries
from twllm.corpus.steps.characters import HAN_RANGES, code_points
from twllm.corpus.steps.script import simplified_only
from twllm.corpus.wording import Hit, find_words, foreign_variants, words_file

Verdict = Literal["zh-TW", "zh-HK", "zh-CN", "yue", "nan", "mixed", "other"]
HAN = "[\u3400-\u4dbf\u4e00-\u9fff\u3007\uf900-\ufaff\U00020000-\U000323af]"
FULL_WIDTH = dict(zip(",;:!?()", "，；：！？（）", strict=True)) | {".": "。"}
PUNCTUATION = re.compile(rf"(?<={HAN})[,;:!?.]+(?={HAN}|\s*$)|(?<={HAN})[,;]\s(?={HAN})|\((?={HAN})|(?<={HAN})\)", re.M)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\]\([^)\s]*\)|https?://[!-~]+", re.S)
IN_BOTH = "后干里面松丑谷舍胡范余卷朴丰制系发复斗御"  # characters of both scripts, but of some words in one only
SHARED = re.compile(f"[{IN_BOTH}]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
ROMANISED = re.compile(
    r"[^\W\d_]+(?:[\u0300-\u030d\u0358]+[^\W\d_]*)*(?:-+[^\W\d_]+(?:[\u0300-\u030d\u0358]+[^\W\d_]*)*)*"
)
TONE = re.compile("[āáàâǎēéèêěīíìîōóòôǒūúùûńḿⁿ\u0300-\u030d\u0358]")
SIMPLIFIED_FROM, TRADITIONAL_TO = 0.7, 0.1  # share of Simplified-only among characters that tell: from here, up to here
MIN_FORMS_SHARE = 0.005  # forms of characters that Taiwan hardly uses, of the Han: fewer say nothing; chosen, not tuned
MIN_HAN_SHARE = 0.15  # of the letters; chosen, not tuned
BASE: dict[str, float] = {"zh-TW": 1, "mixed": 0.5, "zh-HK": 0.3, "nan": 0.3, "yue": 0.1, "zh-CN": 0.1, "other": 0}


class Span(NamedTuple):
    """A place in the text (character offset) and what Taiwan would write there."""

    text: str
    start: int
    suggest: str


@dataclass(frozen=True)
class Check:
    """What `check_text` finds. `score` from 0 to 1 says how much the text reads as Taiwan's; `reasons` say why."""

    n_chars: int
    n_han: int
    leak_rate: float
    simplified: tuple[Span, ...]
    vocabulary: tuple[Span, ...]
    punctuation: tuple[Span, ...]
    variants: tuple[Span, ...]
    verdict: Verdict
    score: float
    reasons: tuple[str, ...]

    def to_row(self) -> dict[str, Any]:
        """A JSON object, spans as objects."""
        spans = {kind: [span._asdict() for span in getattr(self, kind)] for kind in SPAN_KINDS}
        counts = {"n_chars": self.n_chars, "n_han": self.n_han, "leak_rate": round(self.leak_rate, 6)}
        return counts | spans | {"verdict": self.verdict, "score": round(self.score, 4), "reasons": list(self.reasons)}


SPAN_KINDS = ("simplified", "vocabulary", "punctuation", "variants")


def check_text(text: str) -> Check:
    """Everything the checker knows about a text.

    >>> found = check_text("這個视频很好看,你的軟件呢？")
    >>> found.verdict, [span.text for span in found.simplified], [span.suggest for span in found.vocabulary]
    ('mixed', ['视频'], ['影片', '軟體'])
    """
    marks = marked_characters(text)
    hits = find_words(text)
    leak_rate = _num_leaked(marks, hits) / max(marks.han, 1)
    verdict, reasons = judge(text, marks, hits)
    punctuation = half_width(text)
    score = BASE[verdict] * max(0.0, 1 - 12 * leak_rate) * max(0.5, 1 - 2 * len(punctuation) / max(marks.han, 1))
    score *= max(0.5, 1 - 5 * len(marks.variants) / max(marks.han, 1))
    return Check(
        n_chars=len(text),
        n_han=marks.han,
        leak_rate=leak_rate,
        simplified=tuple(_simplified_spans(text, marks.simplified)),
        vocabulary=tuple(Span(hit.text, hit.start, hit.suggest) for hit in _foreign(hits)),
        punctuation=tuple(punctuation),
        variants=tuple(Span(text[at], at, foreign_variants()[text[at]]) for at in marks.variants),
        verdict=verdict,
        score=score if marks.telling or not score else min(score, 0.8),
        reasons=tuple(reasons),
    )


def leak_rate(texts: Iterable[str]) -> float:
    """Share of the Han characters of all texts that stand in Simplified characters or another region's words."""
    leaked = han = 0
    for text in texts:  # neither spans nor a verdict: what the converter would suggest costs most of a check
        marks = marked_characters(text)
        leaked, han = leaked + _num_leaked(marks, find_words(text)), han + marks.han
    return leaked / max(1, han)


def _foreign(hits: Iterable[Hit]) -> list[Hit]:
    """The words of another region."""
    return [hit for hit in hits if hit.region != "taiwan"]


def _num_leaked(marks: "Marks", hits: Iterable[Hit]) -> int:
    """Characters that are Simplified only or stand in another region's word, each once."""
    words = {at for hit in _foreign(hits) for at in range(hit.start, hit.start + len(hit.text))}
    return len(words.union(marks.simplified))


# -- characters ---------------------------------------------------------------------------------------------------


class Marks(NamedTuple):
    """Counts and places of characters that tell something."""

    han: int
    letters: int
    kana: int
    simplified: list[int]
    traditional: int
    variants: list[int]

    @property
    def telling(self) -> int:
        """Characters that only one script has."""
        return len(self.simplified) + self.traditional


@cache
def _classes() -> Any:
    """uint8 class of each code point: 0 other, 1 Han, 2 Simplified only, 3 Traditional only, 4 foreign form."""
    import numpy as np

    table = np.zeros(0x110000, np.uint8)
    for start, stop in HAN_RANGES:
        table[start:stop] = 1
    forms = {form for values in entries("TSCharacters").values() for form in values}
    simplified = simplified_only() - (foreign_variants().keys() - forms)  # 説 is no Simplified form, 户 is
    traditional = {char for char, forms in entries("TSCharacters").items() if forms[0] != char and char not in forms}
    for number, chars in (
        (4, foreign_variants()),
        (3, traditional - set("乾瞭藉夥餘著") - foreign_variants().keys()),
        (2, simplified),
    ):
        table[[ord(char) for char in chars if len(char) == 1]] = number
    return table


def marked_characters(text: str) -> Marks:
    """Where characters stand that tell the script."""
    import numpy as np

    kinds = _classes().take(code_points(text))
    counts = np.bincount(kinds, minlength=5).tolist()
    han = sum(counts[1:])
    places = (kinds == 2).nonzero()[0].tolist()
    if not places and not counts[3] and SHARED.search(text):
        places = simplified_words(text)
    letters = sum(map(str.isalpha, CODE.sub("", text))) if han * 4 < len(text) else max(han, 1)
    kana = len(KANA.findall(text)) if han * 2 < len(text) else 0
    return Marks(han, letters, kana, places, counts[3], (kinds == 4).nonzero()[0].tolist())


def simplified_words(text: str) -> list[int]:
    """Places of characters of both scripts in words that only Simplified writes so (干部, 后面), for a text without a better sign.

    >>> simplified_words("站在后面的干部"), simplified_words("皇后面前")
    ([2, 5], [])
    """
    import rjieba

    from twllm.corpus.convert import phrases

    found, place = list[int](), 0
    for token in rjieba.cut(text, False):
        if len(token) > 1 and (phrase := phrases().get(token)):
            found += [place + at for at, char in enumerate(token) if char in IN_BOTH and phrase[at] != char]
        place += len(token)
    return found


def _simplified_spans(text: str, places: list[int]) -> Iterable[Span]:
    """Neighbouring Simplified-only characters as one span, with the conversion that fits the context."""
    if not places:
        return
    from twllm.corpus.convert import characters_of

    converted, _ = characters_of(text)
    for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0]):
        block = [at for _, at in run]
        start, stop = block[0], block[-1] + 1
        yield Span(text[start:stop], start, "".join(converted[start:stop]))


def half_width(text: str) -> list[Span]:
    """Half-width punctuation that belongs to Chinese: between Han, or at the end of a line after Han; code is passed over.

    >>> half_width("好,但是 f(x, y) 和 3.5 不算。")
    [Span(text=',', start=1, suggest='，')]
    """
    if not re.search(r"[,;:!?.()]", text):
        return []
    plain = CODE.sub(lambda match: " " * len(match[0]), text)
    spans = (
        Span(match[0], match.start(), "".join(FULL_WIDTH.get(c, "") for c in match[0]))
        for match in PUNCTUATION.finditer(plain)
    )
    return [span._replace(suggest="……") if re.fullmatch(r"\.{2,}", span.text) else span for span in spans]


# -- verdict ------------------------------------------------------------------------------------------------------


def judge(text: str, marks: Marks, hits: list[Hit]) -> tuple[Verdict, list[str]]:
    """The variety a text is written in, and why."""
    if marks.kana * 12 > marks.han + marks.kana:
        return "other", [f"kana {marks.kana}"]
    if romanised := romanised_taigi(text):
        return "nan", [f"romanised Taigi {romanised}"]
    if not marks.han or marks.han < MIN_HAN_SHARE * marks.letters:
        return "other", [f"Han {marks.han} of {marks.letters} letters"]
    for name, verdict in (("hakka", "other"), ("cantonese", "yue"), ("taigi", "nan")):
        if found := language_marks(text, name, marks.han):
            return verdict, [f"{name}: {found}"]  # type: ignore[return-value]
    if marks.telling:
        share = len(marks.simplified) / marks.telling
        if share >= SIMPLIFIED_FROM:
            return "zh-CN", [f"Simplified {len(marks.simplified)} of {marks.telling} telling characters"]
        if share > TRADITIONAL_TO:
            return "mixed", [f"Simplified {len(marks.simplified)} of {marks.telling} telling characters"]
    return region_of(marks, hits)


def region_of(marks: Marks, hits: list[Hit]) -> tuple[Verdict, list[str]]:
    """The region of text in Traditional script, by its words and forms of characters."""
    words = {
        region: [hit.text for hit in hits if hit.region == region] for region in ("mainland", "hongkong", "taiwan")
    }
    cn, hk, tw = (len(words[region]) for region in words)
    hk += len(marks.variants) // 3 if len(marks.variants) > MIN_FORMS_SHARE * marks.han else 0
    reasons = [f"{region}: {'、'.join(dict.fromkeys(found[:8]))}" for region, found in words.items() if found]
    reasons += [f"forms: {len(marks.variants)}"] if marks.variants else []
    if hk >= 2 and hk > tw and hk >= cn:
        return "zh-HK", reasons
    if len(set(words["mainland"])) >= 2 and cn > 3 * tw:
        return "zh-CN", reasons
    if cn + hk and cn + hk > tw:
        return "mixed", reasons
    return "zh-TW", reasons


def language_marks(text: str, name: str, han: int) -> str:
    """The marks of Cantonese, Taigi or Hakka found, when they are enough to say so; else ''."""
    pattern, spared, settings = _language(name)
    if settings.get("need", "") not in text:
        return ""
    found = pattern.findall(spared.sub("", text) if spared else text)
    enough = settings["distinct"] if han >= settings["short"] else 1
    need = max(1, math.ceil(settings["share"] * han))
    return "".join(dict.fromkeys(found)) if len(found) >= need and len(set(found)) >= enough else ""


@cache
def _language(name: str) -> tuple[re.Pattern[str], re.Pattern[str] | None, dict[str, Any]]:
    settings = words_file("languages")[name]
    spared = re.compile("|".join(settings["spared"])) if settings.get("spared") else None
    return re.compile("|".join([*settings["words"], f"[{settings['characters']}]"])), spared, settings


def romanised_taigi(text: str) -> str:
    """Some words, when the text is mostly Tâi-lô or Pe̍h-ōe-jī: tone marks on a third of the words, hyphens in a tenth."""
    if len(TONE.findall(text)) * 20 < len(text):
        return ""
    words = ROMANISED.findall(text)
    latin = [word for word in words if not re.search(HAN, word)]
    toned = [word for word in latin if TONE.search(word)]
    joined = [word for word in latin if "-" in word]
    return " ".join(toned[:4]) if 3 * len(toned) >= len(latin) > 2 and 10 * len(joined) >= len(latin) else ""
