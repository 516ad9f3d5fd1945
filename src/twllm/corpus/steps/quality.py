"""quality: texts too short, hardly Chinese, garbled, mostly symbols, repeating themselves, or without a single
sentence.

Each rule is one line of `judge` and one reason. Limits are [corpus] settings. The share of repeated lines follows
Gopher (arXiv 2112.11446, table A1: 30 % duplicate lines), here weighted by characters so that short legal lines such
as 「（刪除）」 do not count for much. A sentence end is 。！？ … or a Western full stop anywhere: the C4 rule "ends
in a period" would drop a page for its last line. Measured on real prose: see tests/corpus/test_real_data.py. Not
covered: verse without punctuation (turn `need_sentence_end` off for it), boilerplate that differs from page to page,
a language model's perplexity.
"""

import re
from typing import TYPE_CHECKING

from twllm.corpus.document import KEEP, Document, Drop, Keep
from twllm.corpus.region import page_fault
from twllm.corpus.steps import Rule, filter_step
from twllm.corpus.steps.characters import count_kinds

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

SENTENCE_END = re.compile(r"[。！？!?…｡]|\.(?=\s|$)")


def repeated_share(text: str) -> float:
    """Share of the characters that stand in lines seen before in the same text (blank lines do not count)."""
    lines = [line for line in text.split("\n") if line]
    once = set(lines)
    if len(once) == len(lines):
        return 0.0
    return 1 - sum(map(len, once)) / sum(map(len, lines))


def judge(text: str, config: "CorpusConfig", url: str = "") -> Keep | Drop:
    """The first rule that the text breaks, or Keep."""
    count = count_kinds(text)
    if (size := count.visible) < config.min_chars:
        return Drop("too_short", f"{size} < {config.min_chars} chars")
    if (share := count.garbled / size) > config.max_garbled_share:
        return Drop("garbled", f"{share:.3f} > {config.max_garbled_share}")
    if (share := count.symbol / size) > config.max_symbol_share:
        return Drop("symbols", f"{share:.3f} > {config.max_symbol_share}")
    if (share := (count.han + count.bopomofo) / size) < config.min_han_share:
        return Drop("few_han", f"{share:.3f} < {config.min_han_share}")
    if (share := repeated_share(text)) > config.max_repeated_share:
        return Drop("repeated_lines", f"{share:.3f} > {config.max_repeated_share}")
    if config.need_sentence_end and not SENTENCE_END.search(text):
        return Drop("no_sentence_end")
    if config.region.page_rules and (fault := page_fault(text, url)):
        return Drop(*fault)
    return KEEP


@filter_step("quality")
def quality(config: "CorpusConfig") -> Rule:
    """Settings: region.page_rules, min_chars, min_han_share, max_{symbol,garbled,repeated}_share, need_sentence_end."""

    def rule(document: Document) -> Keep | Drop:
        return judge(document.text, config, document.url)

    return rule
