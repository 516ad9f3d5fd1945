"""Version 2: messages by hash, models, consents, arena, erasures; users as keyed hashes.

Every row of version 1 keeps its id. Its user, a plain hash, is hashed again with the key, as new users are. The old
table is dropped at the end: keeping a copy would keep text that a person may ask to have erased.
`schema_version` becomes 2, so that a twllm of version 1 refuses this database.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
TIME, HASH = sa.String(32), sa.String(64)


def _id() -> "sa.Column[int]":
    return sa.Column("id", sa.Integer, primary_key=True, autoincrement=True)


def _column(name: str, kind: Any, *more: Any, **settings: Any) -> "sa.Column[Any]":
    return sa.Column(name, kind, *more, nullable=False, **settings)


def _battle(**settings: Any) -> "sa.Column[Any]":
    return _column("battle", sa.String(32), sa.ForeignKey("battles.id"), **settings)


def upgrade() -> None:
    """Make the new tables and move the ratings into them."""
    op.drop_index("ratings_answer", table_name="ratings")
    op.rename_table("ratings", "ratings_v1")
    _make_tables()
    _move_ratings(op.get_bind(), op.get_context().config.attributes["key"])  # type: ignore[union-attr]
    op.drop_table("ratings_v1")
    op.execute("UPDATE schema_version SET version = 2")


def _make_tables() -> None:
    op.create_table("settings", sa.Column("key", sa.String(64), primary_key=True), _column("value", sa.Text))
    op.create_table(
        "models", _id(), _column("name", sa.String(255)), _column("fingerprint", HASH),
        _column("template_fingerprint", HASH),
        sa.UniqueConstraint("name", "fingerprint", "template_fingerprint", name="models_once"),
    )  # fmt: skip
    op.create_table(
        "messages", sa.Column("hash", HASH, primary_key=True), _column("parent", HASH), _column("role", sa.String(16)),
        _column("content", sa.Text), _column("user_hash", HASH), _column("created", TIME),
    )  # fmt: skip
    op.create_table(
        "ratings", _id(), _column("conversation_id", sa.String(64)), _column("chat_id", sa.String(64)),
        _column("turn", sa.Integer), _column("rating", sa.Integer), _column("reason", sa.String(32)),
        _column("comment", sa.Text), _column("consent", sa.Boolean), _column("user_hash", HASH),
        _column("model", sa.Integer, sa.ForeignKey("models.id")), _column("answer", HASH), _column("created", TIME),
        sqlite_autoincrement=True,
    )  # fmt: skip
    op.create_table(
        "consents", _id(), _column("user_hash", HASH), _column("consent", sa.Boolean), _column("text", HASH),
        _column("created", TIME), sqlite_autoincrement=True,
    )  # fmt: skip
    op.create_table(
        "battles", sa.Column("id", sa.String(32), primary_key=True), _column("user_hash", HASH),
        _column("model_a", sa.Integer, sa.ForeignKey("models.id")),
        _column("model_b", sa.Integer, sa.ForeignKey("models.id")), _column("created", TIME),
    )  # fmt: skip
    op.create_table(
        "battle_turns", _battle(), _column("turn", sa.Integer), _column("created", TIME),
        sa.PrimaryKeyConstraint("battle", "turn"),
    )  # fmt: skip
    op.create_table(
        "battle_answers", _battle(), _column("turn", sa.Integer), _column("side", sa.String(1)),
        _column("answer", HASH), _column("finish_reason", sa.String(16)), _column("created", TIME),
        sa.PrimaryKeyConstraint("battle", "turn", "side"),
    )  # fmt: skip
    op.create_table(
        "votes", _id(), _battle(unique=True), _column("vote", sa.String(4)), _column("comment", sa.Text),
        _column("consent", sa.Boolean), _column("user_hash", HASH), _column("flag", sa.String(32)),
        _column("created", TIME), sqlite_autoincrement=True,
    )  # fmt: skip
    op.create_table(
        "erasures", _id(), _column("user_hash", HASH), _column("reason", sa.String(32)), _column("counts", sa.Text),
        _column("created", TIME), sqlite_autoincrement=True,
    )  # fmt: skip
    op.create_index("ratings_by_answer", "ratings", ["conversation_id", "turn", "user_hash"])
    for table in ("messages", "ratings", "consents", "battles", "votes"):
        op.create_index(f"ix_{table}_user_hash", table, ["user_hash"])


def _move_ratings(connection: sa.Connection, key: Any) -> None:
    old = sa.Table("ratings_v1", sa.MetaData(), autoload_with=connection)
    meta = sa.MetaData()
    models, messages, ratings = (sa.Table(n, meta, autoload_with=connection) for n in ("models", "messages", "ratings"))
    known: dict[tuple[str, str, str], int] = {}
    written: set[str] = set()
    last = -1
    while rows := connection.execute(sa.select(old).where(old.c.id > last).order_by(old.c.id).limit(500)).all():
        for row in rows:
            which = (row.model, row.model_fingerprint, row.template_fingerprint)
            if which not in known:
                known[which] = len(known) + 1
                values = dict(
                    zip(("id", "name", "fingerprint", "template_fingerprint"), (known[which], *which), strict=True)
                )
                connection.execute(models.insert().values(values))
            user = key.again(row.user_hash)
            chain = key.chain(user, row.messages)
            for link in chain:
                if link["hash"] not in written:
                    connection.execute(messages.insert().values(link | {"user_hash": user, "created": row.created}))
                    written.add(link["hash"])
            connection.execute(
                ratings.insert().values(
                    id=row.id, conversation_id=row.conversation_id, chat_id="", turn=row.turn, rating=row.rating, reason="",
                    comment=row.comment, consent=row.consent, user_hash=user, model=known[which],
                    answer=chain[-1]["hash"] if chain else "", created=row.created,
                )
            )  # fmt: skip
        last = rows[-1].id
    if connection.dialect.name == "postgresql":  # ids were given, so the counters stand still
        for table in ("models", "ratings"):
            connection.execute(
                sa.text(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                    f" WHERE EXISTS (SELECT 1 FROM {table})"
                )
            )
