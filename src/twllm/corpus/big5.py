"""Big5 as Taiwan and Hong Kong wrote it: CP950 with ETEN's symbols, and the two sets that fill its gaps, HKSCS and UAO.

Python's cp950 puts kana at C6A1 as a table of 1994 did; pages of Taiwan have ETEN's there (① at C6A1, ぁ at C6E7, as WHATWG's
big5), so those 248 codes are put right. What CP950 leaves open means one thing in Big5-HKSCS (咗 啲) and another in Big5-UAO
(Unicode-At-On of PTT and old blogs: 说, ♥, ㄅ半); its table is the `uao` package's (MIT). Which of the two it is must be told by the
caller (charset.py tells by the characters that come out). Price: the fast C codec, a call for each code it does not know.
Not covered: CNS 11643 planes above, the user-defined characters of single institutions (戶役政 and the like).
"""

import codecs
import re
from functools import cache

CP950 = "cp950"
HKSCS = "big5hkscs"
UAO = "big5-uao"
VARIANTS = (CP950, HKSCS, UAO)
TRAILS = frozenset((*range(0x40, 0x7F), *range(0xA1, 0xFF)))
ETEN = range(0xC6A1, 0xC8FF)  # ETEN's symbols, kana and Cyrillic; the same in HKSCS and UAO but for some brackets
REPLACEMENT = "\ufffd"


@cache
def uao_table() -> dict[int, str]:
    """Character of each two-byte code, base set and extensions."""
    from uao.b2u import b2u_table

    table: dict[int, str] = b2u_table
    return table


def _two(code: int) -> bytes:
    return bytes((code >> 8, code & 0xFF))


@cache
def eten_fixes() -> dict[int, str]:
    """Code point that Python's cp950 gives for an ETEN code → what ETEN has there (for str.translate)."""
    fixes = {}
    for code in ETEN:
        if code & 0xFF in TRAILS:
            ours, right = _two(code).decode(CP950, "ignore"), uao_table().get(code)
            if len(ours) == 1 and ord(ours) > 0x7F and right and ours != right:
                fixes[ord(ours)] = right
    return fixes


@cache
def _wrong() -> re.Pattern[str]:
    return re.compile(f"[{''.join(map(chr, eten_fixes()))}]")


def _lookup(variant: str, code: int) -> str | None:
    """The character of a code that CP950 leaves open."""
    if variant == UAO:
        return uao_table().get(code)
    if variant == HKSCS or code in ETEN:
        found = _two(code).decode(HKSCS, "replace")
        return None if REPLACEMENT in found else found
    return None


def _handler(variant: str) -> None:
    def handle(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        pair = error.object[error.start : error.start + 2]
        if len(pair) == 2 and pair[0] > 0x80 and pair[1] in TRAILS:
            found = _lookup(variant, pair[0] << 8 | pair[1])
            return found or REPLACEMENT, error.start + 2
        return REPLACEMENT, error.start + 1

    codecs.register_error(f"twllm-{variant}", handle)


for _variant in VARIANTS:
    _handler(_variant)


def decode_big5(raw: bytes, variant: str = CP950) -> str:
    """Text of Big5 bytes in a variant; U+FFFD for what it does not have and for broken bytes.

    >>> decode_big5(bytes.fromhex("a4e5c6e79dde"), UAO)
    '文ぁ♥'
    """
    text = raw.decode(CP950, f"twllm-{variant}")
    return text.translate(eten_fixes()) if _wrong().search(text) else text


def open_codes(raw: bytes) -> list[int]:
    """The two-byte codes in it that CP950 leaves open, in order: what HKSCS and UAO read differently."""
    found: list[int] = []

    def handle(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        pair = error.object[error.start : error.start + 2]
        whole = len(pair) == 2 and pair[0] > 0x80 and pair[1] in TRAILS
        if whole:
            found.append(pair[0] << 8 | pair[1])
        return "", error.start + 1 + whole

    codecs.register_error("twllm-open", handle)
    raw.decode(CP950, "twllm-open")
    return found
