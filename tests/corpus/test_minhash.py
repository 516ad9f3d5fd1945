"""Signatures against exact Jaccard; sorted runs and clusters against the plain way of doing it."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.test_near_dedup import article
from twllm.corpus import dedup_runs
from twllm.corpus.dedup_runs import Runs, RunWriter, equal_keys
from twllm.corpus.folding import BOUNDARY
from twllm.corpus.lsh import components
from twllm.corpus.minhash import BINS, SHINGLE, band_keys, jaccard, signatures, similarities


@pytest.mark.parametrize("letters", [80, 300, 1500])
def test_signatures_estimate_jaccard_without_bias(letters: int) -> None:
    rng = random.Random(letters)
    signs = [
        chr(code) for code in range(0x4E00, 0x5A00)
    ]  # texts that share nothing: one template's errors would go together
    errors, missed, alike = [], 0, 0
    for _ in range(120):
        text = "".join(rng.choices(signs, k=letters))
        other = "".join(char for char in text if rng.random() > rng.choice((0.005, 0.02, 0.06)))
        exact, bins = jaccard(text, other), signatures([text, other]).bins
        errors.append(float(similarities(bins[:1], bins[1:])[0]) - exact)
        if exact >= 0.8:
            keys = band_keys(bins)
            alike, missed = alike + 1, missed + (not (keys[:, 0] == keys[:, 1]).any())
    assert abs(np.mean(errors)) < 0.012
    assert np.std(errors) < 0.05
    assert alike > 30 and missed <= 0.02 * alike


def test_a_signature_depends_on_the_text_alone() -> None:
    rng = random.Random(4)
    texts = [
        "短",
        "一二三四",
        "一二三四五",
        "",
        "甲乙丙丁戊己庚",
        f"{BOUNDARY}甲乙丙丁戊己庚",
        "，。！",
        article(rng, 900),
    ]
    texts += [article(rng, rng.randint(1, 9)) for _ in range(40)]
    together = signatures(texts)
    for number, text in enumerate(texts):
        alone = signatures([text])
        assert (alone.bins[0] == together.bins[number]).all(), number
        assert alone.letters[0] == together.letters[number]
    assert (together.bins[4] == together.bins[5]).all()
    assert together.letters[:7].tolist() == [1, 4, 5, 0, 7, 7, 0]


def test_width_punctuation_and_variants_hide_nothing() -> None:
    pair = signatures(["臺灣的ＡＢＣ電腦，很好用！", "台湾的abc電腦 很好用"]).bins
    assert (pair[0] == pair[1]).all()
    assert jaccard("", "") == 0.0 and jaccard("甲乙丙丁戊", "戊丁丙乙甲") == 0.0


def test_too_short_texts_have_no_shingle() -> None:
    found = signatures(["甲" * (SHINGLE - 1), "乙乙"])
    assert (found.bins[0] == found.bins[1]).all() and (found.letters < SHINGLE).all()


def test_equal_keys_over_many_runs_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup_runs, "RUN_ROWS", 100)
    monkeypatch.setattr(dedup_runs, "CHUNK_ROWS", 64)
    rng = np.random.RandomState(3)
    keys = (rng.randint(0, 300, (2, 1500)).astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    value = np.arange(1500, dtype=np.uint32) * 7
    edges = [0, 30, 30, 700, 1500]
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        (tmp_path / str(number)).mkdir()
        writer = RunWriter(tmp_path / str(number))
        for at in range(start, stop, 45):
            writer.add(keys[:, at : min(at + 45, stop)], value=value[at : min(at + 45, stop)])
        writer.close()
    runs = Runs(tuple(tmp_path / str(number) for number in range(4)))
    assert runs.rows == 1500 and len(runs.every) > 8
    wanted = rng.permutation(1500)[:400]
    assert (runs.take("value", wanted) == value[wanted]).all()
    for column in (0, 1):
        found = [
            tuple(numbers[a:b].tolist())
            for numbers, starts in equal_keys(runs, column)
            for a, b in itertools.pairwise(starts)
        ]
        expected = [tuple(np.flatnonzero(keys[column] == key).tolist()) for key in np.unique(keys[column])]
        assert found == [group for group in expected if len(group) > 1]


def test_components_are_those_of_the_graph() -> None:
    rng = random.Random(6)
    pairs = np.array([(rng.randrange(400), rng.randrange(400)) for _ in range(260)], np.int64)
    parent = list(range(400))

    def root(at: int) -> int:
        while parent[at] != at:
            at = parent[at]
        return at

    for left, right in pairs.tolist():
        low, high = sorted((root(left), root(right)))
        parent[high] = low
    label = components(400, [pairs[:100], pairs[100:]])
    assert label.tolist() == [root(at) for at in range(400)]
    assert components(0, []).tolist() == []
    assert BINS == 128
