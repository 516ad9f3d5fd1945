"""Ratings in a SQL database, append-only: one row per click, and the latest of (conversation, turn, user) counts.

When `add` returns, the row is on disk (database.py). Who rated is a keyed hash (key.py). A person's rows and text can
be erased; a tombstone with counts remains. Old rows go by `expire`. Arena battles and votes: battles.py.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, func, or_, select, text, update

from twllm.errors import UserError
from twllm.feedback.database import (
    PAGE,
    SCHEMA,
    Database,
    StoreError,
    clean,
    count_ratings,
    database_url,
    dump,
    now,
)
from twllm.feedback.tables import (
    battle_answers,
    battle_turns,
    battles,
    consents,
    erasures,
    messages,
    models,
    ratings,
    settings,
    votes,
)

__all__ = ["SCHEMA", "Rating", "RatingStore", "StoreError", "database_url"]


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One click on a thumb. `messages` end with the rated answer; `id` and `created` are given by the store."""

    conversation_id: str
    turn: int
    rating: int
    messages: list[dict[str, str]]
    comment: str = ""
    reason: str = ""
    consent: bool = False
    user_hash: str = ""
    model: str = ""
    model_fingerprint: str = ""
    template_fingerprint: str = ""
    chat_id: str = ""
    id: int = 0
    created: str = field(default_factory=now)


class RatingStore(Database):
    """An open feedback database; any number of threads and processes may use one."""

    def pseudonym(self, user: str) -> str:
        """The name under which the browser's number `user` is stored; '' for nobody."""
        return self.key.pseudonym(user)

    def add(self, rating: Rating, consent_text: str = "") -> int:
        """Store one rating and return its id once it is safely on disk; `consent_text`: fingerprint of what was agreed to.

        Raises:
            StoreError: it was not stored.
        """
        row = {key: clean(value) for key, value in vars(rating).items()}
        chat = row.pop("messages")
        which = (row.pop("model"), row.pop("model_fingerprint"), row.pop("template_fingerprint"))
        del row["id"]
        with self.writing() as connection:
            self.note_consent(connection, row["user_hash"], row["consent"], consent_text)
            answer = self.put_messages(connection, row["user_hash"], chat)
            values = {**row, "model": self.model_id(connection, *which), "answer": answer}
            key = connection.execute(ratings.insert().values(values)).inserted_primary_key
            assert key is not None
            return int(key[0])

    def note_consent(self, connection: Connection, user_hash: str, consent: bool, text: str) -> None:
        """Add a consent event where it differs from the person's last one."""
        last = select(consents.c.consent, consents.c.text).where(consents.c.user_hash == user_hash)
        found = connection.execute(last.order_by(consents.c.id.desc()).limit(1)).first()
        if user_hash and (found is None or tuple(found) != (consent, text)):
            event = {"user_hash": user_hash, "consent": consent, "text": text, "created": now()}
            connection.execute(consents.insert().values(event))

    def latest(self) -> Iterator[Rating]:
        """The ratings that count, oldest first: the last click of each user on each answer."""
        newest = select(func.max(ratings.c.id)).group_by(ratings.c.conversation_id, ratings.c.turn, ratings.c.user_hash)
        with self.reading() as connection:
            ids = sorted(connection.execute(newest).scalars())
            for start in range(0, len(ids), PAGE):
                yield from self._read(connection, ids[start : start + PAGE])

    def _read(self, connection: Connection, ids: list[int]) -> Iterator[Rating]:
        query = select(ratings, models.c.name, models.c.fingerprint, models.c.template_fingerprint).join(
            models, models.c.id == ratings.c.model
        )
        rows = connection.execute(query.where(ratings.c.id.in_(ids)).order_by(ratings.c.id)).mappings().all()
        chats = self.chats(connection, [row["answer"] for row in rows])
        for row in rows:
            values = {key: row[key] for key in ratings.c.keys() if key not in ("model", "answer")}  # noqa: SIM118
            yield Rating(
                **values,
                messages=chats[row["answer"]],
                model=row["name"],
                model_fingerprint=row["fingerprint"],
                template_fingerprint=row["template_fingerprint"],
            )

    def clicks(self) -> int:
        """Number of rows, also those that a later click replaced."""
        with self.reading() as connection:
            return count_ratings(connection)

    # -- erasing ------------------------------------------------------------------------------------------------

    def erase(self, user: str, reason: str = "user") -> dict[str, int]:
        """Erase everything of one person (the browser's number, or the pseudonym) and return how much it was.

        Raises:
            UserError: `user` is empty.
            StoreError: it could not be erased.
        """
        if not user.strip():
            raise UserError(
                "沒有說要刪除誰的資料 (no user given)", "user", "給瀏覽器的編號（聊天頁面的「資料與隱私」）"
            )
        self.check_key()
        total = Counter({"ratings": 0, "votes": 0, "battles": 0, "messages": 0})
        with self.writing() as connection:
            for name in (self.pseudonym(user), user):
                counts = self._erase_rows(connection, name)
                if any(counts.values()):
                    stone = {"user_hash": name, "reason": reason, "counts": dump(counts), "created": now()}
                    connection.execute(erasures.insert().values(stone))
                total.update(counts)
        self._forget()
        return dict(total)

    def _erase_rows(self, connection: Connection, name: str) -> dict[str, int]:
        own = select(battles.c.id).where(battles.c.user_hash == name)
        for table in (battle_answers, battle_turns):
            connection.execute(delete(table).where(table.c.battle.in_(own)))
        theirs = or_(votes.c.user_hash == name, votes.c.battle.in_(own))
        counts = {"votes": connection.execute(delete(votes).where(theirs)).rowcount}
        for table in (battles, ratings, consents, messages):
            counts[table.name] = connection.execute(delete(table).where(table.c.user_hash == name)).rowcount
        return counts

    def expire(self, days: float) -> dict[str, int]:
        """Erase what is older than `days` (retention) and return how much it was."""
        limit = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        counts: dict[str, int] = {}
        with self.writing() as connection:
            old = select(battles.c.id).where(battles.c.created < limit)
            for table in (votes, battle_answers, battle_turns):
                counts[table.name] = connection.execute(delete(table).where(table.c.battle.in_(old))).rowcount
            for table in (battles, ratings):
                counts[table.name] = connection.execute(delete(table).where(table.c.created < limit)).rowcount
            counts["messages"] = self._erase_unused(connection)
            if any(counts.values()):
                stone = {"user_hash": "", "reason": "retention", "counts": dump(counts), "created": now()}
                connection.execute(erasures.insert().values(stone))
        self._forget()
        return {name: counts[name] for name in ("ratings", "votes", "battles", "messages")}

    def _erase_unused(self, connection: Connection) -> int:
        """Erase messages that no rating, no battle and no later message refers to, from the last ones on."""
        erased = 0
        children = select(messages.c.parent)
        used = select(ratings.c.answer).union_all(select(battle_answers.c.answer), children)
        while found := connection.execute(delete(messages).where(messages.c.hash.not_in(used))).rowcount:
            erased += found
        return erased

    def _forget(self) -> None:
        """Make erased text unreadable in the files, too: SQLite's log is emptied, PostgreSQL's dead rows are removed."""
        with self.explain():
            if self.dialect == "postgresql":
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    for table in (ratings, votes, battles, battle_answers, battle_turns, consents, messages):
                        connection.execute(text(f"VACUUM {table.name}"))
                return
            raw = self.engine.raw_connection()
            try:
                raw.cursor().execute(
                    "PRAGMA wal_checkpoint(TRUNCATE)"
                ).close()  # waits for readers, at most busy_timeout
            finally:
                raw.close()

    def new_key(self) -> None:
        """Accept the present key: the old one is lost."""
        with self.writing() as connection:
            connection.execute(update(settings).where(settings.c.key == "key").values(value=self.key.check))

    def __enter__(self) -> "RatingStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
