"""Keys: made, changed, revoked; found by their secret in every process; the secret kept nowhere."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from twinline.store import tables
from twinline.store.database import Database, StoreError
from twinline.store.keys import Keys
from twinline.store.ring import KeyRing


def test_a_key_comes_back_as_it_was_made(database: Database) -> None:
    keys = Keys(database)
    made, _ = keys.create(
        "alice", models=["r1", "v3"], requests_per_minute=10, tokens_per_minute=1000, token_budget=10**12,
        money_budget=0.1 + 0.2, currency="CNY", budget_period="total", weight=2.5, priority_cap=-3,
        expires=2e9, admin=True,
    )  # fmt: skip
    (found,) = keys.list()
    assert found.money_budget == pytest.approx(0.3, abs=1e-9)
    assert {name: getattr(found, name) for name in found.__struct_fields__ if name != "money_budget"} == {
        name: getattr(made, name) for name in made.__struct_fields__ if name != "money_budget"
    }
    assert found.allows("r1") and not found.allows("other")
    assert (found.priority(None), found.priority(-5), found.priority(4)) == (-3, -3, 4)
    assert found.limited
    assert not keys.create("free")[0].limited


def test_the_secret_is_kept_nowhere(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    key, secret = Keys(database).create("alice")
    ring = KeyRing(Keys(database))
    ring.refresh()
    assert ring.find(secret) is not None
    database.close()
    assert len(secret) >= 43 + 3 and secret.startswith("tl-")
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir()) + repr(key).encode() + pickle.dumps(key)
    assert secret.encode() not in held and secret[3:].encode() not in held
    assert secret not in ring.why_not(secret)


def test_secrets_differ_and_only_the_right_one_is_found(database: Database) -> None:
    keys = Keys(database)
    made = [keys.create(f"key {number}") for number in range(20)]
    ring = KeyRing(keys)
    assert ring.refresh() and not ring.refresh()
    assert len(ring) == 20
    for key, secret in made:
        assert ring.find(secret) == key
        for wrong in ("", "tl-", secret[:-1], secret + "x", secret.upper(), secret[3:], "\ud800", "é" * 50):
            assert ring.find(wrong) is None
    assert "begin with tl-" in ring.why_not("sk-1234")


def test_names_of_living_keys_are_unique(database: Database) -> None:
    keys = Keys(database)
    first, old_secret = keys.create("alice")
    with pytest.raises(StoreError, match="already"):
        keys.create("alice")
    keys.create("bob")
    with pytest.raises(StoreError, match="already"):
        keys.change("bob", name="alice")
    keys.revoke("alice")
    second, _ = keys.create("alice")
    assert keys.get("alice") == second
    assert keys.get(first.id).revoked is not None
    ring = KeyRing(keys)
    ring.refresh()
    assert ring.find(old_secret) is None
    assert "revoked" in ring.why_not(old_secret)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"requests_per_minute": -1}, "requests_per_minute"),
        ({"money_budget": 5.0}, "currency"),
        ({"currency": "CNY"}, "currency"),
        ({"models": []}, "no model"),
        ({"weight": 0}, "weight"),
        ({"budget_period": "week"}, "budget_period"),
        ({"colour": "red"}, "colour"),
        ({"digest": b"x"}, "digest"),
    ],
)
def test_nonsense_is_refused(database: Database, settings: dict[str, object], told: str) -> None:
    keys = Keys(database)
    with pytest.raises(StoreError, match=told):
        keys.create("alice", **settings)
    keys.create("bob")
    with pytest.raises(StoreError, match=told):
        keys.change("bob", **settings)
    assert [key.name for key in keys.list()] == ["bob"]
    with pytest.raises(StoreError, match="no key 'carol'"):
        keys.revoke("carol")


def test_an_expired_key_is_not_found_though_nothing_was_read_again(database: Database) -> None:
    keys, now = Keys(database), [time.time()]
    _, secret = keys.create("alice", expires=now[0] + 100)
    ring = KeyRing(keys, clock=lambda: now[0])
    ring.refresh()
    assert ring.find(secret) is not None
    now[0] += 100
    assert ring.find(secret) is None
    assert "expired" in ring.why_not(secret)


def test_a_change_reaches_a_running_ring(database: Database, url: str) -> None:
    elsewhere = Database(url)
    keys = Keys(elsewhere)
    _, alice = keys.create("alice", requests_per_minute=5)
    _, bob = keys.create("bob")
    ring = KeyRing(Keys(database))

    async def within(seconds: float, holds: object) -> None:
        async with asyncio.timeout(seconds):
            while not holds():  # type: ignore[operator]
                await asyncio.sleep(0.02)

    async def go() -> None:
        running = asyncio.create_task(ring.run())
        await within(20, lambda: ring.find(alice))
        before = ring.find(bob)
        await asyncio.to_thread(keys.change, "alice", requests_per_minute=7)
        await within(20, lambda: (found := ring.find(alice)) and found.requests_per_minute == 7)
        assert ring.find(bob) is before  # what has not changed stays the same object
        await asyncio.to_thread(keys.revoke, "alice")
        await within(20, lambda: ring.find(alice) is None)
        running.cancel()

    asyncio.run(go())
    elsewhere.close()


def test_the_last_keys_hold_while_the_database_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    keys = Keys(database)
    _, secret = keys.create("alice")
    ring = KeyRing(keys, seconds=0.01)
    ring.refresh()
    with database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE revisions RENAME TO hidden")

    async def go() -> None:
        running = asyncio.create_task(ring.run())
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
        assert ring.find(secret) is not None
        with database.writing() as connection:
            connection.exec_driver_sql("ALTER TABLE hidden RENAME TO revisions")
        keys.revoke("alice")
        async with asyncio.timeout(20):
            while ring.find(secret) is not None:
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(go())
    assert len(caplog.records) == 1
    database.close()


def test_digests_are_of_32_bytes(database: Database) -> None:
    Keys(database).create("alice")
    with database.reading() as connection:
        assert [len(found) for found in connection.execute(select(tables.keys.c.digest)).scalars()] == [32]


def test_a_database_that_hangs_is_told_and_the_last_keys_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinline.store.ring.SILENCE_SECONDS", 0.05)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    keys = Keys(database)
    _, secret = keys.create("alice")
    ring = KeyRing(keys, seconds=0.01)
    ring.refresh()
    answers = threading.Event()
    snapshot = keys.snapshot
    monkeypatch.setattr(keys, "snapshot", lambda revision: answers.wait(20) and snapshot(revision))

    async def go() -> None:
        running = asyncio.create_task(ring.run())
        async with asyncio.timeout(20):
            while not caplog.records:
                await asyncio.sleep(0.01)
        assert ring.find(secret) is not None
        keys.revoke("alice")
        answers.set()
        async with asyncio.timeout(20):
            while ring.find(secret) is not None:
                await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(go())
    assert [record.getMessage() for record in caplog.records] == [
        "keys cannot be read; the last ones hold: the database does not answer"
    ]
    database.close()
