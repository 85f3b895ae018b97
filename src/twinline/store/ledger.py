"""The ledger: how much of each allowance is gone, over all processes.

Owns the transactions that hand out leases, take them back, and give back what dead processes held. Must not know
requests, nor why anybody wants how much.

An allowance is (key, meter, period); `taken` is what was handed out and not given back. A lease is the part that one
holder has not spent. A holder that was not heard of for `LOST_SECONDS` holds nothing any more: what it had said last
that it has unspent is free again. Clocks of the machines of one database must agree within five seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, func, insert, select, tuple_, update

from twinline.store import tables
from twinline.store.database import Database

LOST_SECONDS = 15.0
LOOK_SECONDS = 1.0  # how often a holder looks after the others
SHARE = 8  # at most this part of what is left goes into one lease, so that no process starves the others
SWEEP_CHANCE, SWEEP_SECONDS = 0.001, 86_400.0  # windows that ended a day ago are forgotten now and then

Place = tuple[str, str, int]  # key id, meter, period


class Order(NamedTuple):
    """What a holder says and wants of one allowance. Amounts are whole numbers of the meter's unit.

    `spent`: out of its lease since its last order; negative: refunded into it. `owed`: spent beyond the lease. `back`:
    given back from it.
    `least`: a grant below this is of no use. Up to `need` it may take all that is left, and that counts as spent at
    once; beyond, up to `want`, a `SHARE` of what is left.
    """

    place: Place
    limit: int
    until: float | None
    spent: int = 0
    owed: int = 0
    back: int = 0
    least: int = 0
    need: int = 0
    want: int = 0


class Grant(NamedTuple):
    """`rest`: what nobody has taken. `held`: what other holders have unspent, and may give back."""

    place: Place
    granted: int
    rest: int
    held: int


class Ledger:
    """One holder's dealings. Methods block, and raise what the database raises; nothing is changed then."""

    def __init__(self, database: Database, holder: str) -> None:
        self._database, self._holder = database, holder
        self._holders = 1
        self._looked_at = float("-inf")

    def exchange(self, orders: Sequence[Order], now: float) -> list[Grant] | None:
        """Carries out all orders in one transaction, and says that the holder lives.

        None: the holder was counted as lost, and what it held was given back for it. Nothing of `orders` is done then.
        """
        if not 0 <= now - self._looked_at < LOOK_SECONDS:
            self._free_lost(now)
            self._looked_at = now
        with self._database.writing(durable=False) as connection:
            if not self._heard(connection, now):
                return None
            return self._carry_out(connection, orders)

    def leave(self, backs: Iterable[Order]) -> None:
        """Gives everything back at the end."""
        with self._database.writing(durable=False) as connection:
            if connection.execute(_holder_seen, {"holder": self._holder}).first() is None:
                return  # counted as lost: all was given back already
            self._carry_out(connection, list(backs))
        with self._database.writing(durable=False) as connection:
            _give_back(connection, self._holder)

    def taken(self, key_id: str) -> dict[tuple[str, int], int]:
        """What is taken of a key's allowances, by meter and period."""
        table = tables.allowances
        with self._database.reading() as connection:
            rows = connection.execute(select(table).where(table.c.key_id == key_id)).all()
        return {(row.meter, row.period): row.taken for row in rows}

    def _heard(self, connection: Connection, now: float) -> bool:
        known = connection.execute(_hear, {"holder_": self._holder, "now": now}).rowcount
        if known:
            return True
        connection.execute(insert(tables.holders).values(holder=self._holder, seen=now))
        # A holder that was never there has lost nothing; one that was must first forget its leases.
        return False

    def _free_lost(self, now: float) -> None:
        """In a transaction of its own: on PostgreSQL a transaction locks allowances once, in one order everywhere."""
        overdue = tables.holders.c.seen < now - LOST_SECONDS
        with self._database.reading() as connection:
            self._holders = connection.execute(select(func.count()).select_from(tables.holders)).scalar_one()
            lost = connection.execute(select(tables.holders.c.holder).where(overdue)).scalars().all()
        for holder in lost:
            with self._database.writing(durable=False) as connection:
                at = (tables.holders.c.holder == holder) & overdue
                if connection.execute(select(tables.holders).where(at).with_for_update(skip_locked=True)).first():
                    _give_back(connection, holder)
        if random.random() < SWEEP_CHANCE:
            with self._database.writing(durable=False) as connection:
                for table in (tables.allowances, tables.leases):
                    connection.execute(delete(table).where(table.c.until < now - SWEEP_SECONDS))

    def _carry_out(self, connection: Connection, orders: Sequence[Order]) -> list[Grant]:
        if not orders:
            return []
        orders = sorted(orders, key=lambda order: order.place)
        places = [order.place for order in orders]
        new = [_row(order.place) | {"taken": 0, "until": order.until} for order in orders]
        connection.execute(self._database.insert_new(tables.allowances), new)
        taken = _taken(connection, places)
        leases = _leases(connection, places)
        grants, changes, mine = [], [], []
        for order in orders:
            held_by = leases.get(order.place, {})
            unspent = max(0, held_by.get(self._holder, 0) - order.spent - order.back)
            gone = taken[order.place] + order.owed - order.back
            rest = order.limit - gone
            granted = _grant(order, rest, max(SHARE, 2 * self._holders))
            held = sum(amount for holder, amount in held_by.items() if holder != self._holder)
            grants.append(Grant(order.place, granted, max(0, rest - granted), held))
            if gone + granted != taken[order.place]:
                changes.append({"k": order.place[0], "m": order.place[1], "p": order.place[2], "n": gone + granted})
            unspent += kept(order, granted)
            if unspent != held_by.get(self._holder):
                row = _row(order.place) | {"holder": self._holder, "until": order.until}
                mine.append(row | {"unspent": unspent})
        if changes:
            connection.execute(_set_taken, changes)
        if mine:
            connection.execute(self._database.put(tables.leases, ("unspent",)), mine)
        return grants


def kept(order: Order, granted: int) -> int:
    """The part of a grant that stays in the lease for now."""
    return max(0, granted - order.need)


def _grant(order: Order, rest: int, share: int) -> int:
    if rest <= 0 or rest < order.least:
        return 0
    return min(rest, max(order.need, min(order.want, rest // share)))


def _row(place: Place) -> dict[str, object]:
    return {"key_id": place[0], "meter": place[1], "period": place[2]}


def _taken(connection: Connection, places: list[Place]) -> dict[Place, int]:
    table = tables.allowances
    found: dict[Place, int] = {}
    for part in _parts(places):
        rows = connection.execute(
            select(table).where(tuple_(table.c.key_id, table.c.meter, table.c.period).in_(part))
            .order_by(table.c.key_id, table.c.meter, table.c.period).with_for_update()
        )  # fmt: skip
        found.update({(row.key_id, row.meter, row.period): row.taken for row in rows})
    return found


def _leases(connection: Connection, places: list[Place]) -> dict[Place, dict[str, int]]:
    table = tables.leases
    found: dict[Place, dict[str, int]] = {}
    for part in _parts(places):
        rows = connection.execute(select(table).where(tuple_(table.c.key_id, table.c.meter, table.c.period).in_(part)))
        for row in rows:
            found.setdefault((row.key_id, row.meter, row.period), {})[row.holder] = row.unspent
    return found


def _parts(places: list[Place]) -> Iterable[list[Place]]:
    return (places[start : start + 300] for start in range(0, len(places), 300))


def _give_back(connection: Connection, holder: str) -> None:
    """All that a holder has unspent; it is none any more."""
    table = tables.leases
    rows = connection.execute(
        select(table).where(table.c.holder == holder).order_by(table.c.key_id, table.c.meter, table.c.period)
    ).all()
    backs = [{"k": row.key_id, "m": row.meter, "p": row.period, "n": row.unspent} for row in rows if row.unspent]
    if backs:
        connection.execute(_lower_taken, backs)
    connection.execute(delete(table).where(table.c.holder == holder))
    connection.execute(delete(tables.holders).where(tables.holders.c.holder == holder))


_at = (
    (tables.allowances.c.key_id == bindparam("k"))
    & (tables.allowances.c.meter == bindparam("m"))
    & (tables.allowances.c.period == bindparam("p"))
)
_set_taken = update(tables.allowances).where(_at).values(taken=bindparam("n"))
_lower_taken = update(tables.allowances).where(_at).values(taken=tables.allowances.c.taken - bindparam("n"))
_hear = update(tables.holders).where(tables.holders.c.holder == bindparam("holder_")).values(seen=bindparam("now"))
_holder_seen = select(tables.holders).where(tables.holders.c.holder == bindparam("holder"))
