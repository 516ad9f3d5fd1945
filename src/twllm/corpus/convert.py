"""Simplified → Taiwan's Traditional, checked: native text passes byte for byte, doubtful places are flagged.

Sentences that are Simplified are converted as a whole; in a Traditional sentence only the Simplified-only characters
are. OpenCC's phrases (STPhrases) count only where they begin and end at word boundaries (jieba's dictionary, through
rjieba): that alone mends 少数组织 → 少數組織, where OpenCC finds 数组 and writes 少陣列織. What no phrase decides is decided by
`words/ambiguous.toml`, or takes OpenCC's usual form and is flagged. Mainland words become Taiwan's where the checker
would report them; words that Taiwan writes in another sense too (文件, 程序) stay and are flagged. Measured against
OpenCC's s2tw and s2twp: docs/check.md. Not covered: place and person names of foreign origin beyond OpenCC's list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from twllm.corpus.check import SIMPLIFIED_FROM, Marks, marked_characters
from twllm.corpus.opencc_lists import entries, in_taiwan_form
from twllm.corpus.wording import find_words, fold, mainland_words, words_file

SENTENCE = re.compile(r"[^。！？；!?;\n]*[。！？；!?;\n]*")
MAX_PHRASE = 14  # characters of the longest phrase that is looked for
CONTEXT = 8
PARTICLES = ("了", "着", "过", "得", "的")  # 干了, 面的: a character and a particle are no word that decides


class Flag(NamedTuple):
    """A doubtful place in the converted text: what was written and what else it could be."""

    text: str
    start: int
    options: tuple[str, ...]
    kind: str  # character: which form; wording: another region's word or Taiwan's own sense


@dataclass(frozen=True)
class Conversion:
    """The text as converted (the same object when nothing had to be), and the places a person should look at."""

    text: str
    changed: bool
    flags: tuple[Flag, ...]


def convert_text(text: str, assume_simplified: bool = False) -> Conversion:
    """The text in Taiwan's Traditional characters and words; converting twice changes nothing.

    `assume_simplified`: convert also a text without any character or word that only Simplified writes (不干了).

    >>> convert_text("少数组织发明了干面条。").text, convert_text("皇后在台北里面。").changed
    ('少數組織發明了乾麵條。', False)
    """
    marks = marked_characters(text)
    simplified_text = _is_simplified(marks, assume_simplified)
    if not marks.simplified and not (assume_simplified and simplified_text):
        return Conversion(text, False, ())
    parts, flags, length = list[str](), list[Flag](), 0
    for match in SENTENCE.finditer(text):
        sentence = match[0]
        part, found = _convert_sentence(sentence, simplified_text)
        parts.append(part)
        flags += [flag._replace(start=flag.start + length) for flag in found]
        length += len(part)
    result = "".join(parts)
    return Conversion(result, result != text, tuple(flags))


def _is_simplified(marks: Marks, otherwise: bool) -> bool:
    """Whether most of the characters that tell are Simplified; `otherwise` when none tells."""
    return len(marks.simplified) >= (1 - SIMPLIFIED_FROM) * marks.telling if marks.telling else otherwise


def _convert_sentence(sentence: str, simplified_text: bool) -> tuple[str, list[Flag]]:
    marks = marked_characters(sentence)
    whole = _is_simplified(marks, simplified_text)
    if not marks.han or not (whole or marks.simplified):
        return sentence, []
    characters, doubtful = characters_of(sentence)
    if not whole:
        chosen = set(marks.simplified)
        text = "".join(characters[at] if at in chosen else char for at, char in enumerate(sentence))
        return _convert_words(
            text, [Flag(text[at], at, options, "character") for at, options in doubtful if at in chosen], chosen
        )
    text = "".join(characters)
    return _convert_words(
        text, [Flag(text[at], at, options, "character") for at, options in doubtful], set(range(len(text)))
    )


# -- characters ---------------------------------------------------------------------------------------------------


def characters_of(text: str) -> tuple[list[str], list[tuple[int, tuple[str, ...]]]]:
    """Taiwan's character for each one of a Simplified text, and (place, options) where it is in doubt."""
    import rjieba

    ends, place = list[int](), 0
    for token in rjieba.cut(text, False):
        place += len(token)
        ends.append(place)
    result, doubtful, start = list[str](), list[tuple[int, tuple[str, ...]]](), 0
    boundaries = set(ends)
    for end in ends:
        if end <= start:
            continue
        stop, phrase = next(_phrases(text, start, boundaries), (end, ""))
        if phrase:
            result += phrase
        else:
            for at, char in _inside_word(text, start, end):
                chosen, options = choose(text, at) if len(char) == 1 and char == text[at] else (char, ())
                result += chosen
                doubtful += [(at, options)] if options else []
        start = stop
    return list(in_taiwan_form("".join(result))), doubtful


def _phrases(text: str, start: int, boundaries: set[int]) -> Iterator[tuple[int, str]]:
    """(end, conversion) of the phrases that begin at `start` and end at a word boundary, the longest first."""
    for stop in range(min(len(text), start + MAX_PHRASE), start + 1, -1):
        if stop in boundaries and (phrase := phrases().get(text[start:stop])):
            yield stop, phrase


def _inside_word(text: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    """(place, phrase's conversion or the single character as it is), left to right, the longest phrase first."""
    while start < end:
        for stop in range(end, start + 1, -1):
            if phrase := phrases().get(text[start:stop]):
                yield start, phrase
                start = stop
                break
        else:
            yield start, text[start]
            start += 1


@cache
def phrases() -> dict[str, str]:
    """Simplified phrases → Traditional of equal length: OpenCC's, of its own standard, and ours before them."""
    lists = entries("STPhrases_GeneratedFromRegionalPhrases") | entries("STPhrases")
    ours = words_file("ambiguous")
    found = {key: forms[0] for key, forms in lists.items() if len(key) == len(forms[0])}
    found = {key: form for key, form in found.items() if not (key[1:] in PARTICLES and key[0] in ours)}
    found |= ours["words"]
    return found


def choose(text: str, at: int) -> tuple[str, tuple[str, ...]]:
    """The Traditional character for the single one at a place, and the options when it is in doubt."""
    forms = entries("STCharacters").get(text[at], (text[at],))
    rule = _rules().get(text[at])
    if rule is None:
        return forms[0], ()
    before, after = text[max(0, at - CONTEXT) : at], text[at + 1 : at + 1 + CONTEXT]
    for form, left, right in rule["instead"]:
        if left.search(before) and right.search(after):
            return form, ()
    usual = rule["usual"] or forms[0]
    doubt = any(left.search(before) and right.search(after) for left, right in rule["doubt"])
    return usual, tuple(dict.fromkeys(map(in_taiwan_form, (usual, *forms)))) if doubt else ()


@cache
def _rules() -> dict[str, dict[str, Any]]:
    rules = {}
    for char, rule in words_file("ambiguous").items():
        if char != "words":
            instead = [(form, re.compile(left), re.compile(right)) for form, left, right in rule.get("instead", ())]
            doubt = [(re.compile(left), re.compile(right)) for left, right in rule.get("doubt", ())]
            rules[char] = {"usual": rule.get("usual", ""), "instead": instead, "doubt": doubt}
    return rules


# -- words --------------------------------------------------------------------------------------------------------


@cache
def doubtful_words() -> dict[str, tuple[str, ...]]:
    """Words of OpenCC's mainland list that Taiwan writes too, in this or another sense → (itself, Taiwan's other word)."""
    spared = {fold(word) for word in words_file("regions")["also_taiwan"]["words"]}
    words = ((in_taiwan_form(word), forms) for word, forms in entries("TWPhrases").items())
    return {
        word: (word, *map(in_taiwan_form, forms)) for word, forms in words if fold(word) in spared and word not in forms
    }


@cache
def _doubtful_pattern() -> re.Pattern[str]:
    return re.compile("|".join(sorted(map(re.escape, doubtful_words()), key=len, reverse=True)))


def _convert_words(text: str, flags: list[Flag], converted: set[int]) -> tuple[str, list[Flag]]:
    """Mainland words with a converted character replaced by Taiwan's, flags moved along; doubtful words are flagged."""
    parts, end, shift, shifts = list[str](), 0, 0, list[tuple[int, int]]()
    for hit in find_words(text):
        if fold(hit.text) not in mainland_words() or not converted.intersection(
            range(hit.start, hit.start + len(hit.text))
        ):
            continue
        parts += [text[end : hit.start], hit.suggest]
        end = hit.start + len(hit.text)
        flags = [flag for flag in flags if not hit.start <= flag.start < end]
        shift += len(hit.suggest) - len(hit.text)
        shifts.append((end, shift))
    result = "".join((*parts, text[end:]))
    moved = [flag._replace(start=flag.start + _shift(shifts, flag.start)) for flag in flags]
    whole = len(converted) == len(text)  # a Traditional sentence keeps its words
    found = _doubtful_pattern().finditer(result) if whole else ()
    words = (Flag(match[0], match.start(), doubtful_words()[match[0]], "wording") for match in found)
    return result, sorted((*moved, *words), key=lambda flag: flag.start)


def _shift(shifts: list[tuple[int, int]], place: int) -> int:
    return next((shift for end, shift in reversed(shifts) if end <= place), 0)
