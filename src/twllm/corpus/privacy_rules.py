"""The shapes of numbers and addresses that belong to people, and the words around them that say so.

A rule is a pattern and a test of what it found. Three kinds of certainty: a check digit (身分證字號, 居留證號, cards), a shape that
nothing else has (手機號碼, a land-line with its separators, e-mail), or a shape and a word beside it (護照, 健保卡, 統一編號, bank accounts,
bare land-lines). The word must stand in the same sentence, at most some twenty characters before or a few behind. Numbers inside web
addresses, decimals and longer numbers, and those that a word such as 訂單編號 stands in front of, are left alone.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from twllm.corpus.privacy_checks import issuer, plain, valid_card, valid_company, valid_identity, valid_old_permit

DASH = "\\-‐‑‒–—−－"
GAP = f"[ \u00a0\u3000{DASH}]"
OPEN, CLOSE = "[(（]", "[)）]"
START, END = "(?<![A-Za-z0-9_])", "(?![A-Za-z0-9_])"
NUMBER, NUMBER_END = f"(?<![0-9_])(?<![0-9][.,{DASH}])", f"(?![0-9_])(?![.,{DASH}][0-9])"
SENTENCE = re.compile("[。！？!?；;〔〕]|\n\\s*\n")
NOT_PERSONAL = re.compile(
    r"(?:訂單|單號|序號|文號|案號|條碼|貨號|料號|型號|批號|書號|發票號碼|ISBN|ISSN|票號|流水號|專利|證書|時間戳記?|代碼|版本|第)"
    r"(?:編號|號碼|字號)?[\s:：#是為,，「(（-]{0,3}$",
    re.IGNORECASE,
)
DOCUMENT = re.compile("(?:字第?|第)[\\s0-9、，,及與和號函暨至~]{0,60}$")  # 字第0940701642、0940702356、…
DOCUMENT_END = re.compile("(?:\\s|</[a-z]+>)*號(?!碼)")
PHONE_WORD = re.compile(
    "電話|電洽|市話|傳真|專線|聯絡|聯繫|連絡|洽|撥|打|來電|致電|意者電|手機|行動|門號|號碼|簡訊|分機|tel|fax|phone|mobile|call|line",
    re.IGNORECASE,
)
BEFORE_PHONE = re.compile(r"(?:tel|telephone|phone|fax|mobile|cell|line|id|no|t|m|f|p|h|o)\.?$", re.IGNORECASE)
DATE = re.compile(f"(?:19|20)[0-9]{{2}}{GAP}?(?:0?[1-9]|1[0-2]){GAP}?(?:[0-2]?[0-9]|3[01])(?![0-9])")
AREAS = re.compile(  # area code without its 0, and the subscriber's number
    "2[2-8][0-9]{7}|3[2-9][0-9]{6}|37[2-9][0-9]{5}|4(?:[23][0-9]{7}|[4-9][0-9]{6})|49[2-9][0-9]{6}|[56][2-9][0-9]{6}|7[2-9][0-9]{6}"
    "|8[2-8][0-9]{6}|82[2-8][0-9]{5}|826[0-9]{5}|836[0-9]{5}|89[2-9][0-9]{5}|70[0-9]{8}"
)


class Rule(NamedTuple):
    """`pattern` finds candidates in a text with ASCII digits; `test(match)` says whether it is one. Group 1 is what is replaced."""

    kind: str
    pattern: re.Pattern[str]
    test: Callable[[re.Match[str]], bool]


def before(match: re.Match[str], size: int = 24) -> str:
    """What stands before it in the same sentence."""
    start = match.start(1)
    return SENTENCE.split(match.string[max(0, start - size) : start])[-1]


def after(match: re.Match[str], size: int = 8) -> str:
    """What stands behind it in the same sentence."""
    return SENTENCE.split(match.string[match.end(1) : match.end(1) + size])[0]


def in_url(match: re.Match[str]) -> bool:
    """Whether it is part of a web address."""
    head = re.search(r"[!-~]*$", match.string[max(0, match.start(1) - 200) : match.start(1)])
    return bool(head) and any(sign in head[0] for sign in ("://", "www.", "](/"))  # type: ignore[index]


def said(cue: str, back: int = 24, ahead: int = 8) -> Callable[[re.Match[str]], bool]:
    """A test: one of these words stands near by."""
    word = re.compile(cue, re.IGNORECASE)

    def test(match: re.Match[str]) -> bool:
        return bool(word.search(before(match, back)) or (ahead and word.search(after(match, ahead))))

    return test


def free(match: re.Match[str]) -> bool:
    """Neither in a web address nor named as something else (an order, a book, a document)."""
    return not (NOT_PERSONAL.search(before(match)) or DOCUMENT.search(before(match, 64)) or in_url(match))


def _card(match: re.Match[str]) -> bool:
    number = plain(match[1])
    if not valid_card(number) or not free(match):
        return False
    usual = len(number) in (15, 16) and issuer(number) != "UnionPay"
    return usual or bool(re.search("卡|card|visa", before(match), re.IGNORECASE))


def _uniform(text: str) -> bool:
    """At most four separators, or one between every two digits."""
    gaps = len(re.findall(f"{GAP}|[.]", text))
    return gaps <= 4 or gaps >= 9


def _callable(match: re.Match[str]) -> bool:
    """What a telephone number needs: no letters of a longer word around it, nothing that says it is something else."""
    text, start, end = match.string, match.start(1), match.end(1)
    if (
        text[start - 1 : start].isascii()
        and text[start - 1 : start].isalpha()
        and not BEFORE_PHONE.search(text[max(0, start - 10) : start])
    ):
        return False
    tail = text[end : end + 4]
    if DOCUMENT_END.match(text, end):
        return False
    if tail[:1].isascii() and tail[:1].isalpha() and not tail.lower().startswith(("ext", "line", "tel", "fax")):
        return False
    return free(match)


def _mobile(match: re.Match[str]) -> bool:
    return _uniform(match[1]) and _callable(match)


def _land_line(match: re.Match[str]) -> bool:
    number = re.split("[#轉分ex~～]", match[1], maxsplit=1, flags=re.IGNORECASE)[0]
    digits = plain(number)
    local = re.sub("^(?:00)?8860?|^0", "", digits)
    if not AREAS.fullmatch(local) or not _uniform(number) or not _callable(match):
        return False
    shaped = "+" in number or bool(re.search(f"[)）]|[0-9]{GAP}+[0-9]|[0-9][.][0-9]", number))
    return (shaped and not DATE.match(number)) or bool(PHONE_WORD.search(before(match, 14)))


def _foreign(match: re.Match[str]) -> bool:
    return 8 <= len(plain(match[1])) <= 15 and free(match)


ACCOUNT_WORD = "帳號|帳戶|賬號|戶頭|匯款|匯到|匯入|匯給|轉帳|轉到|轉入|存簿|存摺|局號|account"
SERVICE = re.compile(f"0(?:80[09]|20[0-9]|4[01][0-9]){GAP}")  # nobody's: toll-free and paid numbers
_account_said = said(ACCOUNT_WORD, 24, 10)


def _account(match: re.Match[str]) -> bool:
    number = match[1]
    if DATE.match(number) or SERVICE.match(number) or len(set(plain(number))) == 1 or not _uniform(number):
        return False
    return _account_said(match) and free(match)


@cache
def number_rules() -> tuple[Rule, ...]:
    """In this order: what an earlier rule has taken, a later one does not see."""
    gap, ext = f"{GAP}?", "(?:[ ]?(?:#|轉|分機|ext\\.?)[ :：]?[0-9]{1,6}|[~～][0-9]{1,4}(?![0-9]))?"

    def rule(kind: str, pattern: str, *tests: Callable[[re.Match[str]], bool]) -> Rule:
        return Rule(
            kind, re.compile(pattern, re.ASCII | re.IGNORECASE), lambda match: all(test(match) for test in tests)
        )

    def checks(valid: Callable[[str], bool]) -> Callable[[re.Match[str]], bool]:
        return lambda match: valid(match[1])

    def grouped(head: str) -> str:
        return f"{START}([A-Z](?:{gap}[{head}][0-9]{{8}}|{gap}[{head}][0-9]{{2}}{gap}[0-9]{{3}}{gap}[0-9]{{3}}|[ ][{head}](?:[ ][0-9]){{8}})){END}"

    return (
        rule("身分證字號", grouped("12"), checks(valid_identity), free),
        rule("居留證號", grouped("89"), checks(valid_identity), free),
        rule("居留證號", f"{START}([A-Z][A-D]{gap}[0-9]{{8}}){END}", checks(valid_old_permit), free),
        rule(
            "健保卡號", f"{NUMBER}([0-9]{{4}}{gap}[0-9]{{4}}{gap}[0-9]{{4}}){NUMBER_END}", said("健保.{0,6}卡|健保卡"), free
        ),
        rule("信用卡號", f"{NUMBER}([2-6][0-9]{{3}}(?:{gap}[0-9]{{2,6}}){{2,4}}){NUMBER_END}", _card),
        rule(
            "護照號碼", f"{START}([A-Z]{{1,2}}[0-9]{{7,8}}|[A-Z]{{2,3}}[0-9]{{6,7}}|[0-9]{{9}}){END}", said("護照|passport", 20, 6), free
        ),
        rule(
            "手機號碼",
            f"{NUMBER}((?:(?:\\+|00)?886{gap}(?:{OPEN}0{CLOSE}|0)?{gap}9|{OPEN}?0{gap}9)(?:[ .\u00a0{DASH})）]{{0,2}}[0-9]){{8}}){NUMBER_END}",
            _mobile,
        ),
        rule(
            "電話號碼",
            f"{NUMBER}((?:(?:\\+|00)?886{GAP}{{0,3}}(?:{OPEN}0{CLOSE})?|{OPEN}?0)[0-9]{{1,3}}{CLOSE}?(?:[ .\u00a0\u3000{DASH}]{{0,3}}[0-9]){{5,8}}{ext}){NUMBER_END}",
            _land_line,
        ),
        rule(
            "電話號碼", f"(?:電話|傳真|市話|專線|tel|fax)(?:號碼)?[ :：為是.(（「，,\u3000]{{0,4}}([2-8][0-9]{{3}}{gap}[0-9]{{4}}|[2-9][0-9]{{2}}{GAP}[0-9]{{4}}){ext}{NUMBER_END}", free
        ),
        rule("電話號碼", f"{NUMBER}(\\+(?!886)[1-9][0-9]{{0,2}}(?:[ .{DASH}]{{1,2}}{OPEN}?[0-9]{{1,4}}{CLOSE}?){{2,5}}){NUMBER_END}", _foreign),
        rule("電話號碼", f"{NUMBER}(\\+(?:852|853|86|81|82|65|60|44|61|1)[0-9]{{8,11}}){NUMBER_END}", free),
        rule("統一編號", f"{NUMBER}([0-9]{{4}}{gap}[0-9]{{4}}){NUMBER_END}", said("統一編號|統編|公司編號|營利事業編號", 14, 5), checks(valid_company)),
        rule("銀行帳號", f"{START}{NUMBER}((?:[0-9]{{3}}{CLOSE}?{GAP}{{1,2}})?[0-9](?:{gap}[0-9]){{9,15}}){NUMBER_END}", _account),
        rule("銀行帳號", f"{START}{NUMBER}([0-9]{{6}}{gap}[0-9]){NUMBER_END}", said("局號", 40, 0), free),
        rule("銀行帳號", f"{START}{NUMBER}([0-9]{{8}}){NUMBER_END}", said("劃撥", 16, 0), free),
    )  # fmt: skip


@cache
def email_rules() -> tuple[Rule, ...]:
    """Electronic addresses as they are and as people hide them from robots."""
    dot = r"(?:\.|\s?[([{（【]\s?(?:dot|點|\.)\s?[)\]}）】]\s?|\sdot\s)"
    at = r"(?:\s?[([{（【〔<]\s?(?:at|a|@|小老鼠)\s?[)\]}）】〕>]\s?|\s?小老鼠\s?|\s@\s?|@\s)"
    name, end = r"(?<![\w.+@-])([\w+-][\w.+-]{0,63}", r"[a-z]{2,24})(?![\w@])"
    known = r"(?:com|net|org|edu|gov|mil|idv|io|me|tw|cc|jp|hk|us)"
    flags = re.ASCII | re.IGNORECASE

    def real(match: re.Match[str]) -> bool:
        tail = match[1].rsplit(".", 1)[-1].lower()
        return (
            tail not in ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "md", "py")
            and match[1] != "git@github.com"
        )

    def certain(_: re.Match[str]) -> bool:
        return True

    return (
        Rule("電子郵件", re.compile(f"{name}@(?:[a-z0-9-]+\\.)+{end}", flags), real),
        Rule("電子郵件", re.compile(f"{name}{at}(?:[a-z0-9-]+{dot})+{known})(?![\\w@])", flags), certain),
        Rule("電子郵件", re.compile(f"{name}\\sat\\s[a-z0-9-]+(?:\\sdot\\s[a-z0-9-]+)*\\sdot\\s{end}", flags), certain),
    )
