"""How answers are marked: a scorer takes an item and an answer and returns a mark.

`mediatek_choice` and `prefix_exact_match` follow the rules of TC-Eval's evaluate.py (github.com/mtkresearch/MR-Models,
TC-Eval, a later public copy of it, read as facts). Own code: its 34 expressions are written as 16, which found the same letters
in 1.5 million random strings of their fragments. On Taiwan-LLaMa v1.0's saved answers all 57
scores of these four tasks come out equal to six digits.
Known oddities are kept, because the published numbers have them: 「|」 stands in several character classes, any answer that
begins with a to e (`Dear …`) counts as that choice, and choices are matched by the beginning of the answer.
Not covered: ROUGE (XSum-TC), the 正/負 rule of IMDB-TC, judges.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from twllm.evaluate.keywords import is_correct
from twllm.evaluate.task import LETTERS, Item


class Mark(NamedTuple):
    """What an answer is worth (0 to 1) and what was understood as the answer ('' : nothing)."""

    value: float
    extracted: str


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


def mark_keywords_or_choice(item: Item, answer: str) -> Mark:
    """By letter where the item has choices, by keywords where it has none."""
    return mark_choice(item, answer) if item.choices else mark_keywords(item, answer)


SCORERS: dict[str, Callable[[Item, str], Mark]] = {
    "keywords": mark_keywords,
    "keywords_or_choice": mark_keywords_or_choice,
    "prefix_exact_match": mark_prefix,
    "mediatek_choice": mark_choice,
}
