"""One allowance as one process sees it: what it holds, and what it knows of the rest.

Owns the counting within a window and how much to ask for next. Must not know the database or other meters.
"""

from __future__ import annotations

import time
from calendar import timegm
from typing import Literal

from twinline.store.ledger import Grant, Order, kept

MINUTE = 60.0
IDLE_SECONDS = 2.0  # a lease that nothing was taken from for so long is given back
AGAIN_SECONDS = 1.0  # how long "others hold the rest" is believed
AHEAD_SECONDS = 2.0  # a lease should last so long

Kind = Literal["requests", "tokens", "token_budget", "money_budget"]
Window = Literal["minute", "month", "total"]


def window(kind: Window, now: float) -> tuple[int, float, float | None]:
    """The window that `now` (unix seconds, UTC) is in: its number, when it began and when it ends."""
    if kind == "minute":
        number = int(now // MINUTE)
        return number, number * MINUTE, (number + 1) * MINUTE
    if kind == "month":
        year, month = time.gmtime(now)[:2]
        after = (year + 1, 1) if month == 12 else (year, month + 1)
        return year * 100 + month, float(timegm((year, month, 1, 0, 0, 0))), float(timegm((*after, 1, 0, 0, 0)))
    return 0, 0.0, None


class Meter:
    """`left` may fall below 0: more was spent than was held. That is owed, and paid by the next order."""

    __slots__ = (
        "_asked", "_at", "_rest", "_rest_until", "began", "key_id", "kind", "left", "limit", "low", "others", "period",
        "reported", "until", "window",
    )  # fmt: skip

    def __init__(self, key_id: str, kind: Kind, limit: int, window: Window) -> None:
        self.key_id, self.kind, self.limit, self.window = key_id, kind, limit, window
        self.period = -1
        self.began = 0.0
        self.until: float | None = None
        self.left = self.reported = 0
        self.low = 0  # below this it is time to ask for more
        self.others = 0  # what other processes held when the ledger was asked last
        self._rest, self._rest_until = 0, 0.0
        self._at = self._asked = 0.0

    def roll(self, now: float) -> None:
        """Into the window of `now`. A lease ends with its window, what is owed does not."""
        period, began, until = window(self.window, now)
        if period != self.period:
            self.period, self.began, self.until = period, began, until
            self.left, self.reported, self.low = min(self.left, 0), 0, 0
            self._rest_until = 0.0
            self._at = now

    def none_left(self, need: int, now: float) -> bool:
        """Whether the ledger is known to have no `need` for us now."""
        return need > self.limit or (now < self._rest_until and self.left + self._rest < need)

    def spend(self, reserved: int, used: int, admitted: float) -> None:
        """Counts what a request really used, of which `reserved` was taken when it was admitted (unix seconds).

        What was reserved in a window that has ended is gone with it; what exceeds it counts now.
        """
        if admitted >= self.began:
            self.left += reserved - used
        elif used > reserved:
            self.left -= used - reserved

    def seconds_to_wait(self, now: float) -> float | None:
        """Until it may be otherwise; None: not by waiting."""
        if self.others:
            return AGAIN_SECONDS
        return None if self.until is None else max(0.0, self.until - now)

    def order(self, now: float, need: int, least: int) -> Order | None:
        """What to tell and ask the ledger now; None if nothing. `need`: of those who wait. The reply goes to `take`."""
        self.roll(now)
        owed = max(0, -self.left)
        held = max(0, self.left)
        spent = self.reported - held
        back = want = 0
        if spent > 0 or owed or need > held:
            seconds = max(now - self._asked, 0.01)
            ahead = max(round(max(0, spent + owed + need) / seconds * AHEAD_SECONDS), self.limit // 100)
            want = max(0, ahead - held)
            self._at = now
        elif held and now - self._at >= IDLE_SECONDS:
            back = held
        need = max(0, need - held)
        if not (spent or owed or back or need):
            return None
        self.left = held - back
        self._asked = now
        return Order(
            (self.key_id, self.kind, self.period), self.limit, self.until, spent, owed, back,
            max(0, least - held), need, want,
        )  # fmt: skip

    def take(self, order: Order, grant: Grant, now: float) -> None:
        """The ledger's reply to `order`."""
        if order.place[2] != self.period:
            return  # the window ended meanwhile, and the lease with it
        self.reported += kept(order, grant.granted) - order.spent - order.back
        self.left += grant.granted
        self.low = self.left // 2 if grant.granted else 0
        self._rest, self.others = grant.rest, grant.held
        # Requests come back only from leases; tokens and money also when an answer was shorter than was set aside.
        sure = self.kind == "requests" and not grant.held and self.until is not None
        self._rest_until = self.until if sure and self.until is not None else now + AGAIN_SECONDS
        if grant.granted:
            self._at = now

    def undo(self, order: Order) -> None:
        """The ledger could not be reached: nothing of `order` happened."""
        if order.place[2] == self.period:
            self.left += order.back - order.owed
        else:
            self.left -= order.owed

    def last_order(self) -> Order | None:
        """Everything back, at the end."""
        owed, held = max(0, -self.left), max(0, self.left)
        spent = self.reported - held
        if not (owed or held or spent):
            return None
        return Order((self.key_id, self.kind, self.period), self.limit, self.until, spent, owed, held)

    def set_limit(self, limit: int) -> None:
        """Another limit; what is held and owed stays."""
        if limit != self.limit:
            self.limit, self._rest_until = limit, 0.0

    def forget(self) -> None:
        """What was held is held no more, and what was said to be unspent is free again for all."""
        self.left -= self.reported
        self.reported = 0
