"""How near benchmark questions come to training text: the longest shared run of characters, and the most similar wording.

Compared in a normal form (NFKC, case folded, 臺→台, only letters and digits), so that punctuation hides nothing. Two measures: the
longest run of a question that stands anywhere in the training texts, and the highest Jaccard similarity of 3-character
sets against any single training wording. Shared proper nouns are expected; the whole question in a training text is a
leak. Not covered: paraphrase without shared characters, translations.

This is the detailed look at few questions and short texts; whole suites are compared with whole corpora by n-grams
(suite_overlap.py), and training corpora are cleaned by the corpus step `decontaminate`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from twllm import data
from twllm.corpus.similar import SimilarTexts
from twllm.corpus.similar import trigrams as trigrams  # and wording_key: this measure's words, for those who check it
from twllm.corpus.similar import wording_key as wording_key

TRAINING_DATA = ("taiwan_facts", "taiwan_instruction", "taiwan_feedback", "knowledge")  # shipped, and trained on


@dataclass(frozen=True)
class Nearest:
    """The training wording nearest to a question."""

    question: str
    contained: bool  # the whole question stands in a training text
    run_chars: int  # longest run of its characters found in the training texts
    run: str
    similarity: float  # highest Jaccard similarity of 3-character sets
    wording: str  # the training text that has it


def nearest_training_wording(questions: Sequence[str], training_texts: Sequence[str]) -> list[Nearest]:
    """One row a question, in order; `training_texts` are single wordings (questions, answers, paragraphs)."""
    joined = "\n".join(wording_key(text) for text in training_texts)
    index = SimilarTexts(training_texts)
    rows = []
    for question in questions:
        key = wording_key(question)
        run = longest_run(key, joined)
        similarity, at = index.most_similar(question)
        wording = training_texts[at] if at >= 0 else ""
        rows.append(Nearest(question, run == key, len(run), run, round(similarity, 4), wording))
    return rows


def longest_run(text: str, corpus: str) -> str:
    """The longest run of characters of `text` that stands in `corpus` (the first of several)."""
    best = ""
    for start in range(len(text)):
        while start + len(best) < len(text) and text[start : start + len(best) + 1] in corpus:
            best = text[start : start + len(best) + 1]
    return best


@cache
def shipped_training_texts() -> tuple[str, ...]:
    """Every wording, message and paragraph of the training data that ships with the package."""
    texts: list[str] = []
    for name in TRAINING_DATA:
        for file in sorted((data.ROOT / name).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                texts += [*row.get("questions", ()), *(message["content"] for message in row.get("messages", ()))]
                texts += [row[key] for key in ("answer", "text", "title") if key in row]
    return tuple(texts)


def contamination_summary(questions: Sequence[str], training_texts: Iterable[str] | None = None) -> dict[str, Any]:
    """What a report says: how many questions stand in the training texts, the worst runs and similarities.

    `training_texts` None: the shipped training data.
    """
    against = "twllm: " + "、".join(TRAINING_DATA) if training_texts is None else "given texts"
    texts = shipped_training_texts() if training_texts is None else tuple(training_texts)
    rows = nearest_training_wording(questions, texts)
    worst = sorted(rows, key=lambda row: (row.contained, row.similarity, row.run_chars), reverse=True)
    return {
        "against": against,
        "training_texts": len(texts),
        "contained": sum(row.contained for row in rows),
        "longest_run_chars": max((row.run_chars for row in rows), default=0),
        "highest_similarity": max((row.similarity for row in rows), default=0.0),
        "nearest": [asdict(row) for row in worst[:5]],
    }
