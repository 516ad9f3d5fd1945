"""Personal data as Taiwan writes it, found and replaced by typed placeholders such as 〔手機號碼〕.

Numbers with a check digit are believed only when it is right: 身分證字號 and new 居留證號 (letter + 9 digits), 統一編號, credit cards (Luhn).
A 統一編號 is eight digits that one number in four passes by chance, so a word for it must stand in front. Full-width
digits and letters count as their ASCII forms. Service numbers (0800, 0809, 165, 1999 …) belong to nobody and stay.
Not covered: names and addresses (they need a model), passports, bank accounts, health-insurance cards, licence plates.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

# The letter of an identity number as two digits (A 10 … Z 33; order of introduction for I, O, W, Z)
LETTERS = {letter: number for number, letter in enumerate("ABCDEFGHJKLMNPQRSTUVXYWZIO", 10)}
ID_WEIGHTS = (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)
COMPANY_WEIGHTS = (1, 2, 1, 2, 1, 2, 4, 1)
NARROW = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}  # full-width → ASCII, one character for one
NOT_IN_WORD = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"
NOT_IN_NUMBER = r"(?<![\d.\-])(?<!\d,)", r"(?![\d])(?!-\d)"


class Found(NamedTuple):
    """One piece of personal data in a text."""

    kind: str
    start: int
    end: int


def valid_identity(number: str) -> bool:
    """Whether 身分證字號 (second sign 1, 2) or new 居留證號 (8, 9) has the right check digit.

    >>> valid_identity("A123456789"), valid_identity("A123456788"), valid_identity("A800000014")
    (True, False, True)
    """
    tens, ones = divmod(LETTERS[number[0].upper()], 10)
    return sum(w * d for w, d in zip(ID_WEIGHTS, (tens, ones, *map(int, number[1:])), strict=True)) % 10 == 0


def valid_old_permit(number: str) -> bool:
    """Whether an old 居留證號 (two letters, eight digits) has the right check digit; the second letter counts by its ones."""
    tens, ones = divmod(LETTERS[number[0].upper()], 10)
    second = LETTERS[number[1].upper()] % 10
    digits = (tens, ones, second, *map(int, number[2:]))
    return sum(w * d for w, d in zip(ID_WEIGHTS, digits, strict=True)) % 10 == 0


def valid_company(number: str) -> bool:
    """Whether eight digits are a 統一編號: digit sums divisible by 5 (rule of 2023), a 7 in the seventh place may count as 0 or 1.

    >>> valid_company("04595257"), valid_company("12345678")
    (True, False)
    """
    sums = [sum(divmod(w * int(d), 10)) for w, d in zip(COMPANY_WEIGHTS, number, strict=True)]
    total = sum(sums)
    return total % 5 == 0 or (number[6] == "7" and (total - sums[6] + 1) % 5 == 0)


def valid_card(number: str) -> bool:
    """Whether 13 to 19 digits (spaces and hyphens between them) pass Luhn's check.

    >>> valid_card("4111 1111 1111 1111"), valid_card("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(d) for d in number if d.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _always(_: str) -> bool:
    return True


Rule = tuple[str, re.Pattern[str], Callable[[str], bool]]
# In this order: what an earlier rule has taken, a later one does not see. The group is what is replaced.
RULES: tuple[Rule, ...] = (
    ("電子郵件", re.compile(r"(?<![\w.+-])([\w.+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24})(?![\w@])", re.ASCII), _always),
    ("身分證字號", re.compile(f"{NOT_IN_WORD[0]}([A-Za-z][12]\\d{{8}}){NOT_IN_WORD[1]}", re.ASCII), valid_identity),
    ("居留證號", re.compile(f"{NOT_IN_WORD[0]}([A-Za-z][89]\\d{{8}}){NOT_IN_WORD[1]}", re.ASCII), valid_identity),
    ("居留證號", re.compile(f"{NOT_IN_WORD[0]}([A-Za-z][A-Da-d]\\d{{8}}){NOT_IN_WORD[1]}", re.ASCII), valid_old_permit),
    ("信用卡號", re.compile(f"{NOT_IN_NUMBER[0]}([3-6]\\d{{3}}(?:[ -]?\\d{{2,6}}){{2,4}}){NOT_IN_NUMBER[1]}", re.ASCII), valid_card),
    (
        "手機號碼",
        re.compile(r"(?<![\w.-])((?:\+?886[ -]?\(?0?\)?9|09)\d{2}[ -]?\d{3}[ -]?\d{3})(?!\d)(?!-\d)", re.ASCII),
        _always,
    ),
    (
        "電話號碼",  # area codes 02 to 08, with 3 digits for 037 049 082 083 089 and 4 for 0826 0836
        re.compile(
            r"(?<![\w.-])((?:\+?886[ -]?\(?0?\)?|\(?0)(?:2\)?[ -]?[2-8]\d{3}[ -]?\d{4}|[3-8]\)?[ -]?[2-9]\d{2}[ -]?\d{4}"
            r"|4\)?[ -]?[2-3]\d{3}[ -]?\d{4}|(?:37|49|82|83|89|826|836)\)?[ -]?\d{2,3}[ -]?\d{3,4})"
            r"(?:[ ]?(?:#|轉|分機)[ ]?\d{1,6})?)(?!\d)(?!-\d)",
            re.ASCII,
        ),
        _always,
    ),
    ("統一編號", re.compile(r"(?:統一編號|統編|公司編號)\D{0,4}?(\d{8})(?!\d)"), valid_company),
)  # fmt: skip


def find(text: str) -> list[Found]:
    """Personal data in a text, in order, without overlaps."""
    narrow = text.translate(NARROW)
    taken: list[Found] = []
    for kind, pattern, valid in RULES:
        for start, end, value in _matches(pattern, narrow):
            if valid(value) and all(end <= other.start or start >= other.end for other in taken):
                taken.append(Found(kind, start, end))
    return sorted(taken, key=lambda found: found.start)


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int, str]]:
    for match in pattern.finditer(text):
        yield match.start(1), match.end(1), match[1]


def scrub(text: str) -> tuple[str, Counter[str]]:
    """The text with placeholders, and how many of each kind were replaced.

    >>> scrub("我的手機是０９１２-345-678")[0]
    '我的手機是〔手機號碼〕'
    """
    counts: Counter[str] = Counter()
    parts, at = [], 0
    for kind, start, end in find(text):
        parts += [text[at:start], f"〔{kind}〕"]
        counts[kind] += 1
        at = end
    return "".join([*parts, text[at:]]), counts
