"""Limits over several processes: never too much, and all of it in the end."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from twinline.store import tables
from twinline.store.database import Database
from twinline.store.keys import Key, Keys
from twinline.store.ledger import LOST_SECONDS, Ledger, Order
from twinline.store.limits import NEEDS_LEASE, Limits
from twinline.store.refusal import Refusal

START = 1_800_000_000.0  # a whole minute
MINUTE = int(START // 60)


class Clock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key(**settings: Any) -> Key:
    return Key(id="key_1", name="alice", **settings)


async def ask(limits: Limits, asked: Key, tokens: int = 1, cost: float = 0.0) -> Refusal | None:
    verdict = limits.admit(asked, tokens, limits._clock(), cost)
    return await limits.ensure(asked, tokens, cost) if verdict is NEEDS_LEASE else verdict


def with_limits(database: Database, clock: Clock, number: int, work: Callable[..., Awaitable[None]]) -> None:
    """`work(*limits)` with that many processes' limits running."""

    async def go() -> None:
        limits = [Limits(database, clock=clock) for _ in range(number)]
        running = [asyncio.create_task(one.run()) for one in limits]
        await asyncio.sleep(0)
        try:
            working = asyncio.ensure_future(work(*limits))
            done, _ = await asyncio.wait([working, *running], timeout=60, return_when=asyncio.FIRST_COMPLETED)
            assert done, "it takes too long"
            for task in done:
                task.result()
            assert working.done(), "the limits have stopped running"
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    asyncio.run(go())


def taken(database: Database, meter: str) -> int:
    table = tables.allowances
    with database.reading() as connection:
        return int(connection.execute(select(func.sum(table.c.taken)).where(table.c.meter == meter)).scalar() or 0)


def leased(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.execute(select(func.sum(tables.leases.c.unspent))).scalar() or 0)


def test_a_key_without_limits_asks_nobody(database: Database) -> None:
    limits = Limits(database)
    assert limits.admit(key(), 10**9, time.time(), 1e9) is None
    limits.settle(key(), tokens_estimate=1, tokens=5, admitted=time.time())
    assert limits._accounts == {}


def test_a_process_is_known_before_it_is_asked(database: Database) -> None:
    """SQLite makes its log with the first write, and waits for the disk: no request should have to."""

    def known() -> int:
        with database.reading() as connection:
            return connection.execute(select(func.count()).select_from(tables.holders)).scalar_one()

    async def work(*limits: Limits) -> None:
        end = time.monotonic() + 30
        while known() < len(limits):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    with_limits(database, Clock(), 2, work)
    assert known() == 0  # and they leave nothing


def test_a_small_limit_is_right_to_the_request_over_two_processes(database: Database) -> None:
    clock, asked = Clock(), key(requests_per_minute=10)

    async def work(one: Limits, other: Limits) -> None:
        for minute in range(3):
            clock.now = START + 60 * minute
            answers = [await ask(one, asked) for _ in range(3)]
            answers += [await ask(other, asked) for _ in range(9)]
            answers += [await ask(one, asked) for _ in range(3)]
            assert [answer is None for answer in answers] == [True] * 10 + [False] * 5
            refused = answers[-1]
            assert refused is not None
            assert (refused.code, refused.status) == ("rate_limit_exceeded", 429)
            assert refused.retry_after_seconds == 60
            assert "alice has 10 requests per minute" in refused.reason

    with_limits(database, clock, 2, work)


def test_many_at_once_are_served_to_the_limit_and_not_beyond(database: Database) -> None:
    clock, asked = Clock(), key(requests_per_minute=25)

    async def work(*limits: Limits) -> None:
        answers = await asyncio.gather(*(ask(one, asked) for _ in range(30) for one in limits))
        assert sum(answer is None for answer in answers) == 25

    with_limits(database, clock, 3, work)
    assert taken(database, "requests") == 25


def test_all_of_a_large_limit_is_usable_and_no_more(database: Database) -> None:
    """Leases, uneven use, idle ones given back: still exact in the end."""
    clock, asked = Clock(), key(requests_per_minute=3000)

    async def work(*limits: Limits) -> None:
        rng, served, refused_for = random.Random(1), 0, 0.0
        while refused_for < 6.0:
            one = limits[0] if rng.random() < 0.9 else rng.choice(limits)
            answer = await ask(one, asked)
            served += answer is None
            clock.now += 0.002 if answer is None else 0.25
            refused_for = 0.0 if answer is None else refused_for + 0.25
            if answer is not None:
                for limit in limits:
                    await limit._exchange()
            assert clock.now < START + 59
        assert served == 3000

    with_limits(database, clock, 3, work)
    assert taken(database, "requests") == 3000


def test_tokens_set_aside_come_back_and_what_exceeds_is_counted(database: Database) -> None:
    clock, asked = Clock(), key(tokens_per_minute=1000)

    async def work(limits: Limits, _: Limits) -> None:
        assert await ask(limits, asked, 600) is None
        refused = await ask(limits, asked, 600)
        assert refused is not None and refused.code == "rate_limit_exceeded"
        limits.settle(asked, tokens_estimate=600, tokens=100, admitted=START)
        assert await ask(limits, asked, 600) is None
        limits.settle(asked, tokens_estimate=600, tokens=950, admitted=START)
        clock.now += 1.5
        assert await ask(limits, asked, 1) is not None
        await limits._exchange()
        assert taken(database, "tokens") == 1050
        clock.now = START + 60
        assert await ask(limits, asked, 1000) is None
        too_large = await ask(limits, asked, 1001)
        assert too_large is not None and too_large.code == "request_too_large"
        assert too_large.retry_after_seconds is None and "1,001 tokens" in too_large.reason

    with_limits(database, clock, 2, work)


def test_a_refund_undoes_an_admission(database: Database) -> None:
    clock, asked = Clock(), key(requests_per_minute=1, tokens_per_minute=10)

    async def work(limits: Limits, other: Limits) -> None:
        for _ in range(3):
            assert await ask(limits, asked, 10) is None
            limits.refund(asked, tokens_estimate=10, admitted=START)
        clock.now += 3
        await limits._exchange()
        clock.now += 3
        await limits._exchange()
        assert await ask(other, asked, 10) is None

    with_limits(database, clock, 2, work)


def test_a_money_budget_ends_and_a_new_month_begins(database: Database) -> None:
    clock, asked = Clock(), key(money_budget=1.0, currency="CNY")

    async def work(one: Limits, other: Limits) -> None:
        for limits in (one, other):
            for _ in range(5):
                assert await ask(limits, asked) is None
                limits.settle(asked, tokens_estimate=1, tokens=10, cost=0.1, admitted=clock.now)
            await limits._exchange()
        clock.now += 3
        for limits in (one, other):
            await limits._exchange()
        for limits in (one, other):
            refused = await ask(limits, asked)
            assert refused is not None and refused.code == "insufficient_quota"
            assert "1 CNY per month" in refused.reason and (refused.retry_after_seconds or 0) > 3600
        clock.now += 32 * 86400
        assert await ask(one, asked) is None

    with_limits(database, clock, 2, work)


def test_a_budget_for_good_does_not_come_back(database: Database) -> None:
    clock, asked = Clock(), key(token_budget=100, budget_period="total")

    async def work(limits: Limits) -> None:
        assert await ask(limits, asked, 100) is None
        limits.settle(asked, tokens_estimate=100, tokens=100, admitted=clock.now)
        clock.now += 400 * 86400
        refused = await ask(limits, asked, 10)
        assert refused is not None and refused.code == "insufficient_quota" and refused.retry_after_seconds is None

    with_limits(database, clock, 1, work)


def test_a_changed_limit_holds_at_once(database: Database) -> None:
    clock = Clock()

    async def work(limits: Limits) -> None:
        assert await ask(limits, key(requests_per_minute=1)) is None
        assert await ask(limits, key(requests_per_minute=1)) is not None
        assert await ask(limits, key(requests_per_minute=2)) is None
        assert await ask(limits, key(requests_per_minute=2)) is not None
        assert await ask(limits, key()) is None

    with_limits(database, clock, 1, work)


def test_a_process_that_ends_gives_its_leases_back(database: Database) -> None:
    clock, asked = Clock(), key(requests_per_minute=1000, tokens_per_minute=10**6)

    async def work(*limits: Limits) -> None:
        for one in limits:
            for _ in range(10):
                assert await ask(one, asked, 100) is None
                one.settle(asked, tokens_estimate=100, tokens=70, admitted=START)

    with_limits(database, clock, 2, work)
    assert (taken(database, "requests"), taken(database, "tokens"), leased(database)) == (20, 1400, 0)


def test_what_a_dead_process_held_is_free_again(database: Database) -> None:
    dead, living = Ledger(database, "dead"), Ledger(database, "living")
    place = ("key_1", "token_budget", 202701)
    assert dead.exchange([], START) is None and living.exchange([], START) is None  # made known
    for expected in (125, 109, 95, 83, 73):  # an eighth of what is left
        (grant,) = dead.exchange([Order(place, 1000, None, want=800)], START) or []
        assert grant.granted == expected
    assert grant.rest == 515
    dead.exchange([Order(place, 1000, None, spent=300)], START)
    wish = Order(place, 1000, None, need=600, least=600)
    (grant,) = living.exchange([wish], START + LOST_SECONDS) or []
    assert (grant.granted, grant.rest, grant.held) == (0, 515, 185)
    (grant,) = living.exchange([wish], START + LOST_SECONDS + 1) or []
    assert (grant.granted, grant.rest, grant.held) == (600, 100, 0)
    late = Order(place, 1000, None, spent=100)
    assert dead.exchange([late], START + LOST_SECONDS + 2) is None  # it is told that it was lost
    assert living.taken("key_1") == {("token_budget", 202701): 900}


def test_a_process_that_slept_too_long_pays_and_goes_on(database: Database) -> None:
    clock, asked = Clock(), key(token_budget=10_000, budget_period="total")

    async def work(sleeper: Limits, other: Limits) -> None:
        assert await ask(sleeper, asked, 500) is None
        await sleeper._exchange()
        clock.now += LOST_SECONDS + 1
        assert sleeper.admit(asked, 1, clock.now) is NEEDS_LEASE  # its lease may be another's by now
        other._ledger.exchange([], clock.now)
        other._ledger.exchange([], clock.now)
        assert await ask(sleeper, asked, 9_500) is None
        assert await ask(sleeper, asked, 1) is not None

    with_limits(database, clock, 2, work)
    assert taken(database, "token_budget") == 10_000


def test_without_the_database_keys_with_limits_are_refused_and_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database, clock = Database(f"sqlite:///{tmp_path / 'store.db'}"), Clock()

    async def work(limits: Limits) -> None:
        with database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE holders RENAME TO hidden")
        refused = await ask(limits, key(requests_per_minute=5))
        assert refused is not None and (refused.status, refused.code) == (503, "limits_unavailable")
        assert limits.admit(key(), 1, clock.now) is None
        with database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO holders")
        answers = [await ask(limits, key(requests_per_minute=5)) for _ in range(6)]
        assert [answer is None for answer in answers] == [True] * 5 + [False]

    with_limits(database, clock, 1, work)
    assert sum("limits cannot be checked" in found.message for found in caplog.records) == 1
    database.close()


def test_a_database_that_does_not_answer_holds_up_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Frozen, or behind a stuck disk, it neither answers nor fails. What was asked of it holds when it does answer."""
    monkeypatch.setattr("twinline.store.limits.PATIENCE_SECONDS", 0.3)
    hangs, free, exchange = threading.Event(), threading.Event(), Ledger.exchange
    free.set()

    def slow(ledger: Ledger, *arguments: Any) -> Any:
        hangs.set()
        assert free.wait(60)
        return exchange(ledger, *arguments)

    async def work(limits: Limits) -> None:
        known = key(requests_per_minute=10_000)
        assert [await ask(limits, known) for _ in range(3)] == [None] * 3
        monkeypatch.setattr(Ledger, "exchange", slow)
        free.clear()
        others = [
            asyncio.create_task(ask(limits, Key(id=f"other_{n}", name=f"n{n}", requests_per_minute=5)))
            for n in range(3)
        ]
        await asyncio.to_thread(hangs.wait, 60)
        for refused in (
            await asyncio.gather(*others),
            [await ask(limits, Key(id="other_9", name="n", token_budget=5))],
        ):
            assert all(each is not None and each.code == "limits_unavailable" for each in refused)
        assert await ask(limits, known) is None  # it has a lease
        free.set()
        while limits._mute:
            await asyncio.sleep(0.01)
        answers = [await ask(limits, Key(id="other_0", name="n0", requests_per_minute=5)) for _ in range(6)]
        assert [answer is None for answer in answers] == [True] * 5 + [False]
        free.clear()
        hangs.clear()
        limits.admit(Key(id="other_8", name="n8", requests_per_minute=5), 1, limits._clock())
        waiting = asyncio.create_task(ask(limits, Key(id="other_8", name="n8", requests_per_minute=5)))
        await asyncio.to_thread(hangs.wait, 60)
        assert await waiting is not None

    began = time.monotonic()
    with_limits(database, Clock(), 1, work)
    assert time.monotonic() - began < 40, "its end waits no longer than for an answer"
    free.set()
    assert any("does not answer" in record.message for record in caplog.records)


def test_ensure_says_when_nobody_runs_the_limits(database: Database) -> None:
    with pytest.raises(RuntimeError, match="not running"):
        asyncio.run(Limits(database).ensure(key(requests_per_minute=5), 1))


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_or_made_up_in_a_random_life(tmp_path: Path, seed: int) -> None:
    """Requests, settlements, refunds, idleness, sleeps and failures: the ledger's sum is what was spent."""
    database, clock, rng = Database(f"sqlite:///{tmp_path / 'store.db'}"), Clock(), random.Random(seed)
    asked = key(token_budget=50_000, requests_per_minute=400, budget_period="total")
    spent = 0

    async def work(*limits: Limits) -> None:
        nonlocal spent
        for _ in range(200):
            one = rng.choice(limits)
            estimate = rng.randint(1, 200)
            admitted = clock.now
            if await ask(one, asked, estimate) is None:
                if rng.random() < 0.1:
                    one.refund(asked, tokens_estimate=estimate, admitted=admitted)
                else:
                    used = rng.randint(0, estimate)
                    clock.now += rng.random() * 0.2
                    one.settle(asked, tokens_estimate=estimate, tokens=used, admitted=admitted)
                    spent += used
            clock.now += rng.choice((0.0, 0.01, 0.1, 4.0))
            if rng.random() < 0.1:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(one._ledger, "_carry_out", _fail)
                    await one._exchange()
            if rng.random() < 0.3:
                await one._exchange()
            assert taken(database, "token_budget") <= 50_000

    with_limits(database, clock, 3, work)
    assert taken(database, "token_budget") == spent
    assert leased(database) == 0
    database.close()


def _fail(*args: object) -> None:
    raise RuntimeError("the database is gone")


PROCESS = """
import asyncio, sys, time
from twinline.store.database import Database
from twinline.store.keys import Keys
from twinline.store.limits import NEEDS_LEASE, Limits
from twinline.store.ring import KeyRing

async def main(url, began, *secrets):
    database = Database(url)
    ring, limits = KeyRing(Keys(database)), Limits(database, clock=lambda: 1_800_000_000.0 + time.time() - began)
    ring.refresh()
    running = asyncio.create_task(limits.run())
    await asyncio.sleep(0)
    print(*await asyncio.gather(*(serve(ring, limits, began, secret) for secret in secrets)), flush=True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

async def serve(ring, limits, began, secret):
    served, refused_at = 0, None
    while time.time() < began + 50:
        key = ring.find(secret)
        verdict = limits.admit(key, 1, limits._clock())
        if verdict is NEEDS_LEASE:
            verdict = await limits.ensure(key, 1)
        if verdict is None:
            served, refused_at = served + 1, None
            await asyncio.sleep(0.001)
        else:
            refused_at = refused_at or time.time()
            if time.time() > refused_at + 4:
                break
            await asyncio.sleep(0.05)
    return served

asyncio.run(main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:]))
"""


def test_real_processes_share_limits(database: Database, url: str) -> None:
    """A process stops after four seconds without a request served, so that idle leases have come back to the other."""
    made = [Keys(database).create(f"{limit}", requests_per_minute=limit)[1] for limit in (10, 500)]
    command = [sys.executable, "-c", PROCESS, url, str(time.time()), *made]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    told = [process.communicate(timeout=80)[0] for process in processes]
    served = [[int(number) for number in text.split()] for text in told]
    assert [sum(numbers) for numbers in zip(*served, strict=True)] == [10, 500]
