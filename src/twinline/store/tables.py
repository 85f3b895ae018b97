"""The tables, as the newest migration leaves them.

Owns names and types. Times are unix seconds (float), money is a whole number of billionths of its currency, so that
sums are exact. Must not know who reads or writes; a change here needs a migration beside it (a test compares the two).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

BILLIONTHS = 1_000_000_000
metadata = MetaData()


def whole(money: float) -> int:
    """Money as the tables hold it."""
    return round(money * BILLIONTHS)


keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("models", Text),  # JSON list; null: all
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("token_budget", BigInteger),
    Column("money_budget", BigInteger),
    Column("currency", String(8)),
    Column("budget_period", String(8), nullable=False),
    Column("weight", Float(53), nullable=False),
    Column("priority_cap", Integer, nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53)),
    Column("revoked", Float(53)),
    # A revoked key's name is free again.
    Index(
        "keys_live_name",
        "name",
        unique=True,
        sqlite_where=Column("revoked").is_(None),
        postgresql_where=Column("revoked").is_(None),
    ),
)

# One row a subject, counted up with every change: what a process asks to learn whether to read again.
revisions = Table(
    "revisions",
    metadata,
    Column("subject", String(32), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# What processes have taken out of an allowance, spent or still held, in one window.
allowances = Table(
    "allowances",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("meter", String(16), primary_key=True),
    Column("period", BigInteger, primary_key=True),
    Column("taken", BigInteger, nullable=False),
    Column("until", Float(53)),  # end of the window; null: none
    Index("allowances_until", "until"),
)

# The part that one process holds unspent, as it said last; given back for it when it is no more heard of.
leases = Table(
    "leases",
    metadata,
    Column("holder", String(32), primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("meter", String(16), primary_key=True),
    Column("period", BigInteger, primary_key=True),
    Column("unspent", BigInteger, nullable=False),
    Column("until", Float(53)),
    Index("leases_of_an_allowance", "key_id", "meter", "period"),
)

holders = Table(
    "holders",
    metadata,
    Column("holder", String(32), primary_key=True),
    Column("seen", Float(53), nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("uid", String(64), primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("key_id", String(32)),
    Column("model", Text, nullable=False),
    Column("started", Float(53), nullable=False),
    Column("day", String(10), nullable=False),  # of `started`, in UTC
    Column("seconds", Float(53), nullable=False),
    Column("status", String(32), nullable=False),
    Column("choices", Integer, nullable=False),
    Column("currency", String(8)),
    Index("requests_started", "started"),
    Index("requests_key_started", "key_id", "started"),
)

segments = Table(
    "segments",
    metadata,
    Column("uid", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("line", Text, nullable=False),
    Column("chip", Text),
    Column("attempt", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("waste_tokens", BigInteger, nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("cost", BigInteger, nullable=False),
)

# How far each journal file has been folded; written in the transaction that holds its records.
journal_files = Table(
    "journal_files",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("offset", BigInteger, nullable=False),
    Column("torn", BigInteger, nullable=False),
)

__all__ = [
    "BILLIONTHS", "allowances", "holders", "journal_files", "keys", "leases", "metadata", "requests", "revisions",
    "segments", "whole",
]  # fmt: skip
