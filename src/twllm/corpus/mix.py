"""Shares of the training tokens → how often an epoch shows each source.

A group's tokens are shared over its sources by what they hold. `replay` groups take their shares of all tokens first; the
other groups share the rest by `shares`, scaled to sum 1. A source is shown at most `max_epochs` times; what a group
cannot give the others take over, by their shares ("redistribute"), or the epoch shrinks until every group can give its
share ("shrink"). Planned and achieved shares are told side by side. The default of four epochs: repeated data is nearly as
good as new up to there (arXiv 2305.16264, figure 5).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twllm.corpus.config import CorpusConfig, CorpusSource, MixConfig
from twllm.errors import UserError

PAPER_SHARES = {"social": 0.4732, "news": 0.2956, "knowledge": 0.1629, "books": 0.0683}  # arXiv 2311.17487, table 1


@dataclass(frozen=True)
class GroupMix:
    """One group: what was asked, what it holds and gives."""

    group: str
    planned: float  # share of the tokens
    achieved: float
    available: int  # tokens it holds
    given: int  # tokens an epoch shows
    epochs: float  # how often it is shown, on average
    capped: bool  # it gives all it may


@dataclass(frozen=True)
class Mix:
    """The plan."""

    tokens: int  # of one training epoch
    groups: tuple[GroupMix, ...]
    weights: dict[str, float]  # source → times an epoch shows each document

    def to_row(self) -> dict[str, Any]:
        """JSON."""
        return {"tokens": self.tokens, "groups": [asdict(group) for group in self.groups], "weights": self.weights}

    def list_weights(self, sources: Sequence[CorpusSource]) -> list[float]:
        """The weights in the order of the sources."""
        return [self.weights[source.label] for source in sources]


def plan_mix(config: CorpusConfig, tokens: Mapping[str, int]) -> Mix:
    """The plan for sources that hold so many tokens each (by name). Without shares, the sources' own weights.

    Raises:
        UserError: a group holds nothing.
    """
    mix = config.mix
    groups: dict[str, list[CorpusSource]] = {}
    for source in config.sources:
        groups.setdefault(source.group or source.label, []).append(source)
    available = {name: sum(tokens.get(s.label, 0) for s in found) for name, found in groups.items()}
    if not mix.shares:
        weights = {source.label: source.weight for source in config.sources}
        given = {n: sum(weights[s.label] * tokens.get(s.label, 0) for s in found) for n, found in groups.items()}
        return _told(given, given, available, weights, dict.fromkeys(groups, float("inf")))
    if empty := next((name for name, count in available.items() if not count), None):
        raise UserError("這個來源群沒有文件留下 (empty group)", f"corpus.mix: {empty}", "檢查它的來源，或拿掉它的佔比")
    planned = shares_of(mix)
    caps = {n: sum(_cap(s, mix) * tokens.get(s.label, 0) for s in found) for n, found in groups.items()}
    total = float(mix.tokens or sum(available.values()))
    if mix.when_short == "shrink":
        total = min(total, *(caps[name] / share for name, share in planned.items()))
    given = fill(planned, caps, total)
    weights = {}
    for name, found in groups.items():
        weights |= _spread(
            {s.label: tokens.get(s.label, 0) for s in found}, {s.label: _cap(s, mix) for s in found}, given[name]
        )
    return _told(given, planned, available, weights, caps)


def shares_of(mix: MixConfig) -> dict[str, float]:
    """Group → planned share of all tokens; they sum to 1."""
    replayed = sum(mix.replay.values())
    whole = sum(mix.shares.values())
    return {name: share / whole * (1 - replayed) for name, share in mix.shares.items()} | mix.replay


def _cap(source: CorpusSource, mix: MixConfig) -> float:
    return source.max_epochs or mix.max_epochs


def fill(shares: Mapping[str, float], caps: Mapping[str, float], total: float) -> dict[str, float]:
    """`total` over the groups by their shares, none above its cap; what one cannot take the others do.

    >>> fill({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 20, "b": 100, "c": 100}, 100)
    {'a': 20, 'b': 40.0, 'c': 40.0}
    """
    given: dict[str, float] = {}
    left, open_groups = total, dict(shares)
    while open_groups:
        whole = sum(open_groups.values())
        full = [name for name, share in open_groups.items() if caps[name] <= left * share / whole]
        if not full:
            given |= {name: left * share / whole for name, share in open_groups.items()}
            break
        for name in full:
            given[name] = caps[name]
            left -= caps[name]
            del open_groups[name]
    return {name: given[name] for name in shares}


def _spread(tokens: Mapping[str, int], caps: Mapping[str, float], wanted: float) -> dict[str, float]:
    """Times each source of a group is shown: the same for all, but for those whose own cap is lower."""
    room = {name: caps[name] * count for name, count in tokens.items()}
    given = fill({name: count for name, count in tokens.items() if count}, room, wanted)
    return {name: round(given[name] / count, 9) if count else 1.0 for name, count in tokens.items()}


def _told(
    given: Mapping[str, float],
    planned: Mapping[str, float],
    available: Mapping[str, int],
    weights: dict[str, float],
    caps: Mapping[str, float],
) -> Mix:
    total, whole = sum(given.values()) or 1.0, sum(planned.values()) or 1.0
    groups = tuple(
        GroupMix(
            name,
            round(planned[name] / whole, 6),
            round(given[name] / total, 6),
            available[name],
            round(given[name]),
            round(given[name] / max(available[name], 1), 4),
            given[name] >= caps[name],
        )
        for name in given
    )
    return Mix(round(sum(given.values())), groups, weights)
