"""Personal data as Taiwan writes it, found and replaced by typed placeholders such as 〔手機號碼〕.

Kinds: KINDS below; what each asks for: privacy_rules.py, privacy_places.py, docs/privacy.md. Numbers with a check digit are believed
only when it is right. Full-width digits and letters count as their ASCII forms; spaces and dashes inside are allowed. Service
numbers (0800, 0809, 165, 1999 …) belong to nobody and stay. `scrub` repeats `find` until nothing is found, so scrubbing twice is
scrubbing once. Price: a look at every run of seven digits, every @, every 路…號: see benchmarks/privacy.py.
Not covered: names of people (they need a model), numbers written in Chinese numerals, dates of birth, IP addresses, foreign documents.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from twllm.corpus.privacy_checks import valid_card, valid_company, valid_identity, valid_old_permit
from twllm.corpus.privacy_places import PLATE_CUE, addresses, plate_rule
from twllm.corpus.privacy_rules import DASH, Rule, email_rules, number_rules

__all__ = ["KINDS", "Found", "find", "scrub", "valid_card", "valid_company", "valid_identity", "valid_old_permit"]

KINDS = {  # name in recipes and reports → placeholder
    "identity": "身分證字號", "permit": "居留證號", "company": "統一編號", "health_card": "健保卡號", "passport": "護照號碼",
    "mobile": "手機號碼", "phone": "電話號碼", "email": "電子郵件", "card": "信用卡號", "account": "銀行帳號", "plate": "車牌號碼",
    "address": "地址",
}  # fmt: skip
NARROW = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x3000: 0x20}  # full-width → ASCII, one character for one
WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ＠]")
DIGITS = re.compile(f"[0-9](?:[ \u00a0\u3000.()（）{DASH}]{{0,3}}[0-9]){{6,}}")
HIDDEN_AT = re.compile(r"[(\[{（【〔<]\s?(?:at|a|@|小老鼠)\s?[)\]}）】〕>]", re.IGNORECASE)
BACK, AHEAD = 48, 24  # characters around a candidate in which its words stand
NAME, HOST = 72, 120  # characters of an address before and behind its @
OFFICE = re.compile(
    "政府|公所|[處局署部院會所]|委員會|機關|學校|[大中小]學|醫院|診所|中心|圖書館|博物館|車站|公司|協會|基金會|客服|服務專線|服務電話|總機"
)
OFFICE_MAIL = re.compile(
    r"\.gov\.tw$|^(?:service|info|contact|help|support|press|webmaster|admin|hr|sales|office|pr)\d?@", re.IGNORECASE
)


class Found(NamedTuple):
    """One piece of personal data in a text."""

    kind: str
    start: int
    end: int


def find(text: str, keep: Collection[str] = (), keep_offices: bool = False) -> list[Found]:
    """Personal data in a text, in order, without overlaps.

    `keep`: placeholders of kinds that are left alone. `keep_offices`: so are land-lines, addresses and e-mail of offices: an
    office, school, company … is named in the same line before it, or the mail address is a role's or a government's.
    """
    narrow = text.translate(NARROW) if WIDE.search(text) else text
    taken: list[Found] = []
    for found in _candidates(narrow):
        if all(found.end <= other.start or found.start >= other.end for other in taken[-64:]):
            taken.append(found)
    taken.sort(key=lambda found: found.start)
    if keep:
        taken = [found for found in taken if found.kind not in keep]
    return [found for found in taken if not _is_office(narrow, found)] if keep_offices else taken


def _candidates(text: str) -> Iterator[Found]:
    yield from _matches(text, _mail_windows(text), email_rules())
    yield from _matches(text, _windows(text, DIGITS, BACK, AHEAD), number_rules())
    yield from _matches(text, _windows(text, PLATE_CUE, AHEAD, AHEAD), (plate_rule(),))
    for start, end in addresses(text):
        yield Found("地址", start, end)


def _windows(text: str, cue: re.Pattern[str], back: int, ahead: int) -> Iterator[tuple[int, int]]:
    """Stretches around the cues, joined where they meet."""
    first = last = -1
    for found in cue.finditer(text):
        start, end = max(0, found.start() - back), found.end() + ahead
        if start > last:
            if last >= 0:
                yield first, last
            first = start
        last = end
    if last >= 0:
        yield first, last


def _mail_windows(text: str) -> list[tuple[int, int]]:
    windows = list(_windows(text, re.compile("@"), NAME, HOST)) if "@" in text else []
    windows += _windows(text, HIDDEN_AT, NAME, HOST)
    for cue in ("小老鼠", " dot ", " DOT "):
        if cue in text:
            windows += _windows(text, re.compile(cue), NAME, HOST)
    return windows


def _matches(
    text: str, windows: Iterator[tuple[int, int]] | list[tuple[int, int]], rules: tuple[Rule, ...]
) -> Iterator[Found]:
    for start, end in windows:
        end = _word_end(text, end)
        for rule in rules:
            for match in rule.pattern.finditer(text, start, end):
                if rule.test(match):
                    yield Found(rule.kind, match.start(1), match.end(1))


def _word_end(text: str, end: int) -> int:
    """Not inside a word or number: a pattern does not see what stands behind the end of its window."""
    while end < len(text) and text[end - 1].isascii() and not text[end - 1].isspace() and end % 4096:
        end += 1
    return end


def _is_office(text: str, found: Found) -> bool:
    if found.kind == "電子郵件":
        return bool(OFFICE_MAIL.search(text[found.start : found.end]))
    if found.kind not in ("電話號碼", "地址"):
        return False
    return bool(OFFICE.search(text[max(0, found.start - 30) : found.start].rsplit("\n", 1)[-1]))


def scrub(text: str, keep: Collection[str] = (), keep_offices: bool = False) -> tuple[str, Counter[str]]:
    """The text with placeholders, and how many of each kind were replaced.

    >>> scrub("我的手機是０９１２-345-678")[0]
    '我的手機是〔手機號碼〕'
    """
    counts: Counter[str] = Counter()
    for found, after in passes(text, keep, keep_offices):
        counts.update(kind for kind, _, _ in found)
        text = after
    return text, counts


def passes(text: str, keep: Collection[str] = (), keep_offices: bool = False) -> Iterator[tuple[list[Found], str]]:
    """What was found, and the text without it, until nothing is found. A second pass finds what a first one uncovered, rarely."""
    while found := find(text, keep, keep_offices):
        text = masked(text, found)
        yield found, text


def masked(text: str, found: list[Found]) -> str:
    """The text with placeholders in the places found."""
    parts, at = [], 0
    for kind, start, end in found:
        parts += [text[at:start], f"〔{kind}〕"]
        at = end
    return "".join([*parts, text[at:]])


def placed(found: list[Found]) -> Iterator[int]:
    """Where the placeholder of each stands in the masked text."""
    shift = 0
    for kind, start, end in found:
        yield start + shift
        shift += len(kind) + 2 - (end - start)


def shape(value: str) -> str:
    """The first two characters and the form of the rest, to be shown in place of a number.

    >>> shape("0912-345-678"), shape("王小明@mail.tw")
    ('09##-###-###', '王小#@####.##')
    """
    return value[:2] + "".join("#" if char.isalnum() else char for char in value[2:])
