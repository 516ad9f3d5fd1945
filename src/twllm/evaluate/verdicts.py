"""From verdicts and ratings to numbers: shares, agreement between the two orders, position and length bias, means.

A question's outcome holds only where both orders say the same; where they contradict each other it is `inconsistent`, which
the score counts as half, like a tie (arXiv 2306.05685, section 3.4, does so), and which has its own count. A question with
an order that could not be read is `failed`: in no share and in no score. Shares have Wilson's interval (with half points it
is wider than it need be); means of ratings a bootstrap over questions, so that two turns of one question stay together.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from twllm.evaluate.score import wilson

SIDES = {
    ("A", 0): "win",
    ("B", 0): "loss",
    ("A", 1): "loss",
    ("B", 1): "win",
}  # (verdict, order): order 1 shows us as B
OUTCOMES = ("win", "tie", "loss", "inconsistent", "failed")
RESAMPLES, SEED = 10_000, 1


def outcome_of(verdicts: Sequence[str]) -> str:
    """What the verdicts of both orders come to; '' is a reply that could not be read.

    >>> outcome_of(["A", "B"]), outcome_of(["C", "C"]), outcome_of(["A", "A"]), outcome_of(["A", "C"]), outcome_of(["A", ""])
    ('win', 'tie', 'inconsistent', 'inconsistent', 'failed')
    """
    if not all(verdicts):
        return "failed"
    said = {SIDES.get((verdict, order), "tie") for order, verdict in enumerate(verdicts)}
    return said.pop() if len(said) == 1 else "inconsistent"


def share(count: float, n: int) -> dict[str, Any]:
    """A share with Wilson's interval; its value is None where there is nothing to divide by."""
    low, high = wilson(count, n)
    return {
        "share": count / n if n else None,
        "count": count,
        "n": n,
        "interval": [round(low, 6), round(high, 6)],
    }


def pair_score(outcomes: Iterable[str]) -> dict[str, Any]:
    """Score (a win 1, a tie or an inconsistent one ½), interval, n judged, how many of each outcome, and their shares."""
    counts = Counter(outcomes)
    n = counts.total() - counts["failed"]
    points = counts["win"] + 0.5 * (counts["tie"] + counts["inconsistent"])
    low, high = wilson(points, n)
    return {
        "score": points / n if n else None,
        "n": n,
        "interval": [round(low, 6), round(high, 6)],
        "counts": {name: counts[name] for name in OUTCOMES},
        "shares": {name: share(counts[name], n) for name in OUTCOMES[:-1]},
    }


def order_report(pairs: Sequence[Sequence[str]], lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """How far the verdicts depend on place and length.

    pairs: the verdicts of both orders, a question each; lengths: characters of (our answer, the other's).
    `agreement`: both orders say the same, of the questions with two verdicts. `position`: what the single verdicts prefer.
    `inconsistent`: which place won where the orders contradict. `length`: the longer answer won, of the verdicts that
    prefer one of two answers of different length.
    """
    both = [pair for pair in pairs if "" not in pair]
    agreed = sum(outcome_of(pair) != "inconsistent" for pair in both)
    single = Counter(verdict for pair in pairs for verdict in pair if verdict)
    contradicting = Counter("".join(pair) for pair in both if outcome_of(pair) == "inconsistent")
    longer, decided = 0, 0
    for pair, (ours, theirs) in zip(pairs, lengths, strict=True):
        for order, verdict in enumerate(pair):
            side = SIDES.get((verdict, order))
            if side and ours != theirs:
                decided += 1
                longer += (side == "win") == (ours > theirs)
    return {
        "agreement": share(agreed, len(both)),
        "position": {
            "first": share(single["A"], single.total()),
            "second": share(single["B"], single.total()),
            "tie": share(single["C"], single.total()),
        },
        "inconsistent": {
            "always_first": contradicting["AA"],
            "always_second": contradicting["BB"],
            "tie_in_one_order": contradicting.total() - contradicting["AA"] - contradicting["BB"],
        },
        "length": {"longer": share(longer, decided)},
    }


def mean_rating(ratings: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Mean of all ratings that could be read, bootstrap interval over questions, counts. One sequence a question.

    >>> mean_rating([[8.0, 6.0], [None, 4.0]])["score"], mean_rating([[8.0, 6.0], [None, 4.0]])["failed"]
    (6.0, 1)
    """
    read = [[rating for rating in row if rating is not None] for row in ratings]
    sums = np.array([sum(row) for row in read if row])
    sizes = np.array([len(row) for row in read if row])
    n, asked = int(sizes.sum()), sum(len(row) for row in ratings)
    if not n:
        return {"score": None, "n": 0, "interval": None, "failed": asked}
    picks = np.random.default_rng(SEED).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "score": float(sums.sum()) / n,
        "n": n,
        "interval": [round(float(low), 6), round(float(high), 6)],
        "failed": asked - n,
    }
