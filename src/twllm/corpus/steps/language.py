"""language: keep documents in the languages asked for (corpus/language.py), told by characters and words."""

from typing import TYPE_CHECKING

from twllm.corpus.document import KEEP, Document, Drop, Keep
from twllm.corpus.steps import Rule, filter_step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig


@filter_step("language")
def language(config: "CorpusConfig") -> Rule:
    """Setting: region.languages."""
    from twllm.corpus.region import look

    def rule(document: Document) -> Keep | Drop:
        found = look(document.text, document.url).language
        return KEEP if found.lang in config.region.languages else Drop(f"language_{found.lang}", found.reason)

    return rule
