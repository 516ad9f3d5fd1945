"""region: keep what is written as Taiwan writes; mixed pages lose their foreign paragraphs (corpus/classify.py).

The whole default pipeline of `twllm corpus classify`: language, script, region and the quality of Chinese pages, one pass.
The paragraphs cut out are told as a note, the score goes into the document's metadata.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.steps import Step, step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig


@step("region")
def region(config: "CorpusConfig") -> Step:
    """Settings: region.min_score, region.cut, region.languages, region.page_rules."""
    from twllm.corpus.classify import Limits, classify

    settings = config.region
    limits = Limits(settings.min_score, settings.languages, settings.page_rules)

    def run(documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        for document in documents:
            label = classify(document.text, document.url, limits)
            if not label.keep or (label.cut and not settings.cut):
                yield Dropped(document, "region", label.reason or "mixed_page", "；".join(label.reasons))
                continue
            if label.cut:
                kept = set(label.text.split("\n"))
                away = "\n".join(line for line in document.text.split("\n") if line not in kept)
                yield Noted(replace(document, text=away), "region", "cut_paragraphs", label.reasons[0])
            metadata = document.metadata | {"taiwan_score": round(label.score, 4), "lang": label.lang}
            yield replace(document, metadata=metadata).passed("region", label.text)

    return run
