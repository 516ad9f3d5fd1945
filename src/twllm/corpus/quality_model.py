"""A small quality classifier trained on one's own good and bad examples: logistic regression on hashed character n-grams.

A text is its runs of one to three characters (digits as 0, Latin words in lower case), hashed to 2^18 weights; each feature
counts once a text (log of its count), so length says nothing. Training is AdaGrad over the shuffled examples in numpy, the
same weights from the same files and seed. The model is one .safetensors file of 1 MB (float32) with its settings: no pickle.
Price: about 4 MB/s a core to score, 1,000 examples of 1,000 characters train in 5 s. Source of the idea: fastText's
linear classifiers (arXiv 1607.01759). Not covered: word order beyond three characters, calibration on other mixes of good and bad.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twllm.artifact import write_bytes
from twllm.corpus.steps.characters import code_points
from twllm.errors import UserError

BITS = 18
HEAD_CHARS = 5000  # of a text; more says little
EPOCHS, RATE, DECAY = 6, 0.3, 1e-6  # chosen, not tuned
MIN_EXAMPLES = 4
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FORMAT = "twllm-quality-1"


def features(text: str) -> tuple[Any, Any]:
    """(numbers of the features, their values; the values' squares sum to 1)."""
    import numpy as np

    codes = code_points(text[:HEAD_CHARS].lower()).astype(np.uint64)
    codes[(codes >= 0x30) & (codes < 0x3A)] = 0x30
    found = []
    hashes = np.zeros(len(codes) + 1, np.uint64)
    with np.errstate(over="ignore"):
        for size in range(1, min(3, len(codes)) + 1):
            hashes = (hashes[:-1] + codes[size - 1 :] + np.uint64(size)) * np.uint64(0x9E3779B97F4A7C15)
            found.append(hashes >> np.uint64(64 - BITS))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0)
    numbers, times = np.unique(np.concatenate(found), return_counts=True)
    values = 1 + np.log(times)
    return numbers.astype(np.int64), values / math.sqrt(float(values @ values))


@dataclass(frozen=True)
class QualityModel:
    """The weights; `score` is the probability of a good text, 0 to 1."""

    weights: Any
    bias: float
    report: dict[str, Any]

    def score(self, text: str) -> float:
        """How good the text is by the examples."""
        numbers, values = features(text)
        return _logistic(float(self.weights[numbers] @ values) + self.bias)

    def save(self, path: Path) -> None:
        """Write the model as safetensors, whole or not at all."""
        import numpy as np
        from safetensors.numpy import save

        told = {
            "twllm": json.dumps({"format": FORMAT, "bits": BITS, "report": self.report})
        }  # one key: its order is not fixed
        tensors = {"weights": self.weights.astype(np.float32), "bias": np.array([self.bias], np.float32)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save(tensors, metadata=told))

    @classmethod
    def load(cls, path: Path) -> "QualityModel":
        """Read a model.

        Raises:
            UserError: the file is no quality model.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "numpy") as file:
                told = json.loads((file.metadata() or {}).get("twllm", "{}"))
                if told.get("format") != FORMAT or told.get("bits") != BITS:
                    raise ValueError("other format")
                weights, bias = file.get_tensor("weights"), float(file.get_tensor("bias")[0])
        except (SafetensorError, ValueError, OSError) as error:
            fix = "twllm corpus quality train --good … --bad … --out MODEL"
            raise UserError("這不是品質模型 (no quality model)", path, fix) from error
        return cls(weights, bias, told["report"])


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))


def read_texts(files: Sequence[Path]) -> Iterator[str]:
    """The texts of .jsonl and .parquet rows (key `text`), or a .txt file's paragraphs parted by blank lines."""
    from twllm.corpus.rows import jsonl_rows, parquet_rows

    for file in files:
        if ".jsonl" in file.suffixes or ".parquet" in file.suffixes:
            rows = jsonl_rows(file) if ".jsonl" in file.suffixes else parquet_rows(file)
            for place, row in rows:
                text = row.get("text") if isinstance(row, dict) else None
                if not isinstance(text, str):
                    raise UserError("這一列沒有 text (no text)", f"{file}:{place}", "修正或刪除這一列")
                yield text
        else:
            yield from (part for part in file.read_text(encoding="utf-8").split("\n\n") if part.strip())


def train_model(
    good: Iterator[str], bad: Iterator[str], out: Path, held_out: float = 0.2, seed: int = 1
) -> dict[str, Any]:
    """Train, measure on the examples held out, write the model; the measurements.

    Raises:
        UserError: too few examples.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    parts: list[list[tuple[Any, Any, float]]] = [[], []]
    for texts, label, name in ((good, 1.0, "--good"), (bad, 0.0, "--bad")):
        examples = [(*features(text), label) for text in dict.fromkeys(texts)]
        if len(examples) < MIN_EXAMPLES:
            told = f"{name}: {len(examples)} < {MIN_EXAMPLES}"
            raise UserError("範例太少 (too few examples)", told, "每邊至少幾百份，越多越準")
        order = random.permutation(len(examples))
        away = max(1, round(held_out * len(examples)))
        parts[1] += [examples[at] for at in order[:away]]
        parts[0] += [examples[at] for at in order[away:]]
    weights, bias = _fit(parts[0], random)
    model = QualityModel(weights, bias, {})
    scores = [_logistic(float(weights[numbers] @ values) + bias) for numbers, values, _ in parts[1]]
    report = {"train": len(parts[0]), "held_out": len(parts[1])} | measure(scores, [label for *_, label in parts[1]])
    QualityModel(model.weights, model.bias, report).save(out)
    return report


def _fit(examples: list[tuple[Any, Any, float]], random: Any) -> tuple[Any, float]:
    """AdaGrad; both sides weigh the same however many examples they have."""
    import numpy as np

    weights, squares, bias, bias_squares = np.zeros(1 << BITS), np.full(1 << BITS, 1e-6), 0.0, 1e-6
    positive = sum(label for *_, label in examples)
    balance = (0.5 * len(examples) / (len(examples) - positive), 0.5 * len(examples) / positive)
    for _ in range(EPOCHS):
        for at in random.permutation(len(examples)):
            numbers, values, label = examples[at]
            error = (_logistic(float(weights[numbers] @ values) + bias) - label) * balance[int(label)]
            slope = error * values + DECAY * weights[numbers]
            squares[numbers] += slope * slope
            weights[numbers] -= RATE * slope / np.sqrt(squares[numbers])
            bias_squares += error * error
            bias -= 0.1 * RATE * error / math.sqrt(bias_squares)
    return weights, bias


def measure(scores: Sequence[float], labels: Sequence[float]) -> dict[str, Any]:
    """AUC, and precision and recall of keeping what scores at least each threshold.

    >>> measure([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0])["auc"]
    1.0
    """
    good = [score for score, label in zip(scores, labels, strict=True) if label]
    bad = [score for score, label in zip(scores, labels, strict=True) if not label]
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    rows = []
    for threshold in THRESHOLDS:
        hits, false = sum(score >= threshold for score in good), sum(score >= threshold for score in bad)
        rows.append({"threshold": threshold, "precision": hits / max(hits + false, 1), "recall": hits / len(good)})
    return {"auc": wins / (len(good) * len(bad)), "thresholds": rows}
