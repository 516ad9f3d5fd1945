"""The tables of the feedback database as they are now; `migrations/` says how they came to be.

Rows are only ever added. A message is addressed by a keyed hash of (user, parent, role, text), so a conversation is a
chain of parents that ratings of its later turns share, and nobody's text is shared with somebody else's: erasing one
person's rows erases exactly that person's text.
"""

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()
HASH, TIME = String(64), String(32)  # TIME: UTC, ISO 8601, sorts as text, the same in every database


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True, autoincrement=True)


settings = Table(
    "settings", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)

models = Table(
    "models", metadata, _id(),
    Column("name", String(255), nullable=False),
    Column("fingerprint", HASH, nullable=False),
    Column("template_fingerprint", HASH, nullable=False),
    UniqueConstraint("name", "fingerprint", "template_fingerprint", name="models_once"),
)  # fmt: skip

messages = Table(
    "messages", metadata,
    Column("hash", HASH, primary_key=True),
    Column("parent", HASH, nullable=False),  # "" for the first message
    Column("role", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("user_hash", HASH, nullable=False, index=True),
    Column("created", TIME, nullable=False),
)  # fmt: skip

ratings = Table(
    "ratings", metadata, _id(),
    Column("conversation_id", String(64), nullable=False),
    Column("chat_id", String(64), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("rating", Integer, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("comment", Text, nullable=False),
    Column("consent", Boolean, nullable=False),
    Column("user_hash", HASH, nullable=False, index=True),
    Column("model", Integer, ForeignKey("models.id"), nullable=False),
    Column("answer", HASH, nullable=False),  # the last message; "" for a rating without messages
    Column("created", TIME, nullable=False),
    Index("ratings_by_answer", "conversation_id", "turn", "user_hash"),
    sqlite_autoincrement=True,
)  # fmt: skip

consents = Table(
    "consents", metadata, _id(),
    Column("user_hash", HASH, nullable=False, index=True),
    Column("consent", Boolean, nullable=False),
    Column("text", HASH, nullable=False),  # fingerprint of the sentence that was agreed to
    Column("created", TIME, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip

battles = Table(
    "battles", metadata,
    Column("id", String(32), primary_key=True),
    Column("user_hash", HASH, nullable=False, index=True),
    Column("model_a", Integer, ForeignKey("models.id"), nullable=False),
    Column("model_b", Integer, ForeignKey("models.id"), nullable=False),
    Column("created", TIME, nullable=False),
)  # fmt: skip

battle_turns = Table(  # a turn that was begun; it is whole when both sides have an answer
    "battle_turns", metadata,
    Column("battle", String(32), ForeignKey("battles.id"), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("created", TIME, nullable=False),
    PrimaryKeyConstraint("battle", "turn"),
)  # fmt: skip

battle_answers = Table(
    "battle_answers", metadata,
    Column("battle", String(32), ForeignKey("battles.id"), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("side", String(1), nullable=False),
    Column("answer", HASH, nullable=False),
    Column("finish_reason", String(16), nullable=False),
    Column("created", TIME, nullable=False),
    PrimaryKeyConstraint("battle", "turn", "side"),
)  # fmt: skip

votes = Table(
    "votes", metadata, _id(),
    Column("battle", String(32), ForeignKey("battles.id"), nullable=False, unique=True),
    Column("vote", String(4), nullable=False),  # a, b, tie, bad
    Column("comment", Text, nullable=False),
    Column("consent", Boolean, nullable=False),
    Column("user_hash", HASH, nullable=False, index=True),
    Column("flag", String(32), nullable=False),  # why it does not count; "" where it does
    Column("created", TIME, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip

erasures = Table(  # tombstones: that something was erased, when and how much of it, and nothing else
    "erasures", metadata, _id(),
    Column("user_hash", HASH, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("counts", Text, nullable=False),
    Column("created", TIME, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip

api_keys = Table(
    "api_keys", metadata, _id(),
    Column("name", String(64), nullable=False),
    Column("digest", HASH, nullable=False, unique=True),  # SHA-256 of the key
    Column("shown", String(16), nullable=False),  # its first letters
    Column("scopes", String(64), nullable=False),  # with commas
    Column("rate_per_minute", Integer, nullable=False),  # requests; 0: no limit
    Column("tokens_per_day", Integer, nullable=False),
    Column("created", TIME, nullable=False),
    Column("expires", TIME, nullable=False),  # "" for never
    Column("revoked", TIME, nullable=False),  # "" for not
    sqlite_autoincrement=True,
)  # fmt: skip

api_usage = Table(
    "api_usage", metadata,
    Column("key", Integer, ForeignKey("api_keys.id"), nullable=False),
    Column("period", String(16), nullable=False),  # a UTC day (tokens) or minute (requests)
    Column("amount", Integer, nullable=False),
    PrimaryKeyConstraint("key", "period"),
)  # fmt: skip
