"""The charset of a page or file: by byte order mark, what is declared (HTTP header, meta) and above all the bytes themselves.

A declaration is a hint. UTF-8 that is valid is UTF-8, whatever is declared; else the declared charsets, Big5, GB 18030, and where
nothing fits the Japanese, Korean and Latin ones are tried on the parts with non-ASCII bytes, and the reading that looks most like
written Chinese wins: 572 characters make up 87 % of the Han in Taiwan's text (counted over statutes, transcripts, gazettes, a wiki), and 5 % or
less of a wrong reading. Big5's variants (big5.py) are told apart by what their extra codes come out as. A page put together from two
charsets is decoded piece by piece, each between two tags or line ends. A character cut off at the end is left out.
Price: UTF-8 one strict decoding; others about 1 ms a page more. Accuracy with each lie: docs/extract.md. Not covered: HZ, ISO-2022,
UTF-7, text encoded twice (Ã¥ for å), Big5 and GB in one piece.
"""

import codecs
import re
from collections.abc import Iterable
from functools import cache

from twllm.corpus.big5 import CP950, HKSCS, UAO, decode_big5, open_codes

UTF8 = "utf-8-sig"
ALIASES = {
    "big5": CP950, "big5-tw": CP950, "big-5": CP950, "x-x-big5": CP950, "csbig5": CP950, "ms950": CP950, "big5-eten": CP950,
    "big5hkscs": HKSCS, "big5-hkscs": HKSCS, "big5-hkscs:2004": HKSCS, "big5_hkscs": HKSCS, "big5-uao": UAO, "big5_uao": UAO, "uao": UAO,
    "gb2312": "gb18030", "gbk": "gb18030", "gb_2312-80": "gb18030", "x-gbk": "gb18030", "cp936": "gb18030", "euc-cn": "gb18030",
    "utf8": UTF8, "utf-8": UTF8, "unicode": "utf-16", "ucs-2": "utf-16", "x-sjis": "cp932", "shift_jis": "cp932", "shift-jis": "cp932",
    "iso-8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252", "windows-1252": "cp1252",
    "ks_c_5601-1987": "cp949", "euc-kr": "cp949",
}  # fmt: skip
CHINESE = (CP950, "gb18030")
OTHERS = ("cp932", "euc_jp", "cp949", "cp1252")
SAMPLE_BYTES = 16_384
WIDE_BYTES = 8192
PLAUSIBLE = 0.35  # right readings of Taiwan's pages 0.5 to 0.9, wrong ones up to 0.2
DECLARED_BONUS = 0.1
FEW = 4  # so many characters may be UTF-8 by chance
PIECE = re.compile(rb"[\x80-\xff][^<>\n]*")  # no multibyte charset here has these bytes inside a character
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
# the commonest characters, in order
COMMON = (
    "的法一之第會是有定不人請以條在行我個案院們所為用員本政這理年規及委程上事式聲就憲查要其項於中提來對得可關者或審國時與分大件判部決台應下出數民議作二到業能前意十後"
    "地文三經方公訴生例實成主機灣了裁發等函照受如他開正處序範依無資並問因同面日使明合辦體書你內務期系字原管建家確新也別見而保自學重過度當但月稱題送權高由相立制修將型爭"
    "工回執位特施質此四設多最長變都全現解計值果動代局間任市參沒名表款利詢金外義已次號終樣些結起化五則通區何報交說讓情告產加入列進未做認指考各更刑看組向然傳該府復核性社比"
    "構庭教適從料標違目防具臺害擬接異達基話訟品碼唐統鳳官道場它很證需記司席兩反還答單點選子六專被想好物收知小改取只種試麼再致導語常元每整非安算至像跟育論展那形編力電模職"
    "備路給命心運平存釋先補檢包陳檔示費去林科量技直濟張徵調服和準天九律限求叫級完術測錄始除舉助訊身七章八放百協供研置總軍水配集必觸裡財器按且商共屬縣華申預護討影少創錯持"
    "造寫住師清許令牴誤障效團否營轉際網係言海畫策支續格較容段什察空土呼東失美針治視引另危推警北把境類源環才據維簡退宣萬著予觀候究疑毒流譯剛即黨責音連域顯南聯節劃農覺須透"
    "救態功族署投講爰手線登今草車難驗信罪略價校約謝監風止口含山益額己移紀活界布訂況邊強樂醫又狀曾評戰旨世庫符落王版緒客製免侵黃消織西領眾望圖門積央企福併增真附片史採園稅獎"
)
CANTONESE = "咗啲嘅喺嚟嗰哋冇噉咁乜嘢佢唔俾睇攞搵瞓揸嚿嘥掹啱噏嗌嗱喎噃喇嚡㗎嘞啫吔吖𡃁嗮攰噚𠵱嗻㩒冚𨋢𥄫嚹畀咩啩"
KOREAN = "이다는의에을를가고하한지로은도서기사인리대자시나"  # a third of Korean text
PUNCTUATION = "，。、；：？！「」『』（）《》〈〉【】…—～．・　％％＊／＋－＝“”‘’–·©®°℃●○◎★☆■□▲△▼→←↑↓①②③④⑤ⅠⅡⅢ№"
LATIN_MARKS = "“”‘’–—…©®°·™«»€£¥§±×÷½¼¾¡¿ºª\xa0"


@cache
def _weights() -> dict[str, float]:
    """What one character says for a reading: the class default is in `_weight`."""
    from opencc import OpenCC

    simplified = OpenCC("t2s").convert(COMMON)
    return dict.fromkeys(COMMON + simplified, 1.0) | dict.fromkeys(PUNCTUATION, 0.6) | dict.fromkeys(CANTONESE, 0.8)


def _weight(char: str) -> float:
    code = ord(char)
    if 0x4E00 <= code <= 0x9FFF or 0x3041 <= code <= 0x30FF or 0x3105 <= code <= 0x3129 or 0xAC00 <= code <= 0xD7A3:
        return 0.0
    if 0xFF01 <= code <= 0xFF5E or 0x1F000 <= code <= 0x1FFFF:
        return 0.1
    if code == 0xFFFD or 0x80 <= code <= 0x9F or 0xE000 <= code <= 0xF8FF:
        return -3.0
    return -0.5


def plausibility(text: str) -> float:
    """How much the non-ASCII characters of a text look like Chinese as it is written: about 0.5 to 0.9, below 0.2 where it
    was decoded wrongly, 0 where there are none."""
    letters = "".join(NOT_ASCII.findall(text))[:3000]
    if not letters:
        return 0.0
    weights = _weights()
    return sum(found if (found := weights.get(char)) is not None else _weight(char) for char in letters) / len(letters)


def _foreign_plausibility(text: str, charset: str) -> float:
    """The same for Japanese, Korean and Latin readings: never more than Chinese that reads well."""
    runs = NOT_ASCII.findall(text)
    letters = "".join(runs)[:3000]
    if not letters or "\ufffd" in letters:
        return -1.0
    if charset == "cp1252":
        short = sum(len(run) for run in runs if len(run) <= 2 or not run.strip(LATIN_MARKS))
        good = sum(char.isalpha() or char in LATIN_MARKS for char in letters)
        return 0.5 * good / len(letters) if short > 0.7 * sum(map(len, runs)) else -1.0
    share = sum(char in KOREAN if charset == "cp949" else "\u3041" <= char <= "\u30ff" for char in letters) / len(
        letters
    )
    return 0.5 if share > (0.15 if charset == "cp949" else 0.25) and len(letters) > FEW else -0.5


def decode(raw: bytes, declared: Iterable[str] = ()) -> tuple[str, str]:
    """(text, charset): `declared` in order of trust. Two charsets in one page are named with a plus between.

    >>> decode("臺灣的夜市".encode("big5"), ["utf-8"])
    ('臺灣的夜市', 'cp950')
    """
    if found := _marked(raw):
        return found
    raw = raw.removeprefix(codecs.BOM_UTF8)
    names = list(dict.fromkeys(name for name in map(normal_name, declared) if name))
    if wide := _utf16(raw[:WIDE_BYTES], names):
        return raw.decode(wide, "replace").rstrip("\ufffd"), wide
    if raw.isascii():
        return raw.decode("ascii"), UTF8
    if (text := _utf8(raw)) is not None and not (names and names[0] != UTF8 and _chance(text)):
        return text, UTF8
    pieces = _pieces(raw)
    sample = b"\n".join([piece for piece in pieces if _utf8(piece) is None] or pieces)
    charset = best_charset(sample, names)
    if wide := _utf16_without_ascii(raw[:WIDE_BYTES], sample, charset):
        return raw.decode(wide, "replace").rstrip("\ufffd"), wide
    text = decode_as(raw, charset)
    if "\ufffd" in text:
        return _by_pieces(raw, charset)
    return text, charset


def normal_name(name: str) -> str | None:
    """Python's name of a declared charset; None where it is none."""
    name = name.strip().strip("\"'").lower()
    name = ALIASES.get(name, name)
    if name == UAO:
        return name
    try:
        return name if codecs.lookup(name)._is_text_encoding else None  # base64 and the like are codecs too
    except (LookupError, ValueError):
        return None


def decode_as(raw: bytes, charset: str) -> str:
    """Text in a charset, U+FFFD for what is broken; a character cut off at the end is left out."""
    if charset in (CP950, HKSCS, UAO):
        text = decode_big5(raw, charset)
    else:
        text = raw.decode(charset, "replace")
    return text[:-1] if text.endswith("\ufffd") and raw[-1:] > b"\x7f" else text


def best_charset(sample: bytes, declared: list[str]) -> str:
    """The charset in which bytes read best as Chinese; where none does, the one that is declared or fits."""
    scores = {}
    for name in dict.fromkeys((*declared, UTF8, *CHINESE)):
        if name in OTHERS:
            continue
        base = CP950 if name in (HKSCS, UAO) else name
        text = decode_big5(sample, UAO) if base == CP950 else sample.decode(base, "replace")
        scores[name] = plausibility(text) + (DECLARED_BONUS if name in declared else 0)
    best = max(scores, key=lambda name: scores[name])
    if scores[best] < PLAUSIBLE and UAO in declared and "\ufffd" not in decode_big5(sample, UAO):
        return UAO  # nobody says so without knowing
    if scores[best] < PLAUSIBLE:
        for name in dict.fromkeys((*(name for name in declared if name in OTHERS), *OTHERS)):
            scores[name] = _foreign_plausibility(sample.decode(name, "replace"), name)
        best = max(scores, key=lambda name: scores[name])
        if scores[best] <= 0:
            best = _strict(sample, declared) or (declared or [UTF8])[0]
    return big5_variant(sample, declared) if best in (CP950, HKSCS, UAO) else best


def _strict(sample: bytes, names: Iterable[str]) -> str | None:
    """The first charset that has all of it, of those that do not have everything."""
    return next((name for name in names if name != "cp1252" and "\ufffd" not in decode_as(sample, name)), None)


def big5_variant(sample: bytes, declared: Iterable[str] = ()) -> str:
    """CP950 where its codes are enough, else HKSCS or UAO: the one whose characters are more to be expected, UAO if alike."""
    codes = open_codes(sample)
    if not codes:
        return CP950
    raw = b"".join(bytes((code >> 8, code & 0xFF)) for code in codes)
    plain = NOT_ASCII.findall(sample.decode(CP950, "ignore"))
    hong_kong = sum(char in CANTONESE for part in plain for char in part) > 0.02 * sum(map(len, plain))
    scores = {UAO: 0.0, HKSCS: 0.5 * hong_kong}
    for name in scores:
        text = decode_big5(raw, name)
        missing, kana = text.count("\ufffd"), sum("\u3041" <= char <= "\u30ff" for char in text)
        known = sum(char in _weights() for char in text if "\u4e00" <= char <= "\u9fff") + sum(
            char in CANTONESE for char in text
        )
        rare = sum("\u3400" <= char <= "\u4dbf" or char >= "\U00020000" for char in text if char not in CANTONESE)
        scores[name] += (known + kana - rare - 3 * missing) / len(codes) + (0.3 if name in declared else 0)
    best = max(scores, key=lambda name: scores[name])
    return best if "\ufffd" not in decode_big5(raw, best) or scores[best] > -2 else CP950


def _marked(raw: bytes) -> tuple[str, str] | None:
    """By byte order mark."""
    for mark, name in ((codecs.BOM_UTF8, UTF8), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):  # fmt: skip
        if raw.startswith(mark):
            if name == UTF8 and _utf8(raw) is None:
                return None  # a mark that lies, or damage: the bytes decide
            return raw.decode(name, "replace").rstrip("\ufffd"), name
    return None


def _utf8(raw: bytes) -> str | None:
    """Text if it is UTF-8 throughout; a character cut off at the end is left out."""
    try:
        return raw.decode(UTF8)
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end >= len(raw):
            return raw[: error.start].decode(UTF8) if error.start else None
        return None


def _chance(text: str) -> bool:
    """Whether so little is there that it may be UTF-8 by chance, and reads like nothing."""
    letters = NOT_ASCII.findall(text)
    return sum(map(len, letters)) <= FEW and plausibility(text) <= 0


def _utf16(raw: bytes, declared: list[str]) -> str | None:
    """UTF-16 without a mark: where zero bytes are, the order that reads better; without any, only where it is declared."""
    zeros, wide = raw.count(0), any(name.replace("_", "-").startswith("utf-16") for name in declared)
    if zeros < 0.01 * len(raw) and not (wide and zeros + len(raw) % 2 == 0):
        return None
    scores = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = raw.decode(name, "replace")
        plain = sum(" " <= char <= "~" or char in "\r\n\t" for char in text)
        scores[name] = plain / max(1, len(text)) + max(0.0, plausibility(text))
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.5 else None


def _utf16_without_ascii(raw: bytes, sample: bytes, charset: str) -> str | None:
    """UTF-16 that has no zero bytes, as Chinese without spaces and line ends: where nothing else reads well."""
    if plausibility(decode_as(sample, charset)) >= PLAUSIBLE:
        return None
    scores = {name: plausibility(raw.decode(name, "replace")) for name in ("utf-16-le", "utf-16-be")}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= PLAUSIBLE else None


def _pieces(raw: bytes) -> list[bytes]:
    """Stretches with non-ASCII bytes between tags and line ends, up to the sample's size."""
    found, size = list[bytes](), 0
    for match in PIECE.finditer(raw):
        found.append(match[0])
        size += len(match[0])
        if size >= SAMPLE_BYTES:
            break
    return found


def _by_pieces(raw: bytes, charset: str) -> tuple[str, str]:
    """Each stretch in the charset of the page, or where that breaks in another one that reads well."""
    parts, end, others = list[str](), 0, set[str]()
    for match in PIECE.finditer(raw):
        parts.append(raw[end : match.start()].decode("ascii"))
        end = match.end()
        piece, name = match[0], charset
        text = decode_as(piece, charset)
        if "\ufffd" in text:
            if (other := _utf8(piece)) is not None and len(other) > 1:
                text, name = other, UTF8
            elif charset not in CHINESE or plausibility(text) < 0:
                other_name = best_charset(piece, [])
                other = decode_as(piece, other_name)
                if plausibility(other) > max(PLAUSIBLE, plausibility(text)):
                    text, name = other, other_name
        if name != charset:
            others.add(name)
        parts.append(text)
    parts.append(raw[end:].decode("ascii"))
    return "".join(parts), "+".join((charset, *sorted(others)))
