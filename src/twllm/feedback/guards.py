"""Which clicks count as somebody's opinion: spam guards and per-person caps, each with a reason that the report counts.

Rules (numbers chosen, not tuned; `twllm feedback export` has options for them):
burst      more than `burst` clicks of one person within a minute: those clicks
too_fast   a click less than `min_gap_s` after that person's click before, or a vote less than that after the answers: not read
all_same   at least `same` clicks of one person, every one the same value, no comment, no reason: all of them
over_cap   more than `per_user` of one person: the newest stay, so that nobody outweighs everybody else
too_short  an answer of fewer than `min_chars` characters: nothing to learn
People without a number ('') are many or one, nobody knows: only the cap and the length hold for them, together.
Not covered: one person with many browsers.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The numbers of the rules; 0 switches a rule off."""

    per_user: int = 100
    burst: int = 30
    same: int = 30
    min_gap_s: float = 1.0
    min_chars: int = 2


@dataclass(frozen=True)
class Click:
    """What the rules see of a rating or a vote. `ready`: when its answer was complete, '' where that is not known."""

    key: str
    user: str
    value: str
    created: str
    said_more: bool  # a comment or a reason was given
    answer_chars: int
    ready: str = ""


def spam(clicks: Sequence[Click], limits: Limits) -> dict[str, str]:
    """Reason by key, of the clicks that do not count; the cap is not applied here (see `over_cap`)."""
    reasons = {c.key: "too_short" for c in clicks if c.answer_chars < limits.min_chars}
    by_user: dict[str, list[Click]] = defaultdict(list)
    for click in sorted(clicks, key=lambda c: c.created):
        if click.user:
            by_user[click.user].append(click)
    for own in by_user.values():
        for key, reason in _spam_of(own, limits):
            reasons.setdefault(key, reason)
    return reasons


def _spam_of(own: list[Click], limits: Limits) -> Iterable[tuple[str, str]]:
    """(key, reason) for one person's clicks, oldest first."""
    silent = len({c.value for c in own}) == 1 and not any(c.said_more for c in own)
    if limits.same and len(own) >= limits.same and silent:
        yield from ((c.key, "all_same") for c in own)
    times = [_seconds(c.created) for c in own]
    start = 0
    for i, now in enumerate(times):
        while now - times[start] >= 60:
            start += 1
        if limits.burst and i - start + 1 > limits.burst:
            yield from ((c.key, "burst") for c in own[start : i + 1])
    for i, click in enumerate(own):
        before = [times[i - 1]] if i else []
        before += [_seconds(click.ready)] if click.ready else []
        if any(times[i] - earlier < limits.min_gap_s for earlier in before):
            yield click.key, "too_fast"


def over_cap(clicks: Sequence[Click], limits: Limits) -> set[str]:
    """Keys beyond the newest `per_user` of each person."""
    if not limits.per_user:
        return set()
    by_user: dict[str, list[Click]] = defaultdict(list)
    for click in clicks:
        by_user[click.user].append(click)
    newest_first = (sorted(own, key=lambda c: c.created, reverse=True) for own in by_user.values())
    return {click.key for own in newest_first for click in own[limits.per_user :]}


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
