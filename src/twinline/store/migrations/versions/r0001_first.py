"""The first tables: keys, allowances and leases, usage, and how far journals are folded."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("models", sa.Text),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("token_budget", sa.BigInteger),
        sa.Column("money_budget", sa.BigInteger),
        sa.Column("currency", sa.String(8)),
        sa.Column("budget_period", sa.String(8), nullable=False),
        sa.Column("weight", sa.Float(53), nullable=False),
        sa.Column("priority_cap", sa.Integer, nullable=False),
        sa.Column("admin", sa.Boolean, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53)),
        sa.Column("revoked", sa.Float(53)),
    )
    live = sa.text("revoked IS NULL")
    op.create_index("keys_live_name", "keys", ["name"], unique=True, sqlite_where=live, postgresql_where=live)
    op.create_table(
        "revisions",
        sa.Column("subject", sa.String(32), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "allowances",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("meter", sa.String(16), primary_key=True),
        sa.Column("period", sa.BigInteger, primary_key=True),
        sa.Column("taken", sa.BigInteger, nullable=False),
        sa.Column("until", sa.Float(53)),
    )
    op.create_index("allowances_until", "allowances", ["until"])
    op.create_table(
        "leases",
        sa.Column("holder", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("meter", sa.String(16), primary_key=True),
        sa.Column("period", sa.BigInteger, primary_key=True),
        sa.Column("unspent", sa.BigInteger, nullable=False),
        sa.Column("until", sa.Float(53)),
    )
    op.create_index("leases_of_an_allowance", "leases", ["key_id", "meter", "period"])
    op.create_table(
        "holders",
        sa.Column("holder", sa.String(32), primary_key=True),
        sa.Column("seen", sa.Float(53), nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("uid", sa.String(64), primary_key=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.String(32)),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("started", sa.Float(53), nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("choices", sa.Integer, nullable=False),
        sa.Column("currency", sa.String(8)),
    )
    op.create_index("requests_started", "requests", ["started"])
    op.create_index("requests_key_started", "requests", ["key_id", "started"])
    op.create_table(
        "segments",
        sa.Column("uid", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("chip", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("waste_tokens", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
        sa.Column("cost", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "journal_files",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("torn", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    for table in ("journal_files", "segments", "requests", "holders", "leases", "allowances", "revisions", "keys"):
        op.drop_table(table)
