"""Version 3: API keys and what they have used."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make both tables."""
    text = [("name", 64), ("digest", 64), ("shown", 16), ("scopes", 64)]
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        *(sa.Column(name, sa.String(size), nullable=False) for name, size in text),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("rate_per_minute", "tokens_per_day")),
        *(sa.Column(name, sa.String(32), nullable=False) for name in ("created", "expires", "revoked")),
        sa.UniqueConstraint("digest"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "api_usage",
        sa.Column("key", sa.Integer, sa.ForeignKey("api_keys.id"), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("amount", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("key", "period"),
    )
