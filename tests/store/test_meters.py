"""One allowance in one process: windows, what is asked for, and what is given back."""

from __future__ import annotations

from datetime import UTC, datetime

from twinline.store.ledger import Grant
from twinline.store.meters import Meter, window


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def reply(meter: Meter, now: float, *, granted: int, rest: int = 0, held: int = 0, need: int = 1) -> None:
    """What `need` was for is spent at once; `granted` is the lease beyond it."""
    order = meter.order(now, need, min(need, 1))
    assert order is not None
    meter.take(order, Grant(order.place, granted and granted + need, rest, held), now)
    meter.left -= need if granted else 0


def test_windows() -> None:
    assert window("minute", 120.0) == (2, 120.0, 180.0)
    assert window("minute", 179.999)[0] == 2
    assert window("month", at("2026-12-31T23:59:59")) == (202612, at("2026-12-01"), at("2027-01-01"))
    assert window("month", at("2027-01-01"))[0] == 202701
    assert window("total", 5.0) == (0, 0.0, None)


def test_a_lease_ends_with_its_minute_and_what_is_owed_does_not() -> None:
    meter = Meter("k", "tokens", 1000, "minute")
    reply(meter, 60.0, granted=100)
    meter.left -= 30
    meter.roll(119.9)
    assert meter.left == 70
    meter.roll(120.0)
    assert (meter.left, meter.reported) == (0, 0)
    meter.spend(10, 35, admitted=90.0)  # admitted in the minute before: only the excess counts
    assert meter.left == -25
    meter.spend(50, 20, admitted=130.0)
    assert meter.left == 5
    meter.left = -25
    meter.roll(180.0)
    order = meter.order(180.0, 0, 0)
    assert order is not None and order.owed == 25 and meter.left == 0


def test_a_small_limit_asks_for_what_is_needed_and_no_more() -> None:
    meter = Meter("k", "requests", 10, "minute")
    order = meter.order(60.0, 1, 1)
    assert order is not None and (order.need, order.want) == (1, 0)


def test_a_busy_meter_asks_for_two_seconds_ahead() -> None:
    meter = Meter("k", "requests", 60_000, "minute")
    reply(meter, 60.0, granted=1000)
    meter.left -= 400
    order = meter.order(61.0, 0, 0)
    assert order is not None
    assert (order.spent, order.want) == (400, 2 * 400 - 600)


def test_what_a_waiter_needed_is_not_said_to_be_unspent() -> None:
    meter = Meter("k", "requests", 10, "minute")
    order = meter.order(60.0, 3, 1)
    assert order is not None
    meter.take(order, Grant(order.place, 3, 7, 0), 60.0)
    assert (meter.left, meter.reported) == (3, 0)
    meter.left -= 2  # one left without it
    order = meter.order(60.5, 0, 0)
    assert order is not None and order.spent == -1


def test_an_idle_lease_is_given_back_and_cannot_be_spent_meanwhile() -> None:
    meter = Meter("k", "requests", 1000, "minute")
    reply(meter, 60.0, granted=100)
    assert meter.order(61.9, 0, 0) is None
    order = meter.order(62.1, 0, 0)
    assert order is not None and order.back == 100
    assert meter.left == 0
    meter.undo(order)
    assert meter.left == 100


def test_a_refusal_is_remembered_as_long_as_it_is_true() -> None:
    meter = Meter("k", "requests", 10, "minute")
    reply(meter, 60.0, granted=0, rest=0)
    assert meter.none_left(1, 119.0) and meter.seconds_to_wait(100.0) == 20.0
    meter.roll(120.0)
    assert not meter.none_left(1, 120.0)
    reply(meter, 120.0, granted=0, rest=0, held=3)  # others may give back
    assert meter.none_left(1, 120.5) and not meter.none_left(1, 121.5)
    meter.set_limit(20)
    assert not meter.none_left(1, 120.5)
    assert meter.none_left(21, 200.0)


def test_what_was_refunded_is_said_too() -> None:
    meter = Meter("k", "tokens", 1000, "minute")
    reply(meter, 60.0, granted=100)
    meter.left -= 100
    order = meter.order(60.5, 0, 0)
    assert order is not None and order.spent == 100
    meter.take(order, Grant(order.place, 0, 900, 0), 60.5)
    meter.spend(100, 40, admitted=60.0)
    order = meter.order(61.0, 0, 0)
    assert order is not None and order.spent == -60
    meter.take(order, Grant(order.place, 0, 900, 0), 61.0)
    assert meter.reported == meter.left == 60


def test_a_forgotten_holder_owes_what_it_spent_since_it_was_heard() -> None:
    meter = Meter("k", "tokens", 1000, "minute")
    reply(meter, 60.0, granted=100)
    meter.left -= 30
    meter.forget()
    assert (meter.left, meter.reported) == (-30, 0)
