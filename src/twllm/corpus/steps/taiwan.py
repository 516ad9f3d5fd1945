"""taiwan: keep what is written as Taiwan writes, by the checker's verdict and leak rate (corpus/check.py).

A text too long to be looked at whole is judged by three pieces: beginning, middle, end. Not covered: cutting a mixed page
into paragraphs.
"""

from typing import TYPE_CHECKING

from twllm.corpus.check import check_text
from twllm.corpus.document import KEEP, Document, Drop, Keep
from twllm.corpus.steps import Rule, filter_step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

PIECE_CHARS = 20_000


def pieces(text: str) -> str:
    """The text, or three pieces of a long one."""
    if len(text) <= 3 * PIECE_CHARS:
        return text
    middle = len(text) // 2
    return "\n".join((text[:PIECE_CHARS], text[middle : middle + PIECE_CHARS], text[-PIECE_CHARS:]))


@filter_step("taiwan")
def taiwan(config: "CorpusConfig") -> Rule:
    """Settings: varieties, max_leak_rate."""

    def rule(document: Document) -> Keep | Drop:
        check = check_text(pieces(document.text))
        if check.verdict not in config.varieties:
            return Drop(f"variety_{check.verdict}", "；".join(check.reasons))
        if check.leak_rate > config.max_leak_rate:
            words = "、".join(span.text for span in (*check.simplified, *check.vocabulary)[:8])
            return Drop("leak_rate", f"{check.leak_rate:.4f} > {config.max_leak_rate}: {words}")
        return KEEP

    return rule
