"""The filters against reality (../shared/data): what they drop of Taiwan's prose, and how well script tells the scripts apart."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from twllm.corpus.build import build_corpus
from twllm.corpus.config import CorpusConfig, CorpusSource
from twllm.corpus.steps.characters import count_kinds
from twllm.corpus.steps.script import simplified_share

pytestmark = pytest.mark.shared_data
LIMIT = CorpusConfig().max_simplified_share


def pages(folder: Path) -> Iterator[str]:
    """react-docs pages with at least twenty Han characters (the others are redirects and English tables)."""
    for path in sorted((folder / "content").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if count_kinds(text).han >= 20:
            yield text


def sentences(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.conllu")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("# text = "):
                yield line.removeprefix("# text = ")


def precision_recall(simplified: list[str], traditional: list[str]) -> tuple[float, float]:
    hits = sum(simplified_share(text) > LIMIT for text in simplified)
    false = sum(simplified_share(text) > LIMIT for text in traditional)
    return hits / max(hits + false, 1), hits / len(simplified)


def test_script_tells_pages_apart(shared_data: Path) -> None:
    docs = shared_data / "filter" / "react-docs"
    precision, recall = precision_recall(list(pages(docs / "zh-hans")), list(pages(docs / "zh-hant")))
    assert (precision, recall) == (1.0, 1.0)


def test_script_tells_sentences_apart(shared_data: Path) -> None:
    ud = shared_data / "filter" / "ud"
    precision, recall = precision_recall(
        list(sentences(ud / "UD_Chinese-GSDSimp")), list(sentences(ud / "UD_Chinese-GSD"))
    )
    assert precision == 1.0
    assert recall >= 0.995  # of 1,000 sentences, two have no Simplified-only character at all


def test_script_keeps_cantonese(shared_data: Path) -> None:
    shares = [simplified_share(text) for text in sentences(shared_data / "filter" / "ud" / "UD_Cantonese-HK")]
    assert max(shares) == 0


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("moj-law", {"symbols": 0.05, "no_sentence_end": 0.01, "near_duplicate": 0.12}),
        ("audreyt-transcript", {"repeated_lines": 0.02, "no_sentence_end": 0.01, "too_short": 0.01}),
        ("cons-judicial", {"duplicate": 0.01, "near_duplicate": 0.5}),  # orders that differ by a number and a name
        ("rust-book-tw", {"few_han": 0.05, "bullet_lines": 0.02, "language_pt": 0.02}),  # a page each
        ("taiwan-md", {"few_han": 0.01, "garbled": 0.01}),
    ],
)
def test_what_is_dropped_of_real_prose(shared_data: Path, tmp_path: Path, name: str, most: dict[str, float]) -> None:
    path = shared_data / "prose" / f"{name}.jsonl.gz"
    counts = build_corpus(CorpusConfig(sources=(CorpusSource(path=str(path), license="-", limit=1500),)), tmp_path)
    read = counts["sources"][name]["read_documents"]
    shares = {reason: count / read for reason, count in counts["dropped"].items()}
    assert "simplified" not in shares
    for reason, share in shares.items():
        assert share <= most.get(reason, 0.002), (reason, json.dumps(shares))
