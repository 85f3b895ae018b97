"""Keys: what one allows, how its secret is made, and the table of them.

Owns `Key` and every change of the table. Must not know who presents a key or what it has spent.

A secret is 256 random bits, so that nobody can find it by trying, whatever the hash: one SHA-256 is right here, and a
slow hash, which protects guessable passwords, would only cost every request its time. The table holds the digest; the
secret itself is told once, by `create`, and is kept nowhere.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Row, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from twinline.store import tables
from twinline.store.database import Database, StoreError

PREFIX = "tl-"
SECRET_BYTES = 32
MAX_COUNT, MAX_MONEY = 10**15, 10**9  # what the ledger's 64 bits hold with room to spare
Period = Literal["month", "total"]


class Key(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the bearer of one secret may do. None: no limit. It holds nothing of the secret.

    `token_budget` and `money_budget` hold for `budget_period`: "month", a calendar month in UTC, or "total", the key's
    whole life. `money_budget` is in `currency`.

    `priority_cap`: the most urgent priority that its requests may have; a smaller number is served first. `weight`: its
    share among the keys that wait, relative to theirs. `admin`: may use the management API.

    Times are unix seconds.
    """

    id: str
    name: str
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None
    money_budget: float | None = None
    currency: str | None = None
    budget_period: Period = "month"
    weight: float = 1.0
    priority_cap: int = 0
    admin: bool = False
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None

    @property
    def limited(self) -> bool:
        """Whether anything it does is counted against a limit."""
        return not (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.token_budget is None
            and self.money_budget is None
        )

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models

    def priority(self, asked: int | None) -> int:
        """The priority of a request that asks for one, or for none."""
        return self.priority_cap if asked is None else max(asked, self.priority_cap)

    def state(self, now: float) -> Literal["valid", "revoked", "expired"]:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


# What `create` and `change` take.
SETTINGS = frozenset(Key.__struct_fields__) - {"id", "created", "revoked"}


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


class Keys:
    """The table of keys. Every method is one transaction and blocks. Raises StoreError for what cannot be done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, **settings: Any) -> tuple[Key, str]:
        """A new key and its secret, which cannot be had again. `settings` are fields of `Key`."""
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        key = Key(id=f"key_{secrets.token_hex(8)}", name=name, created=time.time(), **_known(settings))
        _check(key)
        try:
            with self._database.writing() as connection:
                connection.execute(insert(tables.keys).values(digest=digest(secret), **_columns(key)))
                _count_up(self._database, connection)
        except IntegrityError:
            raise _name_taken(name) from None
        return key, secret

    def list(self) -> list[Key]:
        """All keys, revoked ones too, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(tables.keys).order_by(tables.keys.c.created, tables.keys.c.id)).all()
        return [_key(row) for row in rows]

    def get(self, name_or_id: str) -> Key:
        with self._database.reading() as connection:
            return _find(connection, name_or_id)

    def change(self, name_or_id: str, **settings: Any) -> Key:
        """The key with other settings; gateways follow within about two seconds."""
        given = _known(settings)
        try:
            with self._database.writing() as connection:
                key = msgspec.structs.replace(_find(connection, name_or_id), **given)
                _check(key)
                connection.execute(update(tables.keys).where(tables.keys.c.id == key.id).values(**_columns(key)))
                _count_up(self._database, connection)
        except IntegrityError:
            raise _name_taken(str(given.get("name"))) from None
        return key

    def revoke(self, name_or_id: str) -> Key:
        """For good. A key that is revoked stays in the table: usage names it."""
        with self._database.writing() as connection:
            key = _find(connection, name_or_id)
            if key.revoked is None:
                key = msgspec.structs.replace(key, revoked=time.time())
                connection.execute(update(tables.keys).where(tables.keys.c.id == key.id).values(revoked=key.revoked))
                _count_up(self._database, connection)
        return key

    def snapshot(self, known: int | None) -> tuple[int, dict[bytes, Key]] | None:
        """The revision of the table and its keys by digest; None if that is still `known`."""
        with self._database.reading() as connection:
            number = connection.execute(
                select(tables.revisions.c.number).where(tables.revisions.c.subject == _SUBJECT)
            ).scalar()
            number = number or 0
            if number == known:
                return None
            rows = connection.execute(select(tables.keys)).all()
        return number, {bytes(row.digest): _key(row) for row in rows}


_SUBJECT = "keys"


def _count_up(database: Database, connection: Connection) -> None:
    """The last step of a change; on PostgreSQL changes of keys follow one another from here to their commit."""
    connection.execute(database.insert_new(tables.revisions).values(subject=_SUBJECT, number=0))
    counted = update(tables.revisions).where(tables.revisions.c.subject == _SUBJECT)
    connection.execute(counted.values(number=tables.revisions.c.number + 1))


def _find(connection: Connection, name_or_id: str) -> Key:
    """By id, else the living key of that name, else the one of that name revoked last."""
    table = tables.keys
    rows = connection.execute(
        select(table).where(or_(table.c.id == name_or_id, table.c.name == name_or_id)).with_for_update()
    ).all()
    if not rows:
        raise StoreError(f"there is no key {name_or_id!r}; `twinline keys list` shows them")
    keys = [_key(row) for row in rows]
    by_id = [key for key in keys if key.id == name_or_id]
    return by_id[0] if by_id else max(keys, key=lambda key: (key.revoked is None, key.revoked or 0))


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = settings.keys() - SETTINGS
    if unknown:
        raise StoreError(f"a key has no setting {', '.join(sorted(unknown))}")
    models: Collection[str] | None = settings.get("models")
    return dict(settings) if models is None else {**settings, "models": frozenset(models)}


def _check(key: Key) -> None:
    if not key.name or len(key.name) > 200 or not key.name.isprintable() or key.name.startswith("key_"):
        raise StoreError("a key's name has 1 to 200 printable characters and does not begin with key_")
    if key.models is not None and not key.models:
        raise StoreError("a key that may use no model is of no use; name one, or none for all")
    for field in ("requests_per_minute", "tokens_per_minute", "token_budget", "money_budget"):
        value = getattr(key, field)
        most = MAX_MONEY if field == "money_budget" else MAX_COUNT
        if value is not None and not 0 <= value <= most:
            raise StoreError(f"{field} must be between 0 and {most:,}, not {value}")
    if (key.money_budget is None) != (key.currency is None):
        raise StoreError("a money budget needs its currency, and a currency its budget: 100CNY")
    if key.currency is not None and not (3 <= len(key.currency) <= 8 and key.currency.isascii()):
        raise StoreError(f"a currency is a code such as CNY, not {key.currency!r}")
    if key.budget_period not in ("month", "total"):
        raise StoreError(f"budget_period is month or total, not {key.budget_period!r}")
    if not 0 < key.weight <= 1e6:
        raise StoreError(f"weight must be above 0 and at most 1000000, not {key.weight}")
    if not -(2**31) <= key.priority_cap < 2**31:
        raise StoreError(f"priority_cap must fit into 32 bits, not {key.priority_cap}")


def _columns(key: Key) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(key),
        "models": None if key.models is None else json.dumps(sorted(key.models), ensure_ascii=False),
        "money_budget": None if key.money_budget is None else tables.whole(key.money_budget),
    }


def _key(row: Row[Any]) -> Key:
    values = dict(row._mapping)
    del values["digest"]
    if values["models"] is not None:
        values["models"] = frozenset(json.loads(values["models"]))
    if values["money_budget"] is not None:
        values["money_budget"] /= tables.BILLIONTHS
    return Key(**values)


def _name_taken(name: str) -> StoreError:
    return StoreError(f"there is a key named {name!r} already; revoke it or choose another name")
