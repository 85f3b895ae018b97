"""Lines that fail are left alone for a while, never all for one fault, and come back when a probe is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.gateway.several import MODEL, Several, run
from tests.lines.line_double import Script

from twinline.lines import circuit, client
from twinline.lines.circuit import IN_A_ROW


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "FIRST_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(client, "DEADLINE_GRACE_SECONDS", 0.05)


def failing(made: Several, *names: str, status: int = 500) -> None:
    for name in names:
        made.doubles[name].script = lambda request: Script(fault="refuse", status=status)


def closed(made: Several) -> dict[str, bool]:
    return {name: found.closed for name, found in made.supply.circuits.items()}


def test_a_line_that_fails_over_and_over_is_left_alone_until_it_answers_a_probe(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words", "b")
        failing(made, "a")
        for _ in range(2 * IN_A_ROW):
            assert (await made.complete()).status_code == 200
        assert closed(made) == {"a": False, "b": True}
        assert len(made.asked("a")) <= IN_A_ROW + 1
        health = (await made.client.get("/health")).json()
        assert "not asked for now" in str(health) or "refus" in str(health) or "queue is full" in str(health), health
        made.says("words", "a")
        await made.until(lambda: closed(made)["a"])
        before = len(made.asked("a"))
        assert any(each["request_id"].startswith("verify") for each in made.doubles["a"].requests[IN_A_ROW:])
        for _ in range(5):
            assert (await made.complete()).status_code == 200
        assert len(made.asked("a")) > before

    run(tiny_folder, ["a", "b"], test)


def test_a_probe_that_fails_keeps_it_out(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words", "b")
        failing(made, "a")
        for _ in range(IN_A_ROW + 2):
            await made.complete()
        await made.until(lambda: made.supply.circuits["a"].trips >= 2)
        assert not closed(made)["a"]

    run(tiny_folder, ["a", "b"], test)


def test_a_fault_that_all_lines_have_puts_out_at_most_half_of_them(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        failing(made, *"abcd")
        for _ in range(8 * IN_A_ROW):
            response = await made.complete()
            assert response.status_code == 503
        assert list(closed(made).values()).count(True) >= 2
        made.says("words")
        assert (await made.complete()).status_code == 200

    run(tiny_folder, list("abcd"), test)


def test_the_only_line_is_never_put_out_for_what_it_answers(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        failing(made, "a")
        for _ in range(3 * IN_A_ROW):
            assert (await made.complete()).status_code == 503
        assert closed(made) == {"a": True}
        made.says("words")
        assert (await made.complete()).status_code == 200

    run(tiny_folder, ["a"], test)


def test_a_line_where_nobody_listens_is_put_out_even_if_it_is_the_only_one(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        await made.doubles["a"].stop()
        statuses = [(await made.complete()).status_code for _ in range(IN_A_ROW + 3)]
        assert set(statuses) == {503} and closed(made) == {"a": False}
        told = (await made.complete()).json()["error"]
        assert told["code"] == "no_line" and "cannot connect" in told["message"], told

    run(tiny_folder, ["a"], test)


@pytest.mark.parametrize(("status", "code"), [(400, "bad"), (422, "bad"), (429, "queue_full")])
def test_what_is_the_requests_own_fault_or_a_full_queue_is_held_against_no_line(
    tiny_folder: Path, status: int, code: str
) -> None:
    async def test(made: Several) -> None:
        made.doubles["a"].script = lambda request: Script(
            fault="refuse", status=status, error={"message": "no", "code": code}, headers={"retry-after": "0.01"}
        )
        made.says("words", "b")
        for _ in range(3 * IN_A_ROW):
            await made.complete()
        assert closed(made) == {"a": True, "b": True}

    run(tiny_folder, ["a", "b"], test)


def test_clients_that_leave_and_deadlines_are_held_against_no_line(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("many words that take some time", delay=0.05)
        for _ in range(2 * IN_A_ROW):
            response = await made.complete(timeout_s=0.02)
            assert response.status_code in (200, 504)
        assert closed(made) == {"a": True, "b": True}

    run(tiny_folder, ["a", "b"], test)


def test_breaks_in_the_stream_count_too(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says("some words of it", "b")
        made.doubles["a"].script = lambda request: Script(tokens, fault="reset", fault_after=0)
        for _ in range(IN_A_ROW + 1):
            assert (await made.complete(model=MODEL)).status_code == 200
        assert closed(made) == {"a": False, "b": True}

    run(tiny_folder, ["a", "b"], test)
