"""script: drop texts in Simplified script, by their share of characters that are only ever Simplified.

A character counts if OpenCC (Apache-2.0, its dictionaries at run time) turns it into another one on the way to
Traditional (s2t), leaves it alone on the way to Simplified (t2s), and Taiwan's Big5 (cp950) does not have it. The Big5
test spares 台 里 后 余 云 干 准 采 游 and 118 more that Traditional texts are written with too: in 43 M Han of statutes and
transcripts they are 0.2 %, the rest 0.0005 %. 35 of the spared ones count all the same (`NOT_IN_TAIWAN`): Big5 lists them as
rare characters, 63 M characters of native text hold each at most 8 times, Simplified text hundreds of times. 吓 and 响
are spared for Cantonese. 3,781 characters are left: a third of the Han in Simplified text. Measured at the default limit of 2 % (tests/corpus/test_real_data.py): react-docs pages zh-hans
against zh-hant: precision 1.000, recall 1.000; UD GSDSimp against GSD, single sentences: 1.000 and 0.998.
Not covered: mainland wording in Traditional characters (「視頻」「軟件」), single Simplified sentences inside a long text,
Japanese (its new forms such as 国 会 学 count as Simplified: most Japanese goes, but not for the right reason).
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from twllm.corpus.document import KEEP, Document, Drop, Keep
from twllm.corpus.steps import Rule, filter_step
from twllm.corpus.steps.characters import HAN_RANGES, code_points

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

CANTONESE = "吓响"
NOT_IN_TAIWAN = "优党异确极怀挂万与适听圣洁儿触气坏网机惊构宁复厂种价离吨柜扰赶蚕忏据体"
OTHER, HAN, SIMPLIFIED = range(3)


def _in_big5(char: str) -> bool:
    try:
        char.encode("cp950")
    except UnicodeEncodeError:
        return False
    return True


@cache
def simplified_only() -> frozenset[str]:
    """Characters that a Traditional text does not have (see above). 0.3 s the first time."""
    import opencc

    han = [chr(code) for start, stop in HAN_RANGES for code in range(start, stop) if not 0xF900 <= code < 0xFB00]
    lines = "\n".join(han)
    to_traditional = opencc.OpenCC("s2t").convert(lines).split("\n")
    to_simplified = opencc.OpenCC("t2s").convert(lines).split("\n")
    triples = zip(han, to_traditional, to_simplified, strict=True)
    found = {char for char, other, simplified in triples if other != char == simplified and not _in_big5(char)}
    return frozenset(found.difference(CANTONESE).union(NOT_IN_TAIWAN))


@cache
def script_table() -> Any:
    """uint8 class of each code point: not Han, Han, Simplified only."""
    import numpy as np

    table = np.zeros(0x110000, np.uint8)
    for start, stop in HAN_RANGES:
        table[start:stop] = HAN
    table[[ord(char) for char in simplified_only()]] = SIMPLIFIED
    return table


def simplified_share(text: str) -> float:
    """Share of Simplified-only characters among the Han; 0 where there is no Han.

    >>> simplified_share("台灣这里")
    0.25
    """
    import numpy as np

    _, han, simplified = np.bincount(script_table().take(code_points(text)), minlength=3).tolist()
    return float(simplified / max(han + simplified, 1))


@filter_step("script")
def script(config: "CorpusConfig") -> Rule:
    """Setting: max_simplified_share."""

    def rule(document: Document) -> Keep | Drop:
        share = simplified_share(document.text)
        if share > config.max_simplified_share:
            return Drop("simplified", f"{share:.3f} > {config.max_simplified_share}")
        return KEEP

    return rule
