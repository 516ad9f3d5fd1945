"""decontaminate: documents that hold an evaluation item are dropped, cut, or only reported.

What is looked for stands in files (`decontaminate_against`: `twllm eval texts` writes a suite's; `twllm:culture` is shipped);
what counts as found is corpus/overlap.py's. `decontaminate = "cut"` takes out the lines in which an item stands and keeps the rest;
the quality step behind it drops what is left too short. `"report"` changes no text. Whatever is cut or reported is noted in
the document's metadata (`evaluation_items`) and counted and sampled in the funnel like a drop.
Documents are looked at in batches; one longer than a batch is looked at whole, piece by piece. Measured: docs/decontamination.md.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from twllm.corpus.document import Document, Dropped, Noted
from twllm.corpus.overlap import FLAGGING, Limits, Match, OverlapIndex, batches, nfc
from twllm.corpus.passages import read_passages
from twllm.corpus.steps import Step, step

if TYPE_CHECKING:
    from twllm.corpus.config import CorpusConfig

NAME = "decontaminate"
SHOWN_ITEMS = 5
SHOWN_CHARS = 80


def limits_of(config: "CorpusConfig") -> Limits:
    """The step's settings."""
    return Limits(
        chars=config.decontaminate_chars,
        words=config.decontaminate_words,
        threshold=config.decontaminate_threshold,
        common=config.decontaminate_common,
    )


@step(NAME)
def decontaminate(config: "CorpusConfig") -> Step:
    """Settings: decontaminate, decontaminate_against, …_threshold, …_chars, …_words, …_common."""
    passages = (passage for path in config.decontaminate_against for passage in read_passages(path))
    index = OverlapIndex((p for p in passages if p.part in FLAGGING), limits_of(config))

    def run(documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        for batch in batches(documents):
            found: dict[int, list[Match]] = {}
            for match in index.find([document.text for document in batch]):
                found.setdefault(match.text, []).append(match)
            for number, document in enumerate(batch):
                if number not in found:
                    yield document.passed(NAME)
                else:
                    yield from ACTIONS[config.decontaminate](document, found[number])

    return run


def drop(document: Document, matches: list[Match]) -> Iterator[Document | Dropped]:
    """The document goes."""
    yield Dropped(document, NAME, f"evaluation_{_worst(matches).part}", told(document.text, matches))


def cut(document: Document, matches: list[Match]) -> Iterator[Document | Dropped]:
    """The lines an item stands in go; a document of nothing else goes whole."""
    text, kept, removed, end = nfc(document.text), list[str](), list[str](), 0
    for match in sorted(matches, key=lambda match: match.start):
        start = max(end, text.rfind("\n", 0, match.start) + 1)
        stop = text.find("\n", match.stop)
        stop = len(text) if stop < 0 else stop + 1
        if stop > start:
            kept.append(text[end:start])
            removed.append(text[start:stop])
            end = stop
    left = "".join((*kept, text[end:])).strip("\n")
    if not left.strip():
        yield from drop(document, matches)
        return
    away = replace(document, text="".join(removed))
    yield Noted(away, NAME, f"cut_evaluation_{_worst(matches).part}", told(text, matches))
    yield marked(replace(document, text=left), matches)


def report(document: Document, matches: list[Match]) -> Iterator[Document | Dropped]:
    """The document stays as it is, marked."""
    yield Noted(document, NAME, f"has_evaluation_{_worst(matches).part}", told(document.text, matches))
    yield marked(document, matches)


def marked(document: Document, matches: list[Match]) -> Document:
    """The document past this step, with the items it has (or had) in its metadata."""
    items = list(dict.fromkeys(item for match in matches for item in match.items))
    return replace(document, metadata=document.metadata | {"evaluation_items": items}).passed(NAME)


def told(text: str, matches: list[Match]) -> str:
    """Which items, how much of the worst one, and how it reads there."""
    worst = _worst(matches)
    items = list(dict.fromkeys(item for match in (worst, *matches) for item in match.items))
    more = f" +{len(items) - SHOWN_ITEMS}" if len(items) > SHOWN_ITEMS else ""
    excerpt = " ".join(nfc(text)[worst.start : worst.stop].split())[:SHOWN_CHARS]
    return f"{'、'.join(items[:SHOWN_ITEMS])}{more}: {worst.how} {worst.share:.2f}, run {worst.run}: {excerpt}"


def _worst(matches: list[Match]) -> Match:
    return max(matches, key=lambda match: (match.share, match.run))


ACTIONS = {"drop": drop, "cut": cut, "report": report}
