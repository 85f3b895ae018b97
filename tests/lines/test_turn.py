"""What is written in a turn of the loop goes out at its end: once, in order, and after what must come before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from twinline.lines import turn as module
from twinline.lines.turn import Outlet, Turn


class Wire(asyncio.Transport):
    """Notes what is done with it in a list that others may share."""

    def __init__(self, name: str, notes: list[str]) -> None:
        super().__init__()
        self.name, self.notes, self.closing = name, notes, False

    def write(self, data: Any) -> None:
        self.notes.append(f"{self.name} {bytes(data).decode()}")

    def close(self) -> None:
        self.closing = True
        self.notes.append(f"{self.name} closes")

    def abort(self) -> None:
        self.closing = True
        self.notes.append(f"{self.name} aborts")

    def is_closing(self) -> bool:
        return self.closing


def noted(work: Callable[[Turn, Outlet, Outlet, list[str]], None]) -> list[str]:
    async def main() -> list[str]:
        notes: list[str] = []
        turn = Turn.of(asyncio.get_running_loop())
        work(turn, Outlet(Wire("a", notes), turn), Outlet(Wire("b", notes), turn), notes)
        notes.append("the turn ends")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return notes

    return asyncio.run(main())


def test_one_write_for_each_and_first_what_comes_before() -> None:
    def work(turn: Turn, a: Outlet, b: Outlet, notes: list[str]) -> None:
        b.write(b"1")
        a.write(b"2")
        b.write(b"3")
        turn.before(lambda: notes.append("booked"))

    assert noted(work) == ["the turn ends", "booked", "b 13", "a 2"]


def test_a_close_waits_for_what_was_written() -> None:
    def work(turn: Turn, a: Outlet, b: Outlet, notes: list[str]) -> None:
        a.write(b"last words")
        a.close()
        assert a.is_closing()
        b.close()

    assert noted(work) == ["b closes", "the turn ends", "a last words", "a closes"]


def test_an_abort_waits_for_nothing_and_drops_what_was_written() -> None:
    def work(turn: Turn, a: Outlet, b: Outlet, notes: list[str]) -> None:
        a.write(b"lost")
        a.abort()

    assert noted(work) == ["a aborts", "the turn ends"]


def test_nothing_is_written_to_a_transport_that_closed_meanwhile() -> None:
    def work(turn: Turn, a: Outlet, b: Outlet, notes: list[str]) -> None:
        a.write(b"late")
        a.transport.close()

    assert noted(work) == ["a closes", "the turn ends"]


def test_what_the_end_of_a_turn_writes_goes_out_with_the_next() -> None:
    def work(turn: Turn, a: Outlet, b: Outlet, notes: list[str]) -> None:
        turn.before(lambda: a.write(b"from the end"))
        b.write(b"x")

    assert noted(work) == ["the turn ends", "b x", "a from the end"]


def test_it_rests_only_where_many_events_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rests = [100.0], []
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "sleep", rests.append)

    def turns(count: int, events: int, gap: float) -> int:
        async def main() -> None:
            turn = Turn.of(asyncio.get_running_loop())
            outlets = [Outlet(Wire("w", []), turn) for _ in range(events)]
            for _ in range(count):
                now[0] += gap
                turn.events += events
                for outlet in outlets:
                    outlet.write(b"x")
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        rests.clear()
        asyncio.run(main())
        return len(rests)

    assert turns(3000, 1, 1e-4) > 1500, "10,000 a second, one by one"
    assert turns(3000, 1, 1e-3) == 0, "1,000 a second"
    assert turns(300, 20, 1e-3) == 0, "20,000 a second, twenty at once"
