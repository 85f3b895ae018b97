"""Limits of keys, checked without asking the database, and held over all gateway processes.

Owns admission and settling, and the exchange with the ledger in the background. Must not know HTTP, or how a key is
found.

Every process takes leases from the ledger: parts of an allowance that it may spend by itself. A lease is what the key
spends in about two seconds, at least a hundredth of the limit, at most an eighth of what is left: near the limit it is
what the waiting requests need and no more, so that small limits are right to the last request.

Never too much, except: requests per minute are never exceeded. Tokens and money are exceeded by what running requests
use beyond what was set aside for them (`tokens_estimate`, `cost_estimate`), and by nothing if those are upper bounds.
Never too little, except: a process may refuse while others hold leases, each at most an eighth of what was left, which
they give back when they have not used them for two seconds. A process that is killed loses from the count (never from
the usage records) what it spent from its leases since its last report, about half a second ago at most; the rest of
them is free again after 15 seconds. While the database cannot be reached, or does not answer, leases hold for ten
seconds; then keys that have limits are refused with 503, others go on.

A minute is a minute of the clock, a month one of the calendar in UTC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal

from twinline.store.beside import Beside
from twinline.store.database import Database
from twinline.store.keys import Key
from twinline.store.ledger import Ledger, Order
from twinline.store.meters import Kind, Meter, Window
from twinline.store.refusal import Refusal, refusal_of, unavailable
from twinline.store.tables import whole

TICK_SECONDS = 0.5
PATIENCE_SECONDS = 5.0  # for the database: whoever waits longer is told that it does not answer
HEARTBEAT_SECONDS = 3.0
FRESH_SECONDS = 10.0  # a lease is good for so long after the ledger was spoken to; then somebody may count us as lost
FORGET_SECONDS = 120.0
ROUNDS = 20
_BREATH_SECONDS = 0.005
_log = logging.getLogger(__name__)


class NeedsLease(Enum):
    """What `admit` says when this process must ask the ledger first: `await ensure(...)`."""

    NEEDS_LEASE = "needs lease"


NEEDS_LEASE: Final = NeedsLease.NEEDS_LEASE
Verdict = Refusal | Literal[NeedsLease.NEEDS_LEASE] | None


class _Account:
    """A key's meters in this process."""

    __slots__ = ("key", "meters", "money", "requests", "rolls", "seen", "token_budget", "tokens")

    def __init__(self, key: Key, old: _Account | None) -> None:
        """`old`: the account before the key's settings changed. Its meters go on: an exchange may be under way."""
        before: dict[tuple[Kind, Window], Meter] = (
            {} if old is None else {(meter.kind, meter.window): meter for meter in old.meters}
        )

        def meter(kind: Kind, limit: int | None, window: Window) -> Meter | None:
            if limit is None:
                return None
            found = before.get((kind, window)) or Meter(key.id, kind, limit, window)
            found.set_limit(limit)
            return found

        money = None if key.money_budget is None else whole(key.money_budget)
        self.key = key
        self.requests = meter("requests", key.requests_per_minute, "minute")
        self.tokens = meter("tokens", key.tokens_per_minute, "minute")
        self.token_budget = meter("token_budget", key.token_budget, key.budget_period)
        self.money = meter("money_budget", money, key.budget_period)
        every = (self.requests, self.tokens, self.token_budget, self.money)
        self.meters: list[Meter] = [found for found in every if found is not None]
        self.rolls = self.seen = 0.0

    def roll(self, now: float) -> None:
        for meter in self.meters:
            meter.roll(now)
        self.rolls = min((meter.until for meter in self.meters if meter.until is not None), default=float("inf"))


@dataclass(frozen=True, slots=True)
class _Waiter:
    account: _Account
    tokens: int
    cost: int
    done: asyncio.Future[str | None]


class Limits:
    """The limits of all keys in one process. Everything belongs to one event loop; `run` must be running there."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger = Ledger(database, secrets.token_hex(8))
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._fresh_until = float("-inf")
        self._waiters: list[_Waiter] = []
        self._wake: asyncio.Event | None = None
        self._exchanging = asyncio.Lock()
        self._woken = False
        self._failing = False
        self._told_at = self._ticked_at = float("-inf")
        self._beside = Beside("limits")
        self._mute = False  # the database takes a question and does not answer

    def admit(self, key: Key, tokens_estimate: int, now: float, cost_estimate: float = 0.0) -> Verdict:
        """None: go on, and call `settle` or `refund` once. `now` is unix seconds.

        `tokens_estimate`: prompt and completion tokens to set aside until then; not the model's whole context where a
        request names no limit, or a small allowance would never do. What is used beyond it is counted when settled.
        """
        account = self._accounts.get(key.id)
        if account is None or account.key is not key:
            if not key.limited:
                return None
            account = self._open(key)
        if now >= account.rolls:
            account.roll(now)
        account.seen = now
        if now > self._fresh_until:
            return NEEDS_LEASE
        need = tokens_estimate if tokens_estimate > 0 else 1
        requests, tokens, budget, money = account.requests, account.tokens, account.token_budget, account.money
        if requests is not None and requests.left < 1:
            return self._short(account, requests, 1, now)
        if tokens is not None and tokens.left < need:
            return self._short(account, tokens, need, now)
        if budget is not None and budget.left < need:
            return self._short(account, budget, need, now)
        if money is not None:
            cost = whole(cost_estimate)
            if money.left < (cost or 1):
                return self._short(account, money, cost or 1, now)
            money.left -= cost
            if money.left < money.low:
                self._ask()
        if requests is not None:
            requests.left -= 1
            if requests.left < requests.low:
                self._ask()
        if tokens is not None:
            tokens.left -= tokens_estimate
            if tokens.left < tokens.low:
                self._ask()
        if budget is not None:
            budget.left -= tokens_estimate
            if budget.left < budget.low:
                self._ask()
        return None

    async def ensure(self, key: Key, tokens_estimate: int, cost_estimate: float = 0.0) -> Refusal | None:
        """For when `admit` says NEEDS_LEASE: asks the ledger for what the request needs, and admits it or not."""
        if self._wake is None:
            raise RuntimeError("Limits.run is not running")
        for _ in range(ROUNDS):
            verdict = self.admit(key, tokens_estimate, self._clock(), cost_estimate)
            if verdict is not NEEDS_LEASE:
                return verdict
            if self._mute:
                return unavailable(_MUTE)
            done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
            cost = max(1, whole(cost_estimate))
            self._waiters.append(_Waiter(self._accounts[key.id], max(1, tokens_estimate), cost, done))
            self._wake.set()
            failure = await done
            if failure is not None:
                return unavailable(failure)
        return unavailable("other requests of the key were quicker")

    def settle(
        self,
        key: Key,
        *,
        tokens_estimate: int,
        tokens: int,
        admitted: float,
        cost: float = 0.0,
        cost_estimate: float = 0.0,
    ) -> None:
        """What an admitted request really used; the estimates and `now` as they were given to `admit`."""
        account = self._accounts.get(key.id)
        if account is None:
            if not key.limited:
                return
            account = self._open(key)
            account.roll(admitted)
        account.seen = self._clock()
        if account.tokens is not None:
            account.tokens.spend(tokens_estimate, tokens, admitted)
        if account.token_budget is not None:
            account.token_budget.spend(tokens_estimate, tokens, admitted)
        if account.money is not None:
            account.money.spend(whole(cost_estimate), whole(cost), admitted)

    def refund(self, key: Key, *, tokens_estimate: int, admitted: float, cost_estimate: float = 0.0) -> None:
        """Undoes `admit`: the gateway itself could not serve the request. It is not counted as one."""
        account = self._accounts.get(key.id)
        if account is not None and account.requests is not None:
            account.requests.spend(1, 0, admitted)
        self.settle(key, tokens_estimate=tokens_estimate, tokens=0, admitted=admitted, cost_estimate=cost_estimate)

    async def run(self) -> None:
        """Keeps leases until cancelled; gives them back then."""
        self._wake = asyncio.Event()
        # It makes itself known: else the first request would wait for that, and for SQLite to make its log.
        exchange: asyncio.Task[Any] = asyncio.create_task(self._tell([], self._clock()))
        try:
            await asyncio.shield(exchange)
            while True:
                # Not wait_for: that of Python 3.11 may lose a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
                self._woken = False
                exchange = asyncio.create_task(self._exchange())
                await asyncio.shield(exchange)
                await asyncio.sleep(_BREATH_SECONDS)  # gathers what comes meanwhile
        finally:
            self._wake = None
            await asyncio.wait([exchange], timeout=PATIENCE_SECONDS)  # one that is under way counts
            for waiter in self._waiters:
                _answer(waiter, "the gateway is stopping")
            await self._leave()

    def _open(self, key: Key) -> _Account:
        account = self._accounts[key.id] = _Account(key, self._accounts.get(key.id))
        return account

    def _ask(self) -> None:
        if not self._woken and self._wake is not None:
            self._woken = True
            self._wake.set()

    def _short(self, account: _Account, meter: Meter, need: int, now: float) -> Verdict:
        if meter.none_left(need, now):
            return refusal_of(account.key, meter, need, now)
        return NEEDS_LEASE

    async def _exchange(self) -> None:
        """One exchange with the ledger, or two: the first of a process only makes it known."""
        async with self._exchanging:
            await self._exchange_alone()

    async def _exchange_alone(self) -> None:
        waiters, self._waiters = self._waiters, []
        failure = None
        for _ in range(2):
            now = self._clock()
            orders = self._orders(waiters, now)
            due = now - self._told_at >= HEARTBEAT_SECONDS and self._holding()
            if not orders and not due and not waiters:
                break
            failure = await self._tell(orders, now, waiters)
            if failure != _LOST:
                break
        for waiter in waiters:
            _answer(waiter, failure)

    def _holding(self) -> bool:
        return any(meter.reported for account in self._accounts.values() for meter in account.meters)

    async def _tell(self, orders: list[tuple[Meter, Order]], now: float, waiters: Sequence[_Waiter] = ()) -> str | None:
        """What went wrong; `_LOST`: ask again. Where no answer comes, those that wait are told so, and so is who asks
        meanwhile; what was asked holds all the same, when it is answered."""
        asked = self._beside.do(self._ledger.exchange, [order for _, order in orders], now)
        if not (await asyncio.wait((asked,), timeout=PATIENCE_SECONDS))[0]:
            _log.error("limits cannot be checked: %s", _MUTE)
            self._mute = True
            for waiter in (*waiters, *self._waiters):
                _answer(waiter, _MUTE)
        try:
            grants = await asked
        except Exception as error:
            for meter, order in orders:
                meter.undo(order)
            if not self._failing:
                _log.error("limits cannot be checked: %s", getattr(error, "orig", None) or error)
            self._failing = True
            return "the database of limits cannot be reached"
        finally:
            self._mute = False
        self._failing = False
        self._told_at = now
        if grants is None:
            for meter, order in orders:
                meter.undo(order)
            for account in self._accounts.values():
                for meter in account.meters:
                    meter.forget()
            return _LOST
        self._fresh_until = now + FRESH_SECONDS
        granted = {grant.place: grant for grant in grants}
        for meter, order in orders:
            meter.take(order, granted[order.place], self._clock())
        return None

    def _orders(self, waiters: list[_Waiter], now: float) -> list[tuple[Meter, Order]]:
        needs: dict[_Account, tuple[int, int, int, int, int]] = {}
        for waiter in waiters:
            many, tokens, least, cost, cheapest = needs.get(waiter.account, (0, 0, waiter.tokens, 0, waiter.cost))
            needs[waiter.account] = (
                many + 1, tokens + waiter.tokens, min(least, waiter.tokens), cost + waiter.cost,
                min(cheapest, waiter.cost),
            )  # fmt: skip
        orders: list[tuple[Meter, Order]] = []
        forgotten = []
        for account in self._accounts.values():
            idle = account.seen < self._ticked_at and not any(m.left or m.reported for m in account.meters)
            if idle and account not in needs:
                if now - account.seen > FORGET_SECONDS:
                    forgotten.append(account.key.id)
                continue
            many, tokens, least, cost, cheapest = needs.get(account, (0, 0, 0, 0, 0))
            account.roll(now)
            for meter in account.meters:
                if meter.kind == "requests":
                    order = meter.order(now, many, min(many, 1))
                elif meter.kind == "money_budget":
                    order = meter.order(now, cost, cheapest)
                else:
                    order = meter.order(now, tokens, least)
                if order is not None:
                    orders.append((meter, order))
        for key_id in forgotten:
            del self._accounts[key_id]
        self._ticked_at = now
        return orders

    async def _leave(self) -> None:
        now = self._clock()
        backs = []
        for account in self._accounts.values():
            for meter in account.meters:
                meter.roll(now)
                if (order := meter.last_order()) is not None:
                    backs.append(order)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.shield(self._beside.do(self._ledger.leave, backs))
        except Exception as error:
            _log.warning("leases were not given back: %s", getattr(error, "orig", None) or str(error) or _MUTE)
        finally:
            self._beside.close()


_LOST, _MUTE = "lost", "the database of limits does not answer"


def _answer(waiter: _Waiter, failure: str | None) -> None:
    if not waiter.done.done():
        waiter.done.set_result(failure)
