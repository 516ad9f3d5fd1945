"""One class for each code point, so that script, language, punctuation and garble of a text are one table lookup a character.

`count(text)` gives how many characters of each class there are: numpy, about 150 M characters/s a core and 15 µs a text.
The classes are told apart as far as a decision needs it: 爲 is not 為, 這 is modern and Traditional, “ is not 「.
"""

import tomllib
import unicodedata
from enum import IntEnum
from functools import cache
from typing import Any

from twllm.corpus.steps import characters
from twllm.corpus.steps.characters import HAN_RANGES, code_points, kind_table


class Code(IntEnum):
    """Classes of characters."""

    SYMBOL = 0
    SPACE = 1
    NEWLINE = 2
    GARBLED = 3
    PUNCTUATION = 4
    STOP = 5  # 。！？…
    CORNER = 6  # 「『
    CURLY = 7  # “‘
    DIGIT = 8
    LATIN = 9
    VIETNAMESE = 10
    TONED = 11  # Latin letters of Pe̍h-ōe-jī and Tâi-lô, pinyin
    KANA = 12
    HANGUL = 13
    CYRILLIC = 14
    THAI = 15
    ARABIC = 16
    OTHER = 17
    BOPOMOFO = 18
    HAN = 19  # from here on Han
    SIMPLIFIED = 20
    TRADITIONAL = 21
    OPENCC = 22  # 爲 衆 羣: forms of OpenCC's standard
    HONGKONG = 23  # 衞 説 綫
    EITHER = 24  # 裏 着
    YUE = 25
    NAN = 26
    HAK = 27
    CLASSICAL = 28
    LITERARY = 29
    MODERN = 30
    MODERN_TRADITIONAL = 31
    JAPANESE = 32  # 込 働 峠: made or simplified in Japan
    DE = 33  # 的
    COMMA = 34  # half-width , ; : next to Han is told by quality
    BAR = 35  # | > » ·


EITHER_FORMS = "裏着牀"
IN_NAMES = "峯栢堃喆"  # forms that names of Taiwan have
HONGKONG_FORMS = "衞説綫汚裇癐敎滙鉢"
JAPANESE_FORMS = (
    "込働峠畑辻枠栃榊匂渋斉歳帰関対応変図売読続経済発実様気楽戦産発単悪圧囲営験権検拠挙仮価県広拡徳毎黒歩緑姫脳巻"
)
SIZE = 0x110000


@cache
def code_table() -> Any:
    """uint8 class of each code point."""
    import numpy as np

    from twllm.corpus.check import _classes
    from twllm.corpus.wording import WORDS, foreign_variants

    kinds, table = kind_table(), np.zeros(SIZE, np.uint8)
    for kind, code in (
        (characters.SPACE, Code.SPACE), (characters.GARBLED, Code.GARBLED), (characters.PUNCTUATION, Code.PUNCTUATION),
        (characters.LETTER, Code.OTHER), (characters.BOPOMOFO, Code.BOPOMOFO),
    ):  # fmt: skip
        table[kinds == kind] = code
    for start, stop in HAN_RANGES:
        table[start:stop] = Code.HAN
    for start, stop, code in _RANGES:
        table[start:stop] = code
    for number in range(0xC0, 0x1F00):
        if unicodedata.name(chr(number), "").startswith("LATIN"):
            table[number] = Code.LATIN
    scripts = _classes()
    table[scripts == 2], table[scripts == 3] = Code.SIMPLIFIED, Code.TRADITIONAL
    table[[ord(char) for char in foreign_variants() if len(char) == 1]] = Code.OPENCC
    varieties = tomllib.loads((WORDS / "varieties.toml").read_text(encoding="utf-8"))
    classical = varieties["lzh"]
    for chars, code in (
        (HONGKONG_FORMS, Code.HONGKONG), (EITHER_FORMS, Code.EITHER), (IN_NAMES, Code.HAN), (varieties["yue"]["characters"], Code.YUE),
        (varieties["nan"]["characters"], Code.NAN), (varieties["hak"]["characters"], Code.HAK),
        (classical["strong"], Code.CLASSICAL), (classical["weak"], Code.LITERARY), (classical["modern"], Code.MODERN),
        (classical["modern_traditional"], Code.MODERN_TRADITIONAL), ("的", Code.DE), ("。！？…｡", Code.STOP),
        ("「『", Code.CORNER), ("“‘", Code.CURLY), (",;:", Code.COMMA), ("\n", Code.NEWLINE), ("|»›", Code.BAR),
        ("ăđơưĂĐƠƯạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ", Code.VIETNAMESE),
        ("āáàǎēéèěīíìǐōóòǒūúùǔńḿⁿ̍͘", Code.TONED),
    ):  # fmt: skip
        table[[ord(char) for char in chars]] = code
    return table


_RANGES = (
    (0x30, 0x3A, Code.DIGIT), (0xFF10, 0xFF1A, Code.DIGIT), (0x41, 0x5B, Code.LATIN), (0x61, 0x7B, Code.LATIN),
    (0xFF21, 0xFF3B, Code.LATIN), (0xFF41, 0xFF5B, Code.LATIN), (0x300, 0x370, Code.TONED), (0x370, 0x400, Code.OTHER),
    (0x400, 0x530, Code.CYRILLIC), (0xE00, 0xE80, Code.THAI), (0x600, 0x700, Code.ARABIC), (0x3041, 0x3097, Code.KANA),
    (0x30A1, 0x30FB, Code.KANA), (0xFF66, 0xFF9E, Code.KANA), (0xAC00, 0xD7A4, Code.HANGUL), (0x1100, 0x1200, Code.HANGUL),
    (0x3005, 0x3008, Code.HAN),
)  # fmt: skip


class Counts:
    """How many characters of each class a text has, and the sums that decisions ask for."""

    __slots__ = ("by", "han", "letters", "size", "visible")

    def __init__(self, by: list[int]) -> None:
        self.by = by
        self.size = sum(by)
        self.visible = self.size - by[Code.SPACE] - by[Code.NEWLINE]
        self.han = sum(by[Code.HAN : Code.DE + 1])
        self.letters = sum(by[Code.LATIN : Code.DE + 1])

    def __getitem__(self, code: Code) -> int:
        return self.by[code]

    @property
    def simplified(self) -> int:
        """Characters that only Simplified script has (Japan's new forms among them)."""
        return self.by[Code.SIMPLIFIED] + self.by[Code.JAPANESE]

    @property
    def traditional(self) -> int:
        """Characters that only Traditional script has."""
        by = self.by
        return by[Code.TRADITIONAL] + by[Code.OPENCC] + by[Code.HONGKONG] + by[Code.MODERN_TRADITIONAL]


def count(text: str) -> Counts:
    """The classes of a text's characters."""
    import numpy as np

    return Counts(np.bincount(code_table().take(code_points(text)), minlength=len(Code)).tolist())


def class_of(char: str) -> int:
    """The class of one character."""
    return int(code_table()[ord(char)])
