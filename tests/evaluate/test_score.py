"""Intervals and averages: known values, coverage by simulation, which interval it is."""

import numpy as np
import pytest

from twllm.evaluate.score import averages, sample_interval, wilson
from twllm.evaluate.task import Item, tasks


def items(topics: str) -> list[Item]:
    return [Item(id=str(i), task="t", question="", prompt="", references=("A",), topic=t) for i, t in enumerate(topics)]


def test_wilson_known_values() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for correct, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_covers_as_often_as_it_says() -> None:
    """200 samples of 60 marks with mean 1/3: about 95 % of the intervals hold it."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = sample_interval(random.beta(1, 2, 60).tolist())
        hits += low <= 1 / 3 <= high
    assert 180 <= hits <= 199
    assert sample_interval([0.5] * 4) == (0.5, 0.5)
    assert sample_interval([0.1, 0.9, 0.4]) == sample_interval([0.1, 0.9, 0.4])


def test_macro_and_micro_are_both_told() -> None:
    """Topic a 1 of 4, topic b 1 of 1."""
    marks = [1.0, 0.0, 0.0, 0.0, 1.0]
    found = averages(tasks()["tmmluplus"], items("aaaab"), marks)
    assert (found["micro"]["score"], found["macro"]["score"]) == (0.4, 0.625)
    assert found["score"] == 0.4
    assert found["interval"] == pytest.approx(wilson(2, 5), abs=1e-6)
    assert "Wilson" in found["interval_by"]
    by_topic = averages(tasks()["tmmlu"], items("aaaab"), marks)
    assert by_topic["score"] == 0.625
    assert "Agresti" in by_topic["interval_by"]
    assert "macro" not in averages(tasks()["tmmlu"], items("aaa"), marks[:3])


def test_marks_between_are_bootstrapped() -> None:
    found = averages(tasks()["ttqa"], items("aaa"), [0.2, 0.4, 0.6])
    assert found["score"] == pytest.approx(0.4)
    assert "bootstrap" in found["interval_by"]
    assert found["interval"][0] < 0.4 < found["interval"][1]
