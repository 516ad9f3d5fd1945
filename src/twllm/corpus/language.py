"""Which language a text is written in, by its characters: Mandarin, Cantonese, Taigi, Hakka, Classical Chinese, or another.

Labels are ISO 639: zh (Mandarin), yue, nan, hak, lzh, ja, ko, en, vi, th, ru, ar …; und where nothing tells. The scripts are
told by counts of characters (codes.py), Cantonese, Taigi and Hakka by characters that Mandarin hardly has and by words,
Latin languages by Vietnamese letters and short function words. Text that mixes English into Mandarin is Mandarin as
long as a seventh of its letters are Han: 「這個 component 的 state」 is how Taiwan writes.
Not covered: languages of one script beyond the ones named (Ukrainian is ru, Persian ar), Teochew, Wu, romanised Hakka.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from twllm.corpus.check import romanised_taigi
from twllm.corpus.codes import Code, Counts, code_table
from twllm.corpus.steps.characters import code_points
from twllm.corpus.wording import words_file

MIN_HAN_SHARE = 0.15  # of the letters; chosen, not tuned
CODE_HAN_SHARE = 0.08  # of a text with 200 Han: pages of program code with their explanation
KANA_SHARE = 0.08  # kana among Han and kana, from which a text is Japanese
MARKS = {"yue": (0.02, Code.YUE), "hak": (0.02, Code.HAK), "nan": (0.035, Code.NAN)}  # share of the Han in marks
NAMES = ("阮(?:小姐|先生|太太|氏|經天|玲玉|籍|囊)",)
NAN_CHARACTERS, SHORT = 0.012, 30  # Taigi must have so many of its own characters, or the text is short
CLASSICAL_STRONG, CLASSICAL_ALL, MODERN_MOST = 0.015, 0.07, 0.004
LATIN_WORDS = {
    "en": "the of and to in is that for with as are was this be on it you",
    "de": "der die und das ist nicht ein eine den mit von zu auf",
    "fr": "le la les des est et une dans que pour pas sur du",
    "es": "el los las de que y en una por con para es del",
    "pt": "o os as que não uma com para do da em",
    "it": "il che di della non per una sono con gli",
    "id": "yang dan di dengan untuk ini itu dari tidak ke pada",
    "tl": "ang ng mga sa na ay at hindi ko",
}
WORD = re.compile(r"[a-zà-ÿ]+")


class Language(NamedTuple):
    """A language, a script (ISO 15924, or Hani where no character tells) and why."""

    lang: str
    script: str
    reason: str


def script_of(counts: Counts) -> str:
    """Hant, Hans, Hani (nothing tells the two apart), or Mixed."""
    telling = counts.simplified + counts.traditional
    if not telling:
        return "Hani"
    share = counts.simplified / telling
    return "Hans" if share >= 0.7 else "Hant" if share <= 0.1 else "Mixed"


def language_of(text: str, counts: Counts, marks: Mapping[str, float]) -> Language:
    """The language of a text; `marks` are the words of yue, nan and hak that were found (region.py counts them)."""
    han, letters = counts.han, counts.letters
    kana, hangul = counts[Code.KANA], counts[Code.HANGUL]
    if kana and kana > KANA_SHARE * (han + kana) and kana >= hangul:
        return Language("ja", "Jpan", f"kana {kana}")
    if hangul and hangul > 0.3 * letters:
        return Language("ko", "Kore", f"hangul {hangul}")
    if counts[Code.TONED] * 20 > counts.size and (found := romanised_taigi(text)):
        return Language("nan", "Latn", f"romanised Taigi: {found}")
    if not han or han < (CODE_HAN_SHARE if han >= 200 else MIN_HAN_SHARE) * letters:
        return _not_chinese(text, counts)
    script = script_of(counts)
    if counts[Code.JAPANESE] >= 2 and counts[Code.JAPANESE] > 0.02 * han:
        return Language("ja", "Jpan", f"Japanese forms {counts[Code.JAPANESE]}")
    for lang, (share, mark) in MARKS.items():
        own, words = counts[mark], marks.get(lang, 0.0)
        if lang == "nan" and own + words >= share * han:
            own = taigi_characters(text)
        enough = own >= (1 if han < SHORT else 2) or (lang == "yue" and words >= 2)
        if lang == "nan" and han >= SHORT:
            enough = own >= NAN_CHARACTERS * han and words >= 2
        if enough and own + words >= max(1.0 if lang == "yue" or own else 2.0, share * han):
            return Language(lang, script, f"{lang}: {own} characters, {words:.0f} words")
    strong, modern = counts[Code.CLASSICAL], counts[Code.DE] + counts[Code.MODERN] + counts[Code.MODERN_TRADITIONAL]
    dense = strong > CLASSICAL_STRONG * han and strong + counts[Code.LITERARY] > CLASSICAL_ALL * han
    if strong >= 2 and dense and modern <= MODERN_MOST * han:
        return Language("lzh", script, f"classical particles {strong}")
    return Language("zh", script, "")


def taigi_characters(text: str) -> int:
    """Taigi's characters that stand in no word of Mandarin (毋庸, 拉攏).

    >>> taigi_characters("兩黨拉攏選民，毋庸再議"), taigi_characters("阮毋知")
    (0, 2)
    """
    import numpy as np

    codes = code_table().take(code_points(_spared().sub("", text)))
    return int(np.count_nonzero(codes == Code.NAN))


@cache
def _spared() -> re.Pattern[str]:
    return re.compile("|".join([*words_file("languages")["taigi"]["spared"], *NAMES]))


def _not_chinese(text: str, counts: Counts) -> Language:
    letters = counts.letters
    for code, lang, script in (
        (Code.CYRILLIC, "ru", "Cyrl"), (Code.THAI, "th", "Thai"), (Code.ARABIC, "ar", "Arab"),
        (Code.HANGUL, "ko", "Kore"), (Code.KANA, "ja", "Jpan"), (Code.BOPOMOFO, "zh", "Bopo"),
    ):  # fmt: skip
        if counts[code] > 0.5 * letters:
            return Language(lang, script, f"{script} {counts[code]} of {letters} letters")
    if counts[Code.VIETNAMESE] > 0.03 * letters:
        return Language("vi", "Latn", f"Vietnamese letters {counts[Code.VIETNAMESE]}")
    if not letters:
        return Language("und", "Zyyy", "no letters")
    told = f"Han {counts.han} of {letters} letters"
    found = WORD.findall(text[:20_000].lower())
    best = max(LATIN_WORDS, key=lambda lang: sum(map(found.count, LATIN_WORDS[lang].split()))) if found else ""
    hits = sum(map(found.count, LATIN_WORDS[best].split())) if best else 0
    return Language(best if best and hits * 12 >= len(found) else "und", "Latn", told)
