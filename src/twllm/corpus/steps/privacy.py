"""privacy: personal data becomes a typed placeholder such as 〔手機號碼〕 (corpus/privacy.py). No document is dropped.

Each place is a note of its kind (`pii_mobile` …) in the funnel, so the numbers of documents there are numbers of places. The samples
show the sentence with everything masked and, as detail, the shape of what went (`09##-###-###`), never the number itself.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.steps import Step, step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

AROUND = 60  # characters of a sample on each side


@step("privacy")
def privacy(config: "CorpusConfig") -> Step:
    """Settings: [corpus.privacy] keep, keep_offices."""
    from twllm.corpus.privacy import KINDS, passes, placed, shape

    keep, offices = frozenset(KINDS[kind] for kind in config.privacy.keep), config.privacy.keep_offices
    names = {placeholder: f"pii_{name}" for name, placeholder in KINDS.items()}

    def run(documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        for document in documents:
            text = document.text
            for found, after in passes(text, keep, offices):
                for (kind, start, end), at in zip(found, placed(found), strict=True):
                    shown = replace(document, text=after[max(0, at - AROUND) : at + len(kind) + 2 + AROUND])
                    yield Noted(shown, "privacy", names[kind], shape(text[start:end]))
                text = after
            yield document.passed("privacy", text)

    return run
