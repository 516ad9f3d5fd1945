"""Ratings and votes → opinions: scrubbed of personal data, guarded, and one for each distinct answer or pair of answers.

An opinion is a rated answer (thumbs; "both bad" in the arena rates both answers down) or a preference (an arena vote).
The same prompt and answer rated by several people becomes one opinion with their counts; a person counts once. Where as
many like it as do not, nothing is known: `disagree`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twllm.artifact import canonical_json
from twllm.corpus.privacy import scrub
from twllm.feedback.battles import SIDES, Battles, Vote
from twllm.feedback.guards import Click, Limits, over_cap, spam
from twllm.feedback.store import Rating, RatingStore

Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What people think of `completion` after `prompt`; with `other`, that they prefer it to that one."""

    id: str
    prompt: Messages
    completion: Messages
    other: Messages = field(default_factory=list)
    up: int = 0
    down: int = 0
    comments: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    model: str = ""
    template: str = ""
    time: str = ""
    consent: bool = False
    users: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """What is judged, as one text: equal where two opinions are about the same thing."""
        return canonical_json([self.prompt, *sorted(map(canonical_json, filter(None, [self.completion, self.other])))])


@dataclass
class Gathered:
    """The opinions that count, and what became of the rest."""

    rated: list[Opinion] = field(default_factory=list)
    preferred: list[Opinion] = field(default_factory=list)
    found: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    scrubbed: Counter[str] = field(default_factory=Counter)


def gather(store: RatingStore, consent_only: bool = True, limits: Limits | None = None) -> Gathered:
    """All opinions in a database. Held in memory at once."""
    limits = limits or Limits()
    result = Gathered()
    entries = [*map(_of_rating, store.latest()), *(e for vote in Battles(store).votes() for e in _of_vote(vote))]
    result.found = len(entries)
    reasons = spam(_once(click for click, _, _ in entries), limits)
    kept: list[tuple[Click, Opinion]] = []
    for click, opinion, reason in entries:
        if consent_only and not opinion.consent:
            reason = "no_consent"
        if reason := reason or reasons.get(click.key, ""):
            result.left_out[reason] += 1
        else:
            kept.append((click, opinion))
    capped = over_cap(_once(click for click, _ in kept), limits)
    result.left_out.update({"over_cap": len([1 for click, _ in kept if click.key in capped])})
    clean = [_scrubbed(opinion, result.scrubbed) for click, opinion in kept if click.key not in capped]
    result.rated = _merge([o for o in clean if not o.other], result.left_out)
    result.preferred = _merge([o for o in clean if o.other], result.left_out)
    result.left_out += Counter()  # without zeros
    return result


Entry = tuple[Click, Opinion, str]  # and why it cannot count, "" if it can


def _of_rating(rating: Rating) -> Entry:
    opinion = Opinion(
        id=f"rating-{rating.id}", prompt=rating.messages[:-1], completion=rating.messages[-1:],
        up=int(rating.rating > 0), down=int(rating.rating < 0), comments=(rating.comment,) if rating.comment else (),
        reasons=(rating.reason,) if rating.reason else (), model=f"{rating.model}@{rating.model_fingerprint}",
        template=rating.template_fingerprint, time=rating.created, consent=rating.consent, users=(rating.user_hash,),
    )  # fmt: skip
    said_more = bool(rating.comment or rating.reason)
    chars = min((len(m["content"].strip()) for m in rating.messages[-1:]), default=0)
    click = Click(opinion.id, rating.user_hash, str(rating.rating), rating.created, said_more, chars)
    return click, opinion, "" if opinion.prompt else "no_prompt"


def _of_vote(vote: Vote) -> list[Entry]:
    """A vote for a side is a preference, "both bad" are two ratings down, a tie says nothing to learn from."""
    if len(vote.chats) < len(SIDES):
        return []
    shared = 0
    while (
        all(len(chat) > shared for chat in vote.chats.values()) and vote.chats["a"][shared] == vote.chats["b"][shared]
    ):
        shared += 1
    rest = {side: chat[shared:] for side, chat in vote.chats.items()}
    common: dict[str, Any] = {
        "comments": (vote.comment,) if vote.comment else (), "time": vote.created, "consent": vote.consent, "users": (vote.user_hash,),
    }  # fmt: skip
    names = {side: f"{model.name}@{model.fingerprint}" for side, model in vote.models.items()}
    reason = "identity" if vote.flag else "tie" if vote.vote == "tie" else "" if all(rest.values()) else "same_answer"
    chars = min(len(chat[-1]["content"].strip()) for chat in vote.chats.values())
    click = Click(
        f"vote-{vote.id}", vote.user_hash, vote.vote, vote.created, bool(vote.comment), chars, vote.answered_at
    )
    if vote.vote in SIDES:
        winner = vote.vote
        loser = SIDES[1 - SIDES.index(winner)]
        opinion = Opinion(
            id=click.key, prompt=vote.chats["a"][:shared], completion=rest[winner], other=rest[loser], up=1,
            model=f"{names[winner]} > {names[loser]}", template=vote.models[winner].template_fingerprint, **common,
        )  # fmt: skip
        return [(click, opinion, reason)]
    entries = []
    for side in SIDES if vote.vote == "bad" else ("a",):
        chat = vote.chats[side]
        opinion = Opinion(
            id=f"{click.key}-{side}", prompt=chat[:-1], completion=chat[-1:], down=1, model=names[side],
            template=vote.models[side].template_fingerprint, **common,
        )  # fmt: skip
        entries.append((click, opinion, reason))
    return entries


def _once(clicks: Iterable[Click]) -> list[Click]:
    """A vote that stands for two opinions is one click."""
    return list({click.key: click for click in clicks}.values())


def _scrubbed(opinion: Opinion, counts: Counter[str]) -> Opinion:
    def clean(text: str) -> str:
        found, kinds = scrub(text)
        counts.update(kinds)
        return found

    def chat(messages: Messages) -> Messages:
        return [{**message, "content": clean(message["content"])} for message in messages]

    return replace(
        opinion,
        prompt=chat(opinion.prompt),
        completion=chat(opinion.completion),
        other=chat(opinion.other),
        comments=tuple(map(clean, opinion.comments)),
    )


def _merge(opinions: Sequence[Opinion], left_out: Counter[str]) -> list[Opinion]:
    """One opinion for each subject: the majority's; duplicates and disagreements are counted."""
    by_subject: dict[str, list[Opinion]] = defaultdict(list)
    for opinion in opinions:
        by_subject[opinion.subject].append(opinion)
    merged = []
    for same in by_subject.values():
        votes = _one_each(same)
        left_out["duplicate"] += len(same) - len(votes)
        found = _majority(votes)
        if found is None:
            left_out["disagree"] += len(votes)
        else:
            left_out["merged"] += len(votes) - 1
            merged.append(found)
    return merged


def _one_each(same: Iterable[Opinion]) -> list[Opinion]:
    """The last opinion of each person; those without a number all stay."""
    last: dict[str, Opinion] = {}
    for opinion in same:
        last[opinion.users[0] or opinion.id] = opinion
    return list(last.values())


def _majority(votes: list[Opinion]) -> Opinion | None:
    """The first opinion of the larger side with everybody's counts, None where the sides are equal."""

    def side(opinion: Opinion) -> str:
        return canonical_json(opinion.completion) if opinion.other else str(opinion.up)

    tally = Counter(side(opinion) for opinion in votes).most_common()
    if len(tally) > 1 and tally[0][1] == tally[1][1]:
        return None
    winners = [opinion for opinion in votes if side(opinion) == tally[0][0]]
    first = winners[0]
    liked, others = len(winners), len(votes) - len(winners)
    wanted = bool(first.other) or bool(first.up)
    return replace(
        first,
        up=liked if wanted else others,
        down=others if wanted else liked,
        comments=tuple(text for opinion in winners for text in opinion.comments)[:5],
        reasons=tuple(dict.fromkeys(text for opinion in winners for text in opinion.reasons)),
        consent=all(opinion.consent for opinion in winners),
        users=tuple(opinion.users[0] for opinion in votes),
    )
