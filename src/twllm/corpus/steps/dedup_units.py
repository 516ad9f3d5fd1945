"""dedup_paragraphs, dedup_lines: a long paragraph or line that stands in an earlier document of the corpus is cut out.

The first document (in the order of the sources) keeps it. For quotations and legal texts, whose repetition is no fault, leave the
steps out or name them in the source's skip_steps. How it works and its price: dedup_lines.py.
"""

from typing import TYPE_CHECKING, Any

from twllm.corpus.dedup_lines import CutStep, later_documents
from twllm.corpus.steps import Step, global_step, step
from twllm.corpus.steps.dedup import in_one_stream

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig


@global_step("dedup_paragraphs")
class DedupParagraphs(CutStep):
    """Settings: [corpus.dedup] min_paragraph."""

    name, reason, separator = "dedup_paragraphs", "repeated_paragraph", "\n\n"

    def __init__(self, config: "CorpusConfig") -> None:
        self.smallest = config.dedup.min_paragraph

    def goes(self, documents: Any, starts: Any, groups: Any) -> Any:
        return later_documents(documents, starts)


@global_step("dedup_lines")
class DedupLines(DedupParagraphs):
    """Settings: [corpus.dedup] min_line."""

    name, reason, separator = "dedup_lines", "repeated_line", "\n"

    def __init__(self, config: "CorpusConfig") -> None:
        self.smallest = config.dedup.min_line


@step("dedup_paragraphs")
def dedup_paragraphs(config: "CorpusConfig") -> Step:
    """The same over one stream."""
    return in_one_stream(DedupParagraphs(config))


@step("dedup_lines")
def dedup_lines(config: "CorpusConfig") -> Step:
    """The same over one stream."""
    return in_one_stream(DedupLines(config))
