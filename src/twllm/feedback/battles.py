"""The arena's part of the database: battles, their turns, votes. All state is here, so any gateway can go on with a battle.

A turn is claimed before it is written (two requests cannot write the same one) and whole when both sides have an
answer. A battle has at most one vote: the database refuses a second one.
"""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from twllm.feedback.database import PAGE, clean, now
from twllm.feedback.store import RatingStore, StoreError
from twllm.feedback.tables import battle_answers, battle_turns, battles, models, votes

SIDES = ("a", "b")
Chat = list[dict[str, str]]


class BattleError(Exception):
    """What a person asked of a battle cannot be done: `reason` is unknown, voted, unfinished or finished."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Known:
    """A model as ratings know it."""

    name: str
    fingerprint: str
    template_fingerprint: str = ""


@dataclass(frozen=True)
class Battle:
    """A battle as it stands. `turns` are whole ones; `chats` are what each side has seen and said in them."""

    id: str
    user_hash: str
    models: dict[str, Known]
    turns: int
    claimed: int
    claimed_at: str
    answered_at: str
    chats: dict[str, Chat]
    voted: bool

    def age_s(self) -> float:
        """Seconds since the last turn was begun."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.claimed_at)).total_seconds()


@dataclass(frozen=True)
class Vote:
    """One vote with everything an export needs."""

    id: int
    battle: str
    vote: str
    comment: str
    consent: bool
    user_hash: str
    flag: str
    created: str
    models: dict[str, Known]
    chats: dict[str, Chat]
    answered_at: str


class Battles:
    """Battles in an open database."""

    def __init__(self, store: RatingStore) -> None:
        self.store = store

    def begin(self, user_hash: str, sides: dict[str, Known]) -> str:
        """A new battle between the models of side a and b; returns its id, which says nothing about them."""
        battle = secrets.token_hex(16)
        with self.store.writing() as connection:
            ids = {
                f"model_{side}": self.store.model_id(connection, m.name, m.fingerprint, m.template_fingerprint)
                for side, m in sides.items()
            }
            connection.execute(battles.insert().values(id=battle, user_hash=user_hash, created=now(), **ids))
            connection.execute(battle_turns.insert().values(battle=battle, turn=1, created=now()))
        return battle

    def claim(self, battle: str, user_hash: str) -> tuple[int, Battle]:
        """Begin a further turn: its number, and the battle before it.

        Raises:
            BattleError: unknown battle, one that was voted on, or the last turn is not whole.
        """
        found = self.get(battle, user_hash)
        if found.voted:
            raise BattleError("voted")
        if found.turns < found.claimed:
            raise BattleError("unfinished")
        try:
            with self.store.writing() as connection:
                connection.execute(battle_turns.insert().values(battle=battle, turn=found.turns + 1, created=now()))
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):  # another request was faster
                raise BattleError("unfinished") from error
            raise
        return found.turns + 1, found

    def answer(self, battle: str, user_hash: str, turn: int, side: str, chat: Chat, finish_reason: str) -> None:
        """Store what a side said: `chat` is all it has seen, its answer last."""
        with self.store.writing() as connection:
            leaf = self.store.put_messages(connection, user_hash, clean(chat))
            row = {"battle": battle, "turn": turn, "side": side, "answer": leaf, "finish_reason": finish_reason}
            connection.execute(battle_answers.insert().values(**row, created=now()))

    def get(self, battle: str, user_hash: str) -> Battle:
        """The battle as it stands.

        Raises:
            BattleError: there is none of this id and person.
        """
        with self.store.reading() as connection:
            own = select(battles).where(battles.c.id == battle, battles.c.user_hash == user_hash)
            row = connection.execute(own).first()
            if row is None:
                raise BattleError("unknown")
            claimed = connection.execute(
                select(func.max(battle_turns.c.turn), func.max(battle_turns.c.created)).where(
                    battle_turns.c.battle == battle
                )
            ).one()
            known = _models(connection)
            turns, leaves, answered_at = _whole_turns(connection, [battle]).get(battle, (0, {}, ""))
            chats = self.store.chats(connection, list(leaves.values()))
            voted = connection.execute(select(votes.c.id).where(votes.c.battle == battle)).first() is not None
        sides = {"a": known[row.model_a], "b": known[row.model_b]}
        return Battle(
            battle, user_hash, sides, turns, claimed[0], claimed[1], answered_at,
            {side: chats[leaf] for side, leaf in leaves.items()}, voted,
        )  # fmt: skip

    def vote(
        self, found: Battle, vote: str, comment: str = "", consent: bool = False, flag: str = "", text: str = ""
    ) -> int:
        """Store a vote; when this returns it is on disk. `flag`: why it does not count. `text`: see RatingStore.add.

        Raises:
            BattleError: it was voted on before.
        """
        row = {"battle": found.id, "vote": vote, "comment": clean(comment), "consent": consent, "flag": flag}
        try:
            with self.store.writing() as connection:
                self.store.note_consent(connection, found.user_hash, consent, text)
                done = connection.execute(votes.insert().values(**row, user_hash=found.user_hash, created=now()))
                key = done.inserted_primary_key
                assert key is not None
                return int(key[0])
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise BattleError("voted") from error
            raise

    def counts(self) -> Counter[frozenset[Known]]:
        """How often each two models have met."""
        met: Counter[frozenset[Known]] = Counter()
        query = select(battles.c.model_a, battles.c.model_b, func.count()).group_by(
            battles.c.model_a, battles.c.model_b
        )
        with self.store.reading() as connection:
            known = _models(connection)
            for a, b, times in connection.execute(query):
                met[frozenset((known[a], known[b]))] += times
        return met

    def outcomes(self) -> list[tuple[Known, Known, str, str]]:
        """(side a's model, side b's model, vote, time) of every vote that counts, oldest first."""
        query = select(battles.c.model_a, battles.c.model_b, votes.c.vote, votes.c.created)
        query = query.join(votes, votes.c.battle == battles.c.id).where(votes.c.flag == "").order_by(votes.c.id)
        with self.store.reading() as connection:
            known = _models(connection)
            return [(known[row[0]], known[row[1]], row[2], row[3]) for row in connection.execute(query)]

    def votes(self) -> Iterator[Vote]:
        """All votes, oldest first, also those that are flagged."""
        query = select(votes, battles.c.model_a, battles.c.model_b).join(battles, battles.c.id == votes.c.battle)
        with self.store.reading() as connection:
            known = _models(connection)
            rows = connection.execute(query.order_by(votes.c.id)).mappings().all()
            for start in range(0, len(rows), PAGE):
                page = rows[start : start + PAGE]
                turns = _whole_turns(connection, [row["battle"] for row in page])
                leaves = [leaf for _, by_side, _ in turns.values() for leaf in by_side.values()]
                chats = self.store.chats(connection, leaves)
                for row in page:
                    _, by_side, answered_at = turns.get(row["battle"], (0, {}, ""))
                    yield Vote(
                        **{key: row[key] for key in votes.c.keys()},  # noqa: SIM118
                        models={"a": known[row["model_a"]], "b": known[row["model_b"]]},
                        chats={side: chats[leaf] for side, leaf in by_side.items()},
                        answered_at=answered_at,
                    )


def _models(connection: Connection) -> dict[int, Known]:
    rows = connection.execute(select(models))
    return {row.id: Known(row.name, row.fingerprint, row.template_fingerprint) for row in rows}


def _whole_turns(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[int, dict[str, str], str]]:
    """By battle: (number of whole turns, each side's last message in them, when the later side was done)."""
    answers: dict[str, dict[int, dict[str, Any]]] = {}
    for row in connection.execute(select(battle_answers).where(battle_answers.c.battle.in_(ids))):
        answers.setdefault(row.battle, {}).setdefault(row.turn, {})[row.side] = row
    found = {}
    for battle, turns in answers.items():
        if whole := [turn for turn, sides in turns.items() if len(sides) == len(SIDES)]:
            last = turns[max(whole)]
            done = max(row.created for row in last.values())
            found[battle] = (len(whole), {side: row.answer for side, row in last.items()}, done)
    return found
