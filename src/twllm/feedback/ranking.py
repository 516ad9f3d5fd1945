"""Bradley–Terry ratings from votes (Chatbot Arena, arXiv 2403.04132): maximum likelihood, bootstrap intervals.

P(i beats j) = σ(θi − θj); a tie, and "both bad", is half a win for each. The likelihood is that of logistic regression
without intercept, with an L2 term that keeps one-sided results finite (PRIOR: the strength of θ² / 2, chosen small:
against 50 battles a model it moves nobody by more than a few points). Shown is 1000 + 400 / ln 10 × (θ − mean θ): 400
points are odds of ten to one, as in Elo. Intervals: votes are drawn again with replacement, all rounds are solved at once.
Not covered: style control, the order of votes in time (a rating is of a model that does not change), who voted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALE = 400 / np.log(10)
MEAN = 1000.0
PRIOR = 0.1
ROUNDS = 1000
METHOD = "Bradley–Terry（最大概似，平手算半勝）；95 % 區間：bootstrap 1,000 次"
Floats = NDArray[np.float64]
# M models, R rounds


@dataclass(frozen=True)
class Rated:
    """One model's place."""

    name: str
    rating: float
    low: float
    high: float
    battles: int
    wins: int
    losses: int
    ties: int


def fit(wins: Floats, prior: float = PRIOR, steps: int = 100) -> Floats:
    """θ of the models, (…, M), from win counts (…, M, M): [i, j] is how often i beat j, a tie 0.5 in each direction.

    Newton's method with halved steps where a full one does not climb; solved for all leading dimensions at once.
    """
    M = wins.shape[-1]
    total = wins + np.swapaxes(wins, -1, -2)
    theta = np.zeros(wins.shape[:-1])
    value = _objective(theta, wins, prior)
    for _ in range(steps):
        p = 1 / (1 + np.exp(theta[..., None, :] - theta[..., :, None]))  # [i, j]: i beats j
        gradient = (wins - total * p).sum(-1) - prior * theta
        if np.abs(gradient).max() < 1e-9 * max(1.0, total.max()):
            break
        curvature = total * p * (1 - p)
        hessian = -curvature + np.eye(M) * (curvature.sum(-1) + prior)[..., None, :]
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        size = np.ones(theta.shape[:-1])
        for _ in range(30):
            new = _objective(theta + size[..., None] * step, wins, prior)
            worse = new < value - 1e-12 * np.abs(value)
            if not worse.any():
                break
            size = np.where(worse, size / 2, size)
        theta = theta + size[..., None] * step
        value = _objective(theta, wins, prior)
    return theta


def _objective(theta: Floats, wins: Floats, prior: float) -> Floats:
    difference = theta[..., :, None] - theta[..., None, :]
    value: Floats = -(wins * np.logaddexp(0, -difference)).sum((-1, -2)) - prior / 2 * (theta**2).sum(-1)
    return value


def points(theta: Floats) -> Floats:
    """θ as ratings with mean 1000."""
    rating: Floats = MEAN + SCALE * (theta - theta.mean(-1, keepdims=True))
    return rating


def win_counts(pairs: NDArray[np.int64], outcome: Floats, num_models: int) -> Floats:
    """(M, M) win counts of battles (n, 2) with outcomes 1 (first won), 0 (second won), 0.5 (tie)."""
    wins = np.zeros((num_models, num_models))
    np.add.at(wins, (pairs[:, 0], pairs[:, 1]), outcome)
    np.add.at(wins, (pairs[:, 1], pairs[:, 0]), 1 - outcome)
    return wins


def bootstrap(
    pairs: NDArray[np.int64], outcome: Floats, num_models: int, rounds: int = ROUNDS, seed: int = 0
) -> Floats:
    """(R, M) ratings of battles drawn again with replacement."""
    cells, times = np.unique(
        np.column_stack([pairs, np.rint(2 * outcome).astype(np.int64)]), axis=0, return_counts=True
    )
    drawn = np.random.default_rng(seed).multinomial(times.sum(), times / times.sum(), size=rounds).astype(float)
    one = np.stack([win_counts(cell[None, :2], np.array([cell[2] / 2]), num_models) for cell in cells])  # (cells, M, M)
    wins = np.tensordot(drawn, one, axes=1)  # (R, M, M)
    return points(fit(wins))


def rank(outcomes: Sequence[tuple[Any, Any, str]], rounds: int = ROUNDS) -> list[Rated]:
    """Models, best first, from (side a, side b, vote); vote is a, b, tie or bad. Names are `str` of the sides."""
    names = sorted({str(side) for a, b, _ in outcomes for side in (a, b)})
    if not outcomes:
        return []
    place = {name: i for i, name in enumerate(names)}
    pairs = np.array([[place[str(a)], place[str(b)]] for a, b, _ in outcomes])
    outcome = np.array([{"a": 1.0, "b": 0.0}.get(vote, 0.5) for _, _, vote in outcomes])
    rating = points(fit(win_counts(pairs, outcome, len(names))))
    low, high = np.percentile(bootstrap(pairs, outcome, len(names), rounds), [2.5, 97.5], axis=0)
    found = []
    for i, name in enumerate(names):
        first, second = pairs[:, 0] == i, pairs[:, 1] == i
        scores = np.concatenate([outcome[first], 1 - outcome[second]])
        tally = [int((scores == score).sum()) for score in (1.0, 0.0, 0.5)]
        found.append(Rated(name, float(rating[i]), float(low[i]), float(high[i]), len(scores), *tally))
    return sorted(found, key=lambda one: (-one.rating, one.name))
