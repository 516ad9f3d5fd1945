"""The sampler against hand-computed cases and transformers' own processors."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from twllm.serve.engines.decoding.sampler import Drawer, keep, raw_logprobs
from twllm.serve.engines.interface import Sampling


def array(values: Any) -> Any:
    return np.array(values, np.float32)


def draw(logits: list[float], sampling: Sampling, seen: tuple[int, ...] = (), times: int = 400) -> set[int]:
    random = np.random.default_rng(0).integers(1 << 30, size=times)
    return {Drawer(Sampling(**{**vars(sampling), "seed": int(seed)}), seen).draw(array(logits)).id for seed in random}


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    assert draw([1.0, 3.0, 3.0], Sampling()) == {1}


def test_top_k_and_top_p_cut() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05]).tolist()
    assert draw(logits, Sampling(temperature=1.0)) == {0, 1, 2, 3}
    assert draw(logits, Sampling(temperature=1.0, top_k=2)) == {0, 1}
    assert draw(logits, Sampling(temperature=1.0, top_p=0.79)) == {0, 1}
    assert draw(logits, Sampling(temperature=1.0, top_p=0.81)) == {0, 1, 2}
    assert draw(logits, Sampling(temperature=1.0, top_p=1e-9)) == {0}
    assert draw(logits, Sampling(temperature=1.0, min_p=0.29)) == {0, 1, 2}
    assert draw(logits, Sampling(temperature=1.0, min_p=0.31)) == {0, 1}
    assert draw(logits, Sampling(temperature=1e-6)) == {0}


def test_typical_drops_what_says_too_little() -> None:
    """Entropy of (0.6, 0.1 four times) is 1.23: 2.30 is 1.07 away, 0.51 only 0.72."""
    logits = np.log([0.6, 0.1, 0.1, 0.1, 0.1]).tolist()
    assert draw(logits, Sampling(temperature=1.0, typical_p=0.5)) == {0}
    flat = np.log([0.3, 0.14, 0.14, 0.14, 0.14, 0.14]).tolist()  # entropy 1.74; 1.97 is nearer than 1.20
    assert draw(flat, Sampling(temperature=1.0, typical_p=0.6)) == {1, 2, 3, 4, 5}


def test_repetition_penalty_moves_both_signs_down() -> None:
    assert draw([2.0, 1.9, -5.0], Sampling(repetition_penalty=1.2), seen=(0,)) == {1}
    assert draw([-1.0, -1.1], Sampling(repetition_penalty=1.2), seen=(0,)) == {1}
    assert draw([2.0, 1.9], Sampling(repetition_penalty=1.2), seen=(99,)) == {0}  # an id beyond the logits


def test_bias_and_penalties_of_what_was_said() -> None:
    assert draw([2.0, 1.0, 0.0], Sampling(logit_bias=((2, 5.0), (99, 1.0)))) == {2}
    assert draw([2.0, 1.0], Sampling(logit_bias=((0, -100.0),))) == {1}
    drawer = Drawer(Sampling(frequency_penalty=0.4), (0, 0, 0))  # the prompt does not count
    assert [drawer.draw(array([2.0, 1.0])).id for _ in range(5)] == [0, 0, 0, 1, 0]  # after three 2.0 - 1.2 < 1.0
    drawer = Drawer(Sampling(presence_penalty=0.6), ())
    assert [drawer.draw(array([1.5, 1.0])).id for _ in range(4)] == [0, 1, 0, 0]
    drawer = Drawer(Sampling(repetition_penalty=3.0), ())
    assert [drawer.draw(array([2.0, 1.0])).id for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"top_k": 20, "top_p": 0.8}, [TopKLogitsWarper(20), TopPLogitsWarper(0.8)]),
        ({"typical_p": 0.5}, [TypicalLogitsWarper(0.5)]),
        ({"top_k": 30, "typical_p": 0.9}, [TopKLogitsWarper(30), TypicalLogitsWarper(0.9)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        (
            {"top_k": 100, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.05},
            [TopKLogitsWarper(100), TypicalLogitsWarper(0.95), TopPLogitsWarper(0.9), MinPLogitsWarper(0.05)],
        ),
        ({}, []),
    ],
)
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_distribution_is_that_of_transformers(settings: dict[str, Any], warpers: list[Any], spread: float) -> None:
    logits = spread * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([[3, 4, 4, 7]])
    expected = TemperatureLogitsWarper(0.7)(seen, RepetitionPenaltyLogitsProcessor(1.3)(seen, logits))
    for warper in warpers:
        expected = warper(seen, expected)
    drawer = Drawer(Sampling(repetition_penalty=1.3), seen[0].tolist())
    kept, weights = keep(drawer._change(logits[0].numpy()), Sampling(temperature=0.7, **settings))
    ours = np.zeros(5000)
    ours[kept if kept is not None else slice(None)] = weights / weights.sum()
    np.testing.assert_allclose(ours, expected.softmax(-1)[0].numpy(), atol=1e-6)


def test_frequencies_are_the_probabilities() -> None:
    """20,000 draws: every frequency within five standard deviations of its probability."""
    logits = array(np.log([0.5, 0.25, 0.15, 0.1]))
    drawer = Drawer(Sampling(temperature=1.0, seed=1), ())
    counts = np.bincount([drawer.draw(logits).id for _ in range(20_000)], minlength=4) / 20_000
    p = np.array([0.5, 0.25, 0.15, 0.1])
    assert (np.abs(counts - p) < 5 * np.sqrt(p * (1 - p) / 20_000)).all()


def test_the_seed_decides() -> None:
    logits = array(np.random.default_rng(0).normal(size=1000))

    def ids(seed: int) -> list[int]:
        drawer = Drawer(Sampling(temperature=1.0, top_p=0.9, seed=seed), ())
        return [drawer.draw(logits).id for _ in range(20)]

    assert ids(1) == ids(1) != ids(2)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = array(np.random.default_rng(0).normal(size=1000))
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    drawn = Drawer(Sampling(temperature=2.0, seed=3, logprobs=4, logit_bias=((5, 50.0),)), ()).draw(logits)
    assert drawn.id == 5
    assert drawn.logprob == pytest.approx(float(expected[5]), abs=1e-5)
    best = expected.topk(4)
    assert [id for id, _ in drawn.top] == best.indices.tolist()
    assert [value for _, value in drawn.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert raw_logprobs(logits, 5, 0)[1] == ()
    assert Drawer(Sampling(), ()).draw(logits).logprob is None


def test_broken_logits_are_an_error() -> None:
    for broken in ([1.0, float("nan")], [1.0, float("inf")], [-float("inf")] * 2):
        with pytest.raises(FloatingPointError):
            Drawer(Sampling(temperature=1.0), ()).draw(array(broken))


def test_a_large_vocabulary_takes_a_few_milliseconds() -> None:
    """128k ids: less time than five full sorts, which is what the best of five runs of a sorting sampler would need alone."""
    logits = array(2.5 * np.random.default_rng(0).normal(size=128_000))
    settings = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "logprobs": 5}
    drawer = Drawer(Sampling(seed=1, **settings), ())  # type: ignore[arg-type]
    times = {"ours": [], "sort": []}
    for _ in range(7):
        start = time.thread_time()
        drawer.draw(logits)
        middle = time.thread_time()
        np.argsort(-logits)
        times["ours"].append(middle - start)
        times["sort"].append(time.thread_time() - middle)
    assert min(times["ours"]) < min(times["sort"])
