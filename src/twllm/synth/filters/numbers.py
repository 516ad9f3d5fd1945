"""Numbers of a text, however written, and whether a translation kept them: 1,000 = 一千, 3:30 pm = 下午三點半, 50% = 五成.

A number has several readings (「2.5 million」 is 2500000; 「the 1990s」 is 1990 or 90), and may be one that must be found on the
other side or one that may be. Must: digits, compound words and numerals (「twenty-three」, 「三千九百」), a numeral from three up
with a measure word. May: one, two, ordinals, months, numerals inside other words (三明治). Dropping a good row costs a
request; keeping a wrong number teaches it. Not covered: units that were converted, 一個 that became 兩個, idioms with numbers.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

DIGITS = {
    char: value
    for value, chars in enumerate(("零〇○", "一", "二兩", "三", "四", "五", "六", "七", "八", "九"))
    for char in chars
}
UNITS = {"十": 10, "百": 100, "千": 1000}
BIG = {"萬": 10**4, "億": 10**8, "兆": 10**12}
TO_TRADITIONAL = str.maketrans("万亿两点个岁层张条块", "萬億兩點個歲層張條塊")
ENGLISH_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
LETTER_SCALES = {"k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9}
SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = {word: value for value, word in enumerate(SMALL)} | {word: 20 + 10 * at for at, word in enumerate(TENS)}
ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday"]
HINTS: dict[str, tuple[str, ...]] = {  # English words that a Chinese number may stand for
    "once": ("1",), "twice": ("2",), "both": ("2",), "pair": ("2",), "couple": ("2",), "double": ("2",), "twin": ("2",),
    "triple": ("3",), "dozen": ("12",), "dozens": ("12", "10"), "fortnight": ("2", "14"), "decade": ("10",),
    "decades": ("10",), "century": ("100",), "half": ("0.5", "1/2", "50%", "30"), "quarter": ("1/4", "25%", "3", "15"),
    "quarterly": ("3",), "third": ("3", "1/3"), "thirds": ("3", "2/3"), "noon": ("12",), "midnight": ("0", "12", "24"),
    "weekly": ("7",), "biweekly": ("2",), "daily": ("24",), "all-day": ("24",),
}  # fmt: skip

ARABIC = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
HAN_NUMERAL = "[零〇○一二兩三四五六七八九十百千萬億兆]"
MEASURE = "個|位|名|天|日|年|月|週|次|本|張|塊|元|歲|度|級|層|樓|隻|頭|杯|碗|條|件|種|秒|小時|人|倍|公|步|點|時|分鐘|頁|章|台|臺|輛|棟|間|家|封|顆|粒|瓶|包|盒|項|題|行|欄|字"
ENGLISH_WORD = "|".join([*WORDS, *ENGLISH_SCALES])
TOKEN = re.compile(
    rf"(?P<percent_han>百分之(?P<ph>{HAN_NUMERAL}+(?:點{HAN_NUMERAL}+)?|{ARABIC}))"
    rf"|(?P<fraction>(?P<below>{HAN_NUMERAL}+|\d+)分之(?P<above>{HAN_NUMERAL}+|\d+))"
    rf"|(?P<tenths>(?P<th>[一二三四五六七八九]|\d(?:\.\d)?)\s?成(?P<half>[一二三四五六七八九半])?(?![立為了人長功就本績員分熟年語份品果交家]))"
    rf"|(?P<roc>民國\s?(?P<rv>\d+|{HAN_NUMERAL}+))"
    rf"|(?P<mixed>(?:(?:{ARABIC})\s?[百千萬億兆]+\s?)+)"
    rf"|(?P<arabic>{ARABIC})(?P<rest>\s?%|\s?趴|\s?個百分點|\s?percent(?:age points?)?\b|\s?per cent\b"
    rf"|[\s-]?(?:hundred|thousand|million|billion|trillion)\b|\s?(?:k|m|mn|b|bn)\b|(?:s)\b)?"
    rf"|(?P<english>\b(?:{ENGLISH_WORD})(?:(?:[\s-]|\sand\s)(?:{ENGLISH_WORD}))*\b)(?P<epct>\s(?:percent|per\scent)\b)?"
    rf"|(?P<han>{HAN_NUMERAL}+(?:點[零〇一二三四五六七八九]+)?)(?P<measure>(?={MEASURE}))?"
    r"|(?P<word>\b[a-z]+(?:-day)?\b)",
    re.I,
)
ENGLISH_HALF_DAY = re.compile(r"\s?(?:p\.?m|a\.?m)\b", re.I)


@dataclass(frozen=True)
class Number:
    """A number in a text: how it is written, what it may mean, and whether the other side must have it."""

    text: str
    values: frozenset[str]
    required: bool


def changed_number(source: str, target: str) -> str | None:
    """The first number that one side must share with the other and does not; None if all are kept.

    >>> changed_number("It sold 1,000 units in May.", "五月賣出一千台。")
    >>> changed_number("It sold 1,000 units.", "賣出一萬台。")
    '1,000 → ?'
    """
    ours, theirs = list(numbers(source)), list(numbers(target))
    for number in ours:
        if number.required and not any(number.values & other.values for other in theirs):
            return f"{number.text} → ?"
    for number in theirs:
        trivial = number.values & {"1", "0"}  # 「an apple」 may be 「1 顆蘋果」
        if number.required and not trivial and not any(number.values & other.values for other in ours):
            return f"? → {number.text}"
    return None


def numbers(text: str) -> Iterator[Number]:
    """All numbers of a text, English or Chinese, in order."""
    text = "".join(char if char in "，、。" else unicodedata.normalize("NFKC", char) for char in text)
    text = text.translate(TO_TRADITIONAL)
    for found in TOKEN.finditer(text):
        yield from _number(found, text)


def _number(found: re.Match[str], text: str) -> Iterator[Number]:
    group = found.groupdict()
    shown = found.group(0).strip()
    if group["percent_han"]:
        yield Number(shown, frozenset(f"{value}%" for value in _values(group["ph"])), True)
    elif group["fraction"]:
        above, below = _values(group["above"]), _values(group["below"])
        yield Number(shown, frozenset(f"{a}/{b}" for a in above for b in below) | above | below, False)
    elif group["tenths"]:
        half = "5" if group["half"] == "半" else plain(han_value(group["half"])) if group["half"] else "0"
        yield Number(
            shown, frozenset(f"{plain(10 * Decimal(v) + Decimal(half))}%" for v in _values(group["th"])), False
        )
    elif group["roc"]:
        years = _values(group["rv"])
        yield Number(shown, years | {plain(Decimal(year) + 1911) for year in years}, True)
    elif group["mixed"]:
        yield Number(shown, _mixed(group["mixed"]), True)
    elif group["arabic"]:
        yield _arabic(found, text)
    elif group["english"]:
        value = english_value(group["english"])
        percent = "%" if group["epct"] else ""
        yield Number(shown, frozenset({plain(value) + percent}), value >= 3 or bool(percent))
    elif group["han"]:
        yield from _han(found)
    elif group["word"] and (hints := _hints(group["word"].lower())):
        yield Number(shown, frozenset(hints), False)


def _arabic(found: re.Match[str], text: str) -> Number:
    """Digits, with what follows them: %, million, k, s (decade), and hours that may be told in twelves."""
    written, rest = found.group("arabic"), (found.group("rest") or "").strip().lstrip("-").lower()
    value = Decimal(written.replace(",", ""))
    values = {value}
    if rest and (rest[0] in "%趴個" or rest.startswith("per")):
        return Number(found.group(0).strip(), frozenset({f"{plain(value)}%"}), True)
    if rest in ENGLISH_SCALES:
        values = {value * ENGLISH_SCALES[rest]}
    elif rest in LETTER_SCALES:
        values |= {value * LETTER_SCALES[rest]}
    elif rest == "s":  # 1990s, 90s
        values |= {value % 100, value + 1900}
    after, before = text[found.end() : found.end() + 5], text[max(0, found.start() - 4) : found.start()]
    hour = re.match(r"\s?[點:時]|\s?[ap]\.?m", after, re.I) or re.search(r"(下午|晚上|傍晚|中午)\s?$", before)
    if hour and value == value.to_integral() and value <= 24:
        values |= {value + 12} if value < 12 else {value - 12}
    minutes = before.endswith(":") and value in (0, 30)  # 3:00 is 三點, 3:30 is 三點半
    return Number(found.group(0).strip(), frozenset(map(plain, values)), not minutes)


def _han(found: re.Match[str]) -> Iterator[Number]:
    """A Chinese numeral: required when compound, or from three up with a measure word."""
    written = found.group("han")
    digits_only = all(char in DIGITS for char in written)
    if written[0] in "百千萬億兆":  # 百貨, 千萬, 萬一
        return
    if digits_only and len(written) == 2:  # 三四個, 七八成: about; the year 九七
        yield Number(written, _values(written), False)
        for char in written:
            yield Number(char, frozenset({str(DIGITS[char])}), False)
        return
    values = _values(written)
    compound = len(written) >= 2 and "點" not in written
    large = found.group("measure") is not None and min(map(Decimal, values)) >= 3
    yield Number(written, values, compound or large)


def _mixed(written: str) -> frozenset[str]:
    """「1 億 2000 萬」: digits with Chinese units, summed."""
    total = Decimal(0)
    for value, units in re.findall(rf"({ARABIC})\s?([百千萬億兆]+)", written):
        part = Decimal(value.replace(",", ""))
        for unit in units:
            part *= (UNITS | BIG)[unit]
        total += part
    return frozenset({plain(total)})


def _values(written: str) -> frozenset[str]:
    """The readings of digits or of a Chinese numeral: 三百五 is 350 or 305."""
    if written[0].isascii():
        return frozenset({plain(Decimal(written.replace(",", "")))})
    whole, point, part = written.partition("點")
    value = han_value(whole)
    if point:
        return frozenset(
            {plain(Decimal(f"{plain(value)}.{''.join(str(DIGITS[char]) for char in part)}")), plain(value)}
        )
    values = {value}
    if len(written) >= 3 and written[-1] in DIGITS and written[-2] in "百千萬":
        values.add(value - DIGITS[written[-1]] + DIGITS[written[-1]] * (UNITS | BIG)[written[-2]] // 10)
    return frozenset(map(plain, values))


def han_value(written: str) -> Decimal:
    """The value of a Chinese numeral, positional (二〇二四) or with units (三千九百五十二).

    >>> [plain(han_value(text)) for text in ("三千九百五十二", "二〇二四", "十五", "兩億三千萬")]
    ['3952', '2024', '15', '230000000']
    """
    if all(char in DIGITS for char in written):
        return Decimal("".join(str(DIGITS[char]) for char in written))
    total = section = digit = 0
    for char in written:
        if char in DIGITS:
            digit = DIGITS[char]
        elif char in UNITS:
            section += (digit or 1) * UNITS[char]
            digit = 0
        else:
            section += digit
            total = total + (section or 1) * BIG[char] if section else (total or 1) * BIG[char]
            section = digit = 0
    return Decimal(total + section + digit)


def english_value(written: str) -> Decimal:
    """The value of number words.

    >>> [plain(english_value(text)) for text in ("twenty-three", "three hundred and fifty", "two million")]
    ['23', '350', '2000000']
    """
    words = [word for word in re.split(r"[\s-]+", written.lower()) if word != "and"]
    total = section = 0
    for before, word in pairwise(["", *words]):
        if word == "hundred":
            section = (section or 1) * 100
        elif word in ENGLISH_SCALES:
            total += (section or 1) * ENGLISH_SCALES[word]
            section = 0
        elif before in SMALL and word in WORDS:  # nineteen eighty-four
            section = section * 100 + WORDS[word]
        else:
            section += WORDS[word]
    return Decimal(total + section)


def _hints(word: str) -> set[str]:
    """Numbers that an English word may become: months, weekdays, ordinals, half."""
    values = set(HINTS.get(word, ()))
    if word in ORDINALS:
        values.add(str(ORDINALS.index(word) + 1))
    for names in (MONTHS, DAYS):
        values |= {str(at) for at, name in enumerate(names, 1) if len(word) >= 3 and name.startswith(word)}
    return values


def plain(value: Decimal) -> str:
    """One spelling per value: no exponent, no trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") or "0" if "." in text else text.lstrip("0") or "0"
