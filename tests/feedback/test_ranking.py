"""Bradley–Terry: the true order, intervals that cover, scikit-learn's logistic regression, one-sided results."""

import numpy as np
import pytest

from twllm.feedback.ranking import PRIOR, SCALE, bootstrap, fit, points, rank, win_counts

TRUE = np.array([-0.9, -0.5, 0.0, 0.4, 1.0])


def simulate(seed: int, battles: int, ties: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs and outcomes of models with strengths TRUE."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(TRUE), battles)
    second = (first + rng.integers(1, len(TRUE), battles)) % len(TRUE)
    won = rng.random(battles) < 1 / (1 + np.exp(TRUE[second] - TRUE[first]))
    outcome = np.where(rng.random(battles) < ties, 0.5, won.astype(float))
    return np.column_stack([first, second]), outcome


def test_intervals_cover_the_truth_in_95_percent_and_the_order_is_found() -> None:
    covered, ordered, runs = 0, 0, 60
    for seed in range(runs):
        pairs, outcome = simulate(seed, 1200)
        low, high = np.percentile(bootstrap(pairs, outcome, 5, rounds=200, seed=seed), [2.5, 97.5], axis=0)
        covered += int(((low <= points(TRUE)) & (points(TRUE) <= high)).sum())
        ordered += bool((np.argsort(fit(win_counts(pairs, outcome, 5))) == np.arange(5)).all())
    assert 0.92 <= covered / (5 * runs) <= 0.98
    assert ordered >= runs - 1


def test_equals_scikit_learns_logistic_regression() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    pairs, outcome = simulate(1, 800, ties=0.3)
    rows = np.zeros((len(pairs), 5))
    rows[np.arange(len(pairs)), pairs[:, 0]], rows[np.arange(len(pairs)), pairs[:, 1]] = 1, -1
    both = np.concatenate([rows, rows])  # a tie is half a win and half a loss
    wins = np.concatenate([np.ones(len(pairs)), np.zeros(len(pairs))])
    weight = np.concatenate([outcome, 1 - outcome])
    model = linear.LogisticRegression(C=1 / PRIOR, fit_intercept=False, tol=1e-10, max_iter=1000)
    model.fit(both[weight > 0], wins[weight > 0], sample_weight=weight[weight > 0])
    np.testing.assert_allclose(fit(win_counts(pairs, outcome, 5)), model.coef_[0], atol=1e-6)


def test_one_sided_results_stay_finite_and_in_order() -> None:
    ranked = rank(
        [("強", "弱", "a")] * 40 + [("中", "弱", "a")] * 40 + [("弱", "強", "b")] * 5 + [("強", "中", "a")] * 40
    )
    assert [one.name for one in ranked] == ["強", "中", "弱"]
    assert all(np.isfinite([one.rating, one.low, one.high]).all() for one in ranked)
    assert (ranked[0].battles, ranked[0].wins, ranked[0].losses, ranked[0].ties) == (85, 85, 0, 0)
    assert np.mean([one.rating for one in ranked]) == pytest.approx(1000)


def test_ties_and_both_bad_are_half_wins_and_400_points_are_odds_of_ten() -> None:
    even = rank([("a", "b", vote) for vote in ("tie", "bad", "a", "b")] * 20)
    assert [one.rating for one in even] == pytest.approx([1000, 1000], abs=1e-6)
    assert (even[0].ties, even[0].battles) == (40, 80)
    odds = rank([("x", "y", "a")] * 10_000 + [("x", "y", "b")] * 1_000)
    assert odds[0].rating - odds[1].rating == pytest.approx(400, abs=1)
    assert SCALE * np.log(10) == pytest.approx(400)


def test_nobody_and_one_vote() -> None:
    assert rank([]) == []
    first, second = rank([("p", "q", "b")])
    assert first.name == "q" and first.low <= first.rating <= first.high and second.losses == 1
    assert rank([("p", "q", "b")]) == rank([("p", "q", "b")])  # the same every time
