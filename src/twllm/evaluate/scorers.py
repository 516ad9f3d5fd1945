"""How answers are marked: a scorer takes an item and an answer and returns a mark.

`mediatek_…` and `prefix_exact_match` follow the rules of TC-Eval's evaluate.py (github.com/mtkresearch/MR-Models, be722d9, read
as facts). Own code: its 34 expressions are written as 16, which found the same letters in 2 million random strings of their
fragments; all 57 scores of DRCD, TTQA, Penguins and TMMLU come out equal to six digits on Taiwan-LLaMa v1.0's saved answers.
Known oddities are kept there, because the published numbers have them: 「|」 stands in several character classes, any answer
that begins with a to e (`Dear …`) counts as that choice, and choices are matched by the beginning of the answer.
`substring_match` and `first_character` are the rules of the seed's run_tceval.py; `exact_match` and `strict_…` are ours, without
these oddities (docs/tceval.md says how many answers change their mark).
Not covered: judges.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from twllm.evaluate.keywords import is_correct
from twllm.evaluate.rouge import rouge
from twllm.evaluate.task import LETTERS, Item


class Mark(NamedTuple):
    """What an answer is worth (0 to 1), what was understood as the answer ('' : nothing), and its scores where it has several."""

    value: float
    extracted: str
    scores: Mapping[str, float] = MappingProxyType({})


def mark_keywords(item: Item, answer: str) -> Mark:
    """1 when an accepted and no rejected keyword is in the answer."""
    return Mark(float(is_correct(answer, item.references, item.rejected)), answer.strip())


def mark_prefix(item: Item, answer: str) -> Mark:
    """1 when the answer begins with one of the references (outer white space ignored)."""
    text = answer.strip()
    hit = text and any(text.startswith(reference.strip()) for reference in item.references)
    return Mark(1.0 if hit else 0.0, text)


def mark_choice(item: Item, answer: str) -> Mark:
    """1 when the extracted letter is the reference."""
    letter = extract_choice(answer, item.choices)
    return Mark(1.0 if letter and letter == item.references[0] else 0.0, letter)


def mark_substring(item: Item, answer: str) -> Mark:
    """1 when one of the references stands anywhere in the answer: an answer that copies the whole passage is right."""
    text = answer.strip()
    return Mark(float(bool(text) and any(reference.strip() in text for reference in item.references)), text)


def mark_first(item: Item, answer: str) -> Mark:
    """1 when the very first character is the reference, capital as it is; only before a digit is white space passed over."""
    first = (answer.strip() if item.references[0].isdigit() else answer)[:1]
    return Mark(float(first == item.references[0]), first)


def mark_rouge(item: Item, answer: str) -> Mark:
    """ROUGE-1, -2 and -L against the reference; the mark is ROUGE-2."""
    scores = rouge(item.references[0], answer)
    return Mark(scores["rouge2"], answer.strip(), scores)


def mark_sentiment(item: Item, answer: str) -> Mark:
    """1 when the answer begins with the reference, 正面 or 負面 (outer white space ignored)."""
    text = answer.strip()
    found = next((label for label in SENTIMENTS if text.startswith(label)), "")
    return Mark(float(found == item.references[0]), found)


SENTIMENTS = ("正面", "負面")
LETTER = r"\(?([A-Ea-e])"
PICK, ITEM, COLON = "[選|选]", "[項|项擇择]", "[：|:]?"
BE = "(?:是|[為|为]|[應|应][為|为]|[應|应][該|该]是|可能是|[選|选][擇|择])?"  # between 答案 and the letter
CHOICE_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^\s*([A-Ea-e])",
        r"^\s*\(([A-Ea-e])\)",
        rf"^{PICK}{ITEM}?{LETTER}",
        rf"{PICK}[擇|择]\s*{LETTER}",
        rf"答案{PICK}{ITEM}[為|为]\s*{LETTER}",
        rf"答案{BE}{COLON}\s*{PICK}?{ITEM}?\s*{LETTER}",
        rf"正[確|确]的[選|选一][项|項][應|应該该]*是\s*{LETTER}",
        rf"正[確|确]的[项|項]是\s*{LETTER}",
        rf"[應|应][該|该]*{PICK}[擇|择]{COLON}\s*{LETTER}",
        rf"[應該|应该]是{COLON}\s*{LETTER}",
        rf"正確的敘述是{COLON}\s*{LETTER}",
        rf"正確.{{0,8}}是[選項|选项擇择]?{COLON}\s*{LETTER}",
        rf"最恰當的選項為{COLON}\s*{LETTER}",
        rf"{PICK}{ITEM}\s*{COLON}\s*{LETTER}\)?\s*是?正[確|确]",
        rf"{LETTER}\)?\s*[應該|应该]?[是|為|为]正[確|确]",
        rf"回答\s*[：|:]\s*{LETTER}",
    )
)


def extract_choice(answer: str, choices: tuple[str, ...] = ()) -> str:
    """The letter A to E that an answer chooses, '' when none or several are found.

    First the expressions (all of them must agree), then a single Latin letter in the whole answer, then an answer that
    begins with the text of a choice.

    >>> extract_choice("答案是 (B)，因為……"), extract_choice("越南。", ("中港澳", "越南")), extract_choice("我不知道")
    ('B', 'B', '')
    """
    if not answer.strip():
        return ""
    found: set[str] = {letter.upper() for pattern in CHOICE_PATTERNS for letter in pattern.findall(answer)}
    if len(found) == 1:
        return found.pop()
    latin: list[str] = re.findall("[a-zA-Z]", answer)
    if len(latin) == 1 and latin[0].upper() in LETTERS:
        return latin[0].upper()
    text = answer.strip()
    return next((LETTERS[i] for i, choice in enumerate(choices) if text.startswith(choice.strip())), "")


# -- strict: without the oddities of the published rules -------------------------------------------------------------

OPENING = re.compile(r"""^(?:[\s"'“”‘’「『《〈【\[(*:.,、。-]|(?:正確)?答案|回答|評論|選項|選擇|選|應該|應|為|是)+""")
OUTER = " \t\"'“”‘’「」『』《》〈〉【】[]()*.。,，、;；:：!！?？"
ALSO = re.compile(r"^[)\]」』.。]*\s*(?:[和與或及、/,&]|以及|或者)\s*[(「]?([A-E])(?![A-Za-z])")


def first_line(answer: str) -> str:
    """The first line with something in it, full-width letters, digits and punctuation made half-width (NFKC)."""
    text = unicodedata.normalize("NFKC", answer).strip()
    return text.split("\n", 1)[0].strip()


def mark_exact(item: Item, answer: str) -> Mark:
    """1 when the answer's first line is one of the references: 「答案：」, quotes and outer punctuation do not count."""

    def bare(text: str) -> str:
        line = first_line(text)
        line = re.sub(r"^(?:正確)?答案\s*[是為]?\s*:?", "", line)
        return "".join(line.strip(OUTER).casefold().split())

    said = bare(answer)
    return Mark(float(bool(said) and said in {bare(reference) for reference in item.references}), said)


def mark_strict_choice(item: Item, answer: str) -> Mark:
    """1 when the first line begins with the reference's letter or the text of its choice."""
    letter = strict_choice(answer, item.choices)
    return Mark(float(bool(letter) and letter == item.references[0]), letter)


def strict_choice(answer: str, choices: tuple[str, ...] = ()) -> str:
    """The letter that the answer's first line begins with, '' for none, for two, or for one that is no choice.

    Words such as 「答案是」 and brackets before it are passed over. A letter must be a capital, or small and alone, and not part of a
    word; several joined by 和, 或, 、 are no answer. Else the choice whose text the line begins with, the longest such one.

    >>> strict_choice("答案是 (B)，因為……"), strict_choice("Dear 同學"), strict_choice("A 和 B 都對"), strict_choice("ｂ")
    ('B', '', '', 'B')
    """
    line = first_line(answer)
    text = line[match.end() :] if (match := OPENING.match(line)) else line
    allowed = LETTERS[: len(choices)] if choices else LETTERS
    letter = text[:1] if not text[1:2].isascii() or not text[1:2].isalnum() else ""
    if letter in allowed.lower() and not text[1:].strip(OUTER):
        letter = letter.upper()
    if letter and letter in allowed:
        more = ALSO.match(text[1:])
        return "" if more and more[1] != letter else letter
    texts = [first_line(choice) for choice in choices]
    fitting = [i for i, choice in enumerate(texts) if choice and (line.startswith(choice) or text.startswith(choice))]
    return LETTERS[max(fitting, key=lambda i: len(texts[i]))] if fitting else ""


def mark_strict_sentiment(item: Item, answer: str) -> Mark:
    """1 when the first line names the reference and not the other: 「這是正面的評論」 counts, 「不是正面」 and both do not."""
    line = first_line(answer)
    named = [label for label in SENTIMENTS if re.search(rf"(?<![不非])(?<!不是)(?<!並非){label}", line)]
    found = named[0] if len(named) == 1 and sum(label in line for label in SENTIMENTS) == 1 else ""
    return Mark(float(found == item.references[0]), found)


def mark_keywords_or_choice(item: Item, answer: str) -> Mark:
    """By letter where the item has choices, by keywords where it has none."""
    return mark_choice(item, answer) if item.choices else mark_keywords(item, answer)


SCORERS: dict[str, Callable[[Item, str], Mark]] = {
    "keywords": mark_keywords,
    "keywords_or_choice": mark_keywords_or_choice,
    "prefix_exact_match": mark_prefix,
    "mediatek_choice": mark_choice,
    "mediatek_sentiment": mark_sentiment,
    "substring_match": mark_substring,
    "first_character": mark_first,
    "rouge": mark_rouge,
    "exact_match": mark_exact,
    "strict_choice": mark_strict_choice,
    "strict_sentiment": mark_strict_sentiment,
}
