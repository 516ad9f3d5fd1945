"""Charsets told from the bytes, with true, missing and lying declarations."""

import codecs

import pytest

from twllm.corpus.big5 import HKSCS, UAO, decode_big5, uao_table
from twllm.corpus.charset import decode, plausibility

TEXT = "「夜市」是台灣人的廚房。下班後，阿明騎著機車去買蚵仔煎，老闆笑著說：「今天的蚵仔很新鮮喔！」"
SIMPLIFIED = "夜市是台湾人的厨房，下班以后大家骑着摩托车去买宵夜，老板笑着说：今天的东西很新鲜。"
CANTONESE = "我哋琴日去咗行街，佢話嗰間嘢食好好味㗎，你哋有冇食過呀？"
PAGE = '<html><head>{}</head><body><div class="a">{}</div></body></html>'
LIES = ("", "utf-8", "big5", "gbk", "gb2312", "iso-8859-1", "shift_jis", "euc-kr", "utf-16", "base64", "沒有這種")


def uao(text: str) -> bytes:
    back: dict[str, int] = {}
    for code, char in uao_table().items():
        back.setdefault(char, code)
    return b"".join(char.encode() if char < "\x80" else back[char].to_bytes(2, "big") for char in text)


@pytest.mark.parametrize("told", LIES)
@pytest.mark.parametrize(
    ("charset", "text", "name"),
    [
        ("utf-8", TEXT, "utf-8-sig"),
        ("big5", TEXT, "cp950"),
        ("cp950", TEXT + "碁銹裏墻恒粧嫺╔═╗", "cp950"),
        ("big5hkscs", CANTONESE, "big5hkscs"),
        ("gbk", SIMPLIFIED, "gb18030"),
        ("gbk", TEXT, "gb18030"),
        ("gb18030", SIMPLIFIED + "𠮷", "gb18030"),
        ("utf-16-le", TEXT, "utf-16-le"),
        ("utf-16-be", TEXT, "utf-16-be"),
    ],
)
def test_whatever_is_declared(charset: str, text: str, name: str, told: str) -> None:
    page = PAGE.format(f'<meta charset="{told}">' if told.isascii() else "", text)
    assert decode(page.encode(charset), [told] if told else []) == (page, name)


@pytest.mark.parametrize("told", ["", "big5", "utf-8", "big5-uao"])
def test_big5_uao(told: str) -> None:
    text = TEXT + "♥，说什麼呢？ぁこんにちは堃喆"
    assert decode(uao(text), [told] if told else []) == (text, UAO)


def test_code_points_differ_by_variant() -> None:
    assert decode_big5(bytes.fromhex("9dde"), UAO) != decode_big5(bytes.fromhex("9dde"), HKSCS)
    assert decode_big5(bytes.fromhex("c6e7a4e5")) == "ぁ文"  # ETEN's place, not the one of Python's cp950
    assert decode_big5(b"\xa4\xe5\xff\xa4<") == "文\ufffd<"
    assert len(uao_table()) > 19_000


@pytest.mark.parametrize(
    ("mark", "charset"),
    [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le")],
)  # fmt: skip
def test_byte_order_marks(mark: bytes, charset: str) -> None:
    assert decode(mark + TEXT.encode(charset), ["big5"])[0] == TEXT


def test_utf16_without_mark_zeros_or_declaration() -> None:
    assert decode(TEXT.encode("utf-16-le"))[0] == TEXT
    assert decode(TEXT.encode("utf-16-be"))[0] == TEXT


def test_a_mark_that_lies() -> None:
    assert decode(codecs.BOM_UTF8 + TEXT.encode("big5"))[0].endswith(TEXT)


def test_two_charsets_in_one_page() -> None:
    """An old Big5 page with a UTF-8 banner of its host."""
    raw = f"<p>{TEXT}</p>\n".encode("big5") * 3 + "<div>本站已搬家，請更新書籤</div>".encode()
    text, name = decode(raw, ["big5"])
    assert text == f"<p>{TEXT}</p>\n" * 3 + "<div>本站已搬家，請更新書籤</div>"
    assert name == "cp950+utf-8-sig"


@pytest.mark.parametrize("charset", ["utf-8", "big5", "gb18030", "utf-16-le"])
def test_cut_anywhere(charset: str) -> None:
    raw = (TEXT + "abc").encode(charset)
    for size in range(len(raw) - 30, len(raw)):
        text, _ = decode(raw[:size])
        assert (TEXT + "abc").startswith(text) and len(text) >= size // 3


def test_broken_bytes_cost_only_themselves() -> None:
    raw = (TEXT * 20).encode()
    text, name = decode(raw[:300] + b"\xff\xfe\x80" + raw[300:], ["utf-8"])
    assert name == "utf-8-sig" and text.replace("\ufffd", "") == TEXT * 20 and text.count("\ufffd") == 3


@pytest.mark.parametrize(
    "text",
    [
        "日本語のページです。これはテストのための文章で、漢字もあります。",
        "한국어 페이지입니다. 이것은 시험을 위한 문장이고 사람이 읽는다.",
    ],
)
def test_others_are_not_made_chinese(text: str) -> None:
    for charset in ("cp932", "euc_jp") if "の" in text else ("cp949",):
        assert decode(text.encode(charset))[0] == text


def test_latin() -> None:
    assert decode("Café crème à Genève, “très bien” – São Paulo".encode("cp1252"), ["iso-8859-1"])[0].startswith(
        "Café crème à"
    )
    assert decode(b"", ["big5"]) == ("", "utf-8-sig")


def test_plausibility() -> None:
    assert plausibility(TEXT) > 0.4 > 0.2 > plausibility(TEXT.encode().decode("cp950", "replace"))
