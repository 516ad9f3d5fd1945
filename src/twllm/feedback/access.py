"""API keys in the feedback database: made, listed, revoked, looked up; and how much each has used.

A key is 256 random bits and is shown once; stored is its SHA-256 (nobody can try out 2**256 keys, so no slow hash is
needed) and its first letters, by which people recognise it. Use is counted in the database and not in a process, so that several
gateways of one database share one limit: requests in calendar minutes, tokens in UTC days. A counter is one small write;
losing the last of them in a power cut is harmless.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update

from twllm.errors import UserError, did_you_mean
from twllm.feedback.database import Database
from twllm.feedback.tables import api_keys, api_usage

PREFIX = "twllm-"
SHOWN = len(PREFIX) + 4  # letters of a key that are kept readable: 24 of its 256 bits
SCOPES = ("generate", "rate", "admin", "metrics")


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a key may do. `rate_per_minute` and `tokens_per_day` 0: no limit. Times are UTC, ISO 8601, '' for never."""

    id: int
    name: str
    shown: str
    scopes: frozenset[str]
    rate_per_minute: int
    tokens_per_day: int
    created: str
    expires: str
    revoked: str

    def allows(self, scope: str) -> bool:
        """Whether the key may do what needs `scope`; "admin" may do everything."""
        return scope in self.scopes or "admin" in self.scopes

    def valid(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return not self.revoked and (not self.expires or stamp(now) < self.expires)


class AccessStore:
    """The keys of one database; usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        name: str,
        scopes: Sequence[str] = ("generate", "rate"),
        *,
        rate_per_minute: int = 0,
        tokens_per_day: int = 0,
        days: float | None = None,
    ) -> str:
        """Make a key called `name` and return it; it cannot be read again.

        Raises:
            UserError: the name is taken or empty, a scope is unknown, a number is negative.
        """
        for scope in scopes:
            if scope not in SCOPES:
                hint = did_you_mean(scope, SCOPES)
                raise UserError(f"沒有這個權限 (no such scope): {scope}", name, hint)
        if not 0 < len(name) <= 64 or not name.isprintable():
            raise UserError("名稱要 1 到 64 個字 (bad name)", name[:80], "換一個名稱")
        if rate_per_minute < 0 or tokens_per_day < 0 or not scopes or (days is not None and days <= 0):
            raise UserError("權限不能空白，限制不能是負數 (bad limits)", name, "0 表示不限")
        token = PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC)
        values = {
            "name": name, "digest": digest(token), "shown": token[:SHOWN], "scopes": ",".join(sorted(set(scopes))),
            "rate_per_minute": rate_per_minute, "tokens_per_day": tokens_per_day, "created": stamp(now),
            "expires": "" if days is None else stamp(now + timedelta(days=days)), "revoked": "",
        }  # fmt: skip
        taken = select(api_keys.c.id).where(api_keys.c.name == name, api_keys.c.revoked == "")
        with self._database.writing() as connection:
            if connection.execute(taken).first():
                raise UserError("這個名稱已經有金鑰 (name in use)", name, "換一個名稱，或先 twllm keys revoke")
            connection.execute(insert(api_keys).values(values))
        return token

    def all(self) -> list[Access]:
        """All keys, oldest first, the revoked ones too."""
        with self._database.reading() as connection:
            return [_access(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.id))]

    def revoke(self, name: str) -> None:
        """Make a key invalid; its row and its name stay, so that old logs can be understood.

        Raises:
            UserError: there is no valid key of this name.
        """
        change = update(api_keys).where(api_keys.c.name == name, api_keys.c.revoked == "")
        with self._database.writing() as connection:
            done = connection.execute(change.values(revoked=stamp(datetime.now(UTC)))).rowcount
        if not done:
            known = [access.name for access in self.all() if not access.revoked]
            raise UserError("沒有這個有效的金鑰 (no such key)", name, did_you_mean(name, known))

    def find(self, token: str) -> Access | None:
        """The key, valid or not; None where there is none."""
        with self._database.reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.digest == digest(token))).first()
        return _access(row) if row else None

    def use(self, access: Access, period: str, amount: int) -> int:
        """Add to what was used in `period` (a day or a minute, see `day` and `minute`); the new sum."""
        row = self._database.insert(api_usage).values(key=access.id, period=period, amount=amount)
        row = row.on_conflict_do_update(
            index_elements=["key", "period"], set_={"amount": api_usage.c.amount + amount}
        ).returning(api_usage.c.amount)
        with self._database.writing() as connection:
            total = int(connection.execute(row).scalar_one())
            if total == amount and len(period) > len("2026-01-01"):  # a new minute: older ones are of no use
                old = (api_usage.c.key == access.id) & (api_usage.c.period < period)
                connection.execute(delete(api_usage).where(old, api_usage.c.period.like("%T%")))
        return total

    def used(self, access: Access, period: str) -> int:
        """What was used in `period`."""
        query = select(api_usage.c.amount).where(api_usage.c.key == access.id, api_usage.c.period == period)
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar() or 0)


def digest(token: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def stamp(moment: datetime) -> str:
    """UTC as text that sorts."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def day(moment: datetime) -> str:
    """The day of a budget of tokens."""
    return stamp(moment)[:10]


def minute(moment: datetime) -> str:
    """The minute of a budget of requests."""
    return stamp(moment)[:16]


def _access(row: Any) -> Access:
    values = {name: getattr(row, name) for name in Access.__dataclass_fields__ if name != "scopes"}
    return Access(scopes=frozenset(row.scopes.split(",")), **values)
