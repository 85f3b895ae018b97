"""Keys at the door: who may come in, what a key's limits refuse, who is served first, and what is written down."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.gateway.several import MODEL, Several, plain, several
from tests.lines.line_double import Script

from twinline.gateway.access import Access
from twinline.gateway.gauges import Unrecorded
from twinline.gateway.supply import Bounds
from twinline.lines.turn import Outlet
from twinline.store.database import Database
from twinline.store.fold import fold
from twinline.store.journal import Journal
from twinline.store.keys import Keys
from twinline.store.limits import Limits
from twinline.store.report import Sum, usage
from twinline.store.ring import KeyRing

PRICED = plain("a", price_per_million_input=2.0, price_per_million_output=8.0, chip="some-chip")


@dataclass
class Store:
    """Keys, limits and a journal in a directory of their own."""

    directory: Path
    database: Database
    keys: Keys
    ring: KeyRing
    access: Access

    def key(self, name: str, **settings: Any) -> dict[str, str]:
        """A new key; the header that bears it."""
        _, secret = self.keys.create(name, **settings)
        self.ring.refresh()
        return {"authorization": f"Bearer {secret}"}

    def used(self, *by: str) -> dict[tuple[str, ...], Sum]:
        fold(self.database, self.directory / "journal")
        return {row.of: row for row in usage(self.database, by)}


@contextlib.asynccontextmanager
async def store(directory: Path) -> AsyncIterator[Store]:
    database = Database(f"sqlite:///{directory / 'store.db'}")
    keys = Keys(database)
    ring, limits, journal = KeyRing(keys), Limits(database), Journal(directory / "journal")
    access = Access(ring, limits, journal, "the management key", "USD")
    task = asyncio.create_task(limits.run())
    try:
        yield Store(directory, database, keys, ring, access)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        journal.close()
        database.close()


def run(
    folder: Path, directory: Path, test: Callable[[Several, Store], Awaitable[None]], lines: Any = (PRICED, "b"),
    **how: Any,
) -> None:  # fmt: skip
    async def main() -> None:
        async with (
            asyncio.timeout(30),
            store(directory) as made,
            several(folder, lines, access=made.access, **how) as gateway,
        ):
            await test(gateway, made)

    uvloop.run(main())


def test_a_key_is_needed_and_its_reason_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        made.says("words")
        alice = store.key("alice")
        assert (await made.complete(alice)).status_code == 200
        secret = alice["authorization"].removeprefix("Bearer ")
        assert (await made.complete({"authorization": f"bearer {secret}"})).status_code == 200
        assert (await made.complete({"x-api-key": secret})).status_code == 200
        for headers in (None, {"authorization": "Bearer tl-wrong"}, {"authorization": f"Basic {secret}"}):
            refused = await made.complete(headers)
            error = refused.json()["error"]
            assert (refused.status_code, error["type"], error["code"]) == (
                401,
                "authentication_error",
                "invalid_api_key",
            )
            assert secret not in refused.text
        late = store.key("late", expires=1.0)
        assert "expired" in (await made.complete(late)).json()["error"]["message"]
        store.keys.revoke("alice")
        store.ring.refresh()
        assert "revoked" in (await made.complete(alice)).json()["error"]["message"]
        assert len(made.asked("a")) == 3, "what was refused never came to a line"

    run(tiny_folder, tmp_path, test)


def test_a_key_for_other_models_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        made.says("words")
        refused = await made.complete(store.key("bob", models=frozenset({"another"})))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        carol = store.key("carol", models=frozenset({MODEL}))
        assert (await made.complete(carol)).status_code == 200
        # A line of the model is no way around it.
        around = await made.complete(store.key("dave", models=frozenset({f"{MODEL}@a"})), model=f"{MODEL}@a")
        assert around.status_code == 403

    run(tiny_folder, tmp_path, test)


def test_requests_per_minute_are_refused_with_the_time_to_wait(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        made.says("words")
        few = store.key("few", requests_per_minute=3)
        answers = [await made.complete(few) for _ in range(6)]
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) in (3, 4, 5, 6) and 200 in statuses  # a minute may turn on the way
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert statuses.count(429) >= 2 or statuses.count(200) > 3
        assert (await made.complete(store.key("many"))).status_code == 200

    run(tiny_folder, tmp_path, test)


def test_a_budget_counts_what_was_used_and_not_what_was_set_aside(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        tokens = made.says("four words of it")
        prompt = len(made.tokenizer.encode("Hi", special=True))
        each = len(tokens) + prompt
        # Ten requests fit exactly by what they use; each sets 100 aside at first.
        budget = store.key("budget", token_budget=9 * each + 100 + prompt, budget_period="total")
        for _ in range(10):
            assert (await made.complete(budget, max_tokens=100)).status_code == 200
        over = await made.complete(budget, max_tokens=100)
        assert (over.status_code, over.json()["error"]["code"]) == (429, "insufficient_quota")
        large = await made.complete(store.key("small", token_budget=50, budget_period="total"), max_tokens=100)
        assert (large.status_code, large.json()["error"]["code"]) == (429, "request_too_large")

    run(tiny_folder, tmp_path, test)


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 900}])
def test_what_a_request_without_a_limit_will_surely_use_is_set_aside(
    tiny_folder: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Else many of them at once would use a budget many times over."""

    async def test(made: Several, store: Store) -> None:
        made.says("words")
        budget = store.key("budget", token_budget=800, budget_period="total")
        for _ in range(2):  # the second would be of a known form
            refused = await made.chat(budget, **fields)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "request_too_large")
        assert (await made.chat(budget)).status_code == 200

    run(tiny_folder, tmp_path, test)


def test_a_budget_in_other_money_than_the_fleets_is_refused_where_there_are_prices(
    tiny_folder: Path, tmp_path: Path
) -> None:
    async def test(made: Several, store: Store) -> None:
        made.says("words")
        here, there = (store.key(name, money_budget=500.0, currency=name) for name in ("USD", "CNY"))
        for _ in range(3):  # the second and third are of a known form
            assert (await made.complete(here)).status_code == 200
            refused = await made.complete(there)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "budget_currency")
            assert "in CNY, and costs are counted in USD" in refused.json()["error"]["message"]

    run(tiny_folder, tmp_path, test)

    async def free(made: Several, store: Store) -> None:
        made.says("words")
        assert (await made.complete(store.key("a", money_budget=5.0, currency="CNY"))).status_code == 200

    run(tiny_folder, tmp_path / "free", free, lines=("a", "b"))


def test_what_no_line_took_is_given_back(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        key = store.key("one", token_budget=150, budget_period="total")
        for name in made.doubles:
            made.doubles[name].script = lambda request: Script(fault="refuse", status=503)
        for _ in range(4):
            assert (await made.complete(key, max_tokens=100)).status_code == 503
        made.says("words")
        for name in made.doubles:
            made.supply.restarted(made.line(name))
        assert (await made.complete(key, max_tokens=100)).status_code == 200
        assert store.used("key")[("one",)].requests == 1

    run(tiny_folder, tmp_path, test)


def test_money_is_tokens_times_price_whatever_the_choices(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        tokens = made.says("four words of it")
        prompt = len(made.tokenizer.encode("Hi", special=True))
        key = store.key("alice")
        for fields, answers in (({}, 1), ({"n": 4}, 4), ({"n": 2, "stream": True}, 2)):
            before = store.used().get((), None)
            assert (await made.complete(key, max_tokens=50, **fields)).status_code == 200
            after = store.used()[()]
            was = (before.prompt_tokens, before.completion_tokens, before.cost) if before else (0, 0, 0.0)
            assert after.prompt_tokens - was[0] == prompt
            assert after.completion_tokens - was[1] == answers * len(tokens)
            assert after.cost - was[2] == pytest.approx((prompt * 2 + answers * len(tokens) * 8) / 1e6)

    run(tiny_folder, tmp_path, test)


def test_a_moved_answer_is_one_request_and_its_waste_the_operators(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        tokens = made.says("four words of it", "b")
        made.doubles["a"].script = lambda request: Script(tokens, fault="reset", fault_after=2)
        prompt = len(made.tokenizer.encode("Hi", special=True))
        assert (await made.complete(store.key("alice"), max_tokens=50)).status_code == 200
        total = store.used()[()]
        assert (total.requests, total.unfinished) == (1, 0)
        assert (total.prompt_tokens, total.completion_tokens) == (prompt, len(tokens))
        assert total.waste_tokens == prompt + 2
        lines = store.used("line")
        assert (lines[("a",)].completion_tokens, lines[("a",)].waste_tokens) == (2, 0)
        assert (lines[("b",)].completion_tokens, lines[("b",)].prompt_tokens) == (len(tokens) - 2, 0)
        assert total.cost == pytest.approx((prompt * 2 + 2 * 8) / 1e6)  # line b is free
        assert store.used("chip").keys() == {("some-chip",), ("cpu",)}

    run(tiny_folder, tmp_path, test)


def test_the_prompt_counts_where_it_was_answered(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        tokens = made.says("four words of it", "a")
        made.doubles["b"].script = lambda request: Script(fault="refuse", status=500)
        prompt = len(made.tokenizer.encode("Hi", special=True))
        assert (await made.complete(store.key("alice"), max_tokens=50)).status_code == 200
        assert made.asked("b") and made.asked("a")
        total = store.used("line")[("a",)]
        assert total.cost == pytest.approx((prompt * 2 + len(tokens) * 8) / 1e6)

    run(tiny_folder, tmp_path, test, lines=("b", PRICED))


def test_a_client_that_left_has_what_it_was_given(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        tokens = made.says("many words " * 20, delay=0.02)
        key = store.key("alice")
        stream = asyncio.create_task(made.complete(key, stream=True, max_tokens=200))
        await made.until(lambda: any(call.tokens >= 5 for call in made.line("a").calls))
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        await made.until(lambda: store.used())
        total = store.used()[()]
        assert (total.requests, total.unfinished) == (1, 1)
        assert 5 <= total.completion_tokens < len(tokens) and total.prompt_tokens > 0

    run(tiny_folder, tmp_path, test)


class Queue:
    """One slot on line a; the requests' keys in the order in which they were served."""

    def __init__(self, made: Several) -> None:
        self.made, self.served = made, []  # type: ignore[var-annotated]
        double = made.doubles["a"]
        tokens = made.tokens("some words")

        def script(request: dict[str, Any]) -> Script:
            if double.active:
                return Script(fault="refuse", status=429, headers={"retry-after": "5"})
            self.served.append(made.tokenizer.decode(request["prompt"]).split()[-1])
            return Script(tokens, delay=0.02)

        double.script = script

    async def all(self, *asked: tuple[dict[str, str], str, dict[str, Any]]) -> list[str]:
        tasks = []
        for headers, word, fields in asked:
            tasks.append(
                asyncio.create_task(self.made.complete(headers, prompt=f"say {word}", max_tokens=20, **fields))
            )
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [200] * len(asked)
        return self.served


def test_a_key_that_floods_does_not_keep_others_waiting(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        flood, calm = store.key("flood"), store.key("calm")
        asked = [(flood, "f", {})] * 12 + [(calm, "c", {})] * 4
        served = await Queue(made).all(*asked)
        # From the moment that both wait they are served by turns: the four are through long before the twelve.
        assert served.index("c") < 11 and len(served) - served[::-1].index("c") <= 14, served
        first = served.index("c")
        assert served[first : first + 7].count("c") >= 3, served

    run(tiny_folder, tmp_path, test, lines=("a",))


def test_a_weight_of_three_is_three_turns(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        heavy, light = store.key("heavy", weight=3.0), store.key("light")
        asked = [(light, "l", {})] * 10 + [(heavy, "h", {})] * 10
        served = await Queue(made).all(*asked)
        first = served.index("h")
        window = served[first : first + 8]
        assert window.count("h") >= 5, served

    run(tiny_folder, tmp_path, test, lines=("a",))


def test_priority_is_capped_by_the_key(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        plain_key, urgent = store.key("plain"), store.key("urgent", priority_cap=-10)
        asked = [(plain_key, "p", {"priority": -100})] * 6 + [(urgent, "u", {"priority": -5})] * 3
        served = await Queue(made).all(*asked)
        assert max(i for i, word in enumerate(served) if word == "u") < max(
            i for i, word in enumerate(served) if word == "p"
        )
        assert served[-3:] == ["p"] * 3, served

    run(tiny_folder, tmp_path, test, lines=("a",), bounds=Bounds())


def test_the_management_api_is_for_its_key_and_for_administrators(tiny_folder: Path, tmp_path: Path) -> None:
    async def test(made: Several, store: Store) -> None:
        admin, alice = store.key("root", admin=True), store.key("alice")
        for headers, status in (
            ({"authorization": "Bearer the management key"}, 200), (admin, 200), (alice, 403), ({}, 401)
        ):  # fmt: skip
            assert (await made.client.get("/api/lines", headers=headers)).status_code == status
        wrong = await made.complete({"authorization": "Bearer the management key"})
        assert wrong.status_code == 401, "it is no key to models"

    run(tiny_folder, tmp_path, test)


def test_a_record_is_on_disk_before_the_last_byte_of_its_answer(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: list[int] = []  # records, each time an answer goes out
    flush = Outlet.flush

    def flushed(outlet: Outlet) -> None:
        if b'"usage":{' in b"".join(outlet._parts):
            on_disk.append(sum(file.read_bytes().count(b"\n") for file in (tmp_path / "journal").iterdir()))
        flush(outlet)

    async def test(made: Several, store: Store) -> None:
        made.says("words")
        monkeypatch.setattr(Outlet, "flush", flushed)
        alice = store.key("alice")
        answers = await asyncio.gather(*(made.complete(alice) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(on_disk) == 8
        assert all(records > before for before, records in enumerate(on_disk))
        assert store.used("key")[("alice",)].requests == 8

    run(tiny_folder, tmp_path, test)


def test_a_full_disk_is_told_with_its_requests_and_costs_no_usage(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(made: Several, store: Store) -> None:
        real, journal = os.write, store.access._journal

        def full(file: int, data: bytes) -> int:
            if journal is not None and file == journal._file:
                raise OSError("no space left on device")
            return real(file, data)

        def told_of() -> dict[str, float]:
            return {sample.name: sample.value for each in Unrecorded(store.access).collect() for sample in each.samples}

        made.says("words")
        monkeypatch.setattr("twinline.gateway.access.RETRY_SECONDS", 0.05)
        monkeypatch.setattr(os, "write", full)
        alice = store.key("alice")
        names = [f"costly-{number}" for number in range(3)]
        answers = await asyncio.gather(*(made.complete(alice | {"x-request-id": name}) for name in names))
        assert {answer.status_code for answer in answers} == {200}
        monkeypatch.undo()
        waiting, lost = "twinline_gateway_usage_records_waiting", "twinline_gateway_usage_records_lost_total"
        assert told_of() == {waiting: 3, lost: 0}
        told = [record.getMessage() for record in caplog.records if "not recorded" in record.getMessage()]
        assert all("no space left" in text for text in told)
        assert all(sum(name in text for text in told) == 1 for name in names), told
        await made.until(lambda: told_of() == {waiting: 0, lost: 0}, 10.0)  # also without a further request
        assert store.used("key")[("alice",)].requests == 3
        assert (await made.complete(alice)).status_code == 200
        assert store.used("key")[("alice",)].requests == 4 and told_of() == {waiting: 0, lost: 0}

    run(tiny_folder, tmp_path, test)
