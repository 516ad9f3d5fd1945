"""One sampler for all engines: logits of one position → one id; the same input and generator state give the same id.

Order: logit_bias, repetition penalty (arXiv 1909.05858), frequency and presence penalty, grammar, temperature, top-k, typical-p
(arXiv 2202.00666), top-p (arXiv 1904.09751), min-p (arXiv 2407.01082); each filter sees what the one before left, renormalised,
as in transformers. Log-probabilities are those of the raw logits unless the processed ones are asked for. numpy and not torch, because every engine can hand over an array.
Nothing sorts a whole vocabulary unless the distribution is flat: candidates are those near the best, widened until they suffice.
A request's rows are drawn one by one: each is a few passes over V, in which the batch saves nothing, and so others cannot change it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twllm.serve.engines.interface import Alternatives, Sampling

Logits = NDArray[np.float32]
Scores = NDArray[np.float32]
Ids = NDArray[np.intp]
WIDTHS = (
    3.0,
    8.0,
    16.0,
)  # candidates are ids whose score is within this of the best (a factor of 20, 3,000, 9 million)


class Mask(Protocol):
    """What may come next: a grammar (grammar.py)."""

    def allowed(self, vocab: int) -> NDArray[np.bool_]:
        """Which ids may come next (V,)."""
        ...


class Drawn(NamedTuple):
    """An id and, if asked for, its log-probability and the best ones."""

    id: int
    logprob: float | None = None
    top: Alternatives = ()


class Drawer:
    """Draws one answer's ids; keeps the generator and what the penalties count."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], grammar: Mask | None = None) -> None:
        self.sampling, self._grammar = sampling, grammar
        self._random = np.random.default_rng(sampling.seed)
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else set()
        self._counts: dict[int, int] = {}
        self._changes = bool(
            sampling.logit_bias
            or sampling.repetition_penalty != 1.0
            or sampling.frequency_penalty
            or sampling.presence_penalty
            or grammar
        )

    def draw(self, logits: Logits) -> Drawn:
        """The next id.

        Raises:
            FloatingPointError: the model produced NaN or infinity.
        """
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise FloatingPointError("the model produced non-finite logits")
        scores = self._change(logits) if self._changes else logits
        if self._changes and not np.isfinite(scores.max()):
            raise FloatingPointError("nothing is left to draw")
        if self.sampling.temperature == 0:
            id = int(scores.argmax()) if self._changes else best
        else:
            id = pick(scores, self.sampling, self._random.random())
        self._count(id)
        if self.sampling.logprobs is None:
            return Drawn(id)
        if self.sampling.processed_logprobs:
            return Drawn(id, *processed_logprobs(scores, id, self.sampling))
        return Drawn(id, *raw_logprobs(logits, id, self.sampling.logprobs))

    def _count(self, id: int) -> None:
        if self.sampling.repetition_penalty != 1.0:
            self._seen.add(id)
        if self.sampling.frequency_penalty or self.sampling.presence_penalty:
            self._counts[id] = self._counts.get(id, 0) + 1

    def _change(self, logits: Logits) -> Scores:
        """Bias, penalties and grammar on a copy."""
        scores = logits.copy()
        for id, bias in self.sampling.logit_bias:
            if 0 <= id < len(scores):
                scores[id] += bias
        if self._seen:
            ids = np.fromiter(self._seen, np.intp, len(self._seen))
            penalise(scores, ids[ids < len(scores)], self.sampling.repetition_penalty)
        if self._counts:
            ids = np.fromiter(self._counts, np.intp, len(self._counts))
            times = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            scores[ids] -= self.sampling.frequency_penalty * times + self.sampling.presence_penalty
        if self._grammar is not None:
            scores[~self._grammar.allowed(len(scores))] = -np.inf
        return scores


def penalise(scores: Scores, ids: Ids, penalty: float) -> None:
    """Divide positive and multiply negative scores of `ids`, in place."""
    some = scores[ids]
    scores[ids] = np.where(some > 0, some / penalty, some * penalty)


def pick(scores: Scores, sampling: Sampling, chance: float) -> int:
    """The id that `chance` (0 to 1) falls on, in the distribution that temperature and filters leave."""
    kept, weights = keep(scores, sampling)
    edges = np.cumsum(weights, dtype=np.float64)
    at = min(int(np.searchsorted(edges, chance * edges[-1], side="right")), len(edges) - 1)
    return at if kept is None else int(kept[at])


def keep(scores: Scores, sampling: Sampling) -> tuple[Ids | None, Scores]:
    """Ids that may be drawn, ascending (None: all), and their weights, which do not sum to 1."""
    scaled = (scores - scores.max()) / np.float32(max(sampling.temperature, 1e-6))  # 0 at the best, all others below
    kept: Ids | None = None
    if 0 < sampling.top_k < len(scaled):
        kept = _best(scaled, sampling.top_k)
    for share, filter in ((sampling.typical_p, _typical), (sampling.top_p, _nucleus)):
        if share < 1:
            found = filter(scaled if kept is None else scaled[kept], share)
            kept = found if kept is None else kept[found]
    if sampling.min_p > 0:
        some = scaled if kept is None else scaled[kept]
        found = np.flatnonzero(some >= some.max() + np.float32(np.log(sampling.min_p)))
        kept = found if kept is None else kept[found]
    return kept, np.exp(scaled if kept is None else scaled[kept])


def _best(scaled: Scores, count: int) -> Ids:
    """The `count` best."""
    near = next((ids for width in WIDTHS if len(ids := np.flatnonzero(scaled >= -width)) >= count), None)
    if near is None:
        near = np.flatnonzero(np.isfinite(scaled))
    some = -scaled[near]
    return near if len(near) <= count else near[_nearest(some, np.partition(some, count - 1)[count - 1], count)]


def _nucleus(scaled: Scores, mass: float) -> Ids:
    """The fewest of the best whose probabilities reach `mass`, at least one."""
    weights = np.exp(scaled)
    distances = scaled.max() - scaled
    total = mass * float(weights.sum(dtype=np.float64))
    near = _near(distances, weights, total)
    order = np.sort(distances[near])  # values alone sort several times faster than with their places
    count = _fewest(np.exp(scaled.max() - order), total)
    return near[_nearest(distances[near], order[count - 1], count)]


def _typical(scaled: Scores, mass: float) -> Ids:
    """The fewest whose information is nearest to the entropy and whose probabilities reach `mass`."""
    weights = np.exp(scaled)
    total = float(weights.sum(dtype=np.float64))
    mean = float((weights * np.where(weights > 0, scaled, 0)).sum(dtype=np.float64)) / total  # log(total) less entropy
    distances = np.where(weights > 0, np.abs(scaled - np.float32(mean)), np.float32(np.inf))
    near = _near(distances, weights, mass * total)
    order = np.argsort(distances[near])
    count = _fewest(weights[near][order], mass * total)
    return near[_nearest(distances[near], distances[near[order[count - 1]]], count)]


def _near(distances: Scores, weights: Scores, mass: float) -> Ids:
    """Those within the smallest of WIDTHS that together weigh `mass`, all if none does."""
    for width in WIDTHS:
        ids = np.flatnonzero(distances <= width)
        if weights[ids].sum(dtype=np.float64) >= mass:
            return ids
    return np.flatnonzero(np.isfinite(distances))


def _fewest(weights: Scores, mass: float) -> int:
    """How many from the beginning have to be taken to weigh `mass`."""
    reached = int(np.searchsorted(np.cumsum(weights, dtype=np.float64), mass))
    return min(reached + 1, len(weights))


def _nearest(distances: Scores, edge: np.float32, count: int) -> Ids:
    """The `count` places with the smallest distances, of which `edge` is the last; of equals the first."""
    inside = distances < edge
    ties = np.flatnonzero(distances == edge)
    inside[ties[: count - int(np.count_nonzero(inside))]] = True
    return np.flatnonzero(inside)


def raw_logprobs(logits: Logits, id: int, count: int) -> tuple[float, Alternatives]:
    """Log-probability of `id` and of the `count` best ids, best first."""
    best = logits.max()
    log_total = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    if count <= 0:
        return float(logits[id]) - log_total, ()
    top = _best(logits - best, min(count, len(logits)))
    top = top[np.argsort(-logits[top], kind="stable")]
    return float(logits[id]) - log_total, tuple((int(i), float(logits[i]) - log_total) for i in top)


def processed_logprobs(scores: Scores, id: int, sampling: Sampling) -> tuple[float, Alternatives]:
    """As `raw_logprobs`, of the distribution that the id was drawn from: temperature and filters count."""
    count = sampling.logprobs or 0
    if sampling.temperature == 0:
        return raw_logprobs(scores, id, count)
    kept, weights = keep(scores, sampling)
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    if kept is not None:
        logs, some = np.full(len(scores), -np.inf, np.float32), logs
        logs[kept] = some
    return raw_logprobs(logs, id, count)
