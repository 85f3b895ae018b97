"""One turn of the event loop: what is written in it goes out at its end.

Owns the order of a turn's end: first what must come before any answer (the journal), then every connection that has
something to send, once. Must not know what is sent.

uvloop hands a write to the kernel at once. Between two reads of a turn that wakes the process at the other end, 64
times for 64 connections, and leaves the processor's caches to the kernel each time. Written in one go, the peer is
woken once and Python stays warm.

For the same reason a loop that is woken for each token of a thousand streams pays three times for it: 5 us when twenty
come together, 16 us when they come one by one, and the kernel's part grows likewise. So where more than `BUSY_EVENTS` a
second come few at a time, the loop rests for a millisecond, as network cards do with their interrupts. A token is later
by half of that on average; a gateway with fewer streams, or none, never rests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any
from weakref import WeakKeyDictionary

BUSY_EVENTS = 4000.0  # a second
FEW = 8  # writes in a turn
REST_SECONDS = 0.001
COUNT_SECONDS = 0.1

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


class Turn:
    """The present turn of one loop; `Turn.of(loop)` is the same for all who write in it."""

    __slots__ = ("_before", "_busy", "_call_soon", "_counted", "_outlets", "_since", "events")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._before: list[Callable[[], None]] = []
        self._outlets: list[Outlet] = []
        self.events = 0  # of streams, written in this turn: whoever writes one counts it here
        self._counted, self._since, self._busy = 0, 0.0, False

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> Turn:
        turn = _turns.get(loop)
        if turn is None:
            turn = _turns[loop] = Turn(loop)
        return turn

    def before(self, work: Callable[[], None]) -> None:
        """`work` is done once, before anything that is written in this turn from now on goes out. It must not raise."""
        if not self._before and not self._outlets:
            self._call_soon(self._end)
        self._before.append(work)

    def sends(self, outlet: Outlet) -> None:
        if not self._before and not self._outlets:
            self._call_soon(self._end)
        self._outlets.append(outlet)

    def _end(self) -> None:
        before, self._before = self._before, []
        outlets, self._outlets = self._outlets, []
        for work in before:
            work()
        for outlet in outlets:
            outlet.flush()
        if self.events:
            self._rest(len(outlets))

    def _rest(self, sent: int) -> None:
        """Lets more come before the loop looks again, where many events come one by one."""
        self._counted += self.events
        self.events = 0
        now = monotonic()
        span = now - self._since
        if span >= COUNT_SECONDS:
            self._busy = self._counted > BUSY_EVENTS * span
            self._counted, self._since = 0, now
        if self._busy and sent < FEW:
            sleep(REST_SECONDS)


class Outlet:
    """A transport whose writes wait for the end of the turn. It stands in for the loop's own, which `transport` is."""

    __slots__ = ("_closes", "_parts", "_turn", "transport")

    def __init__(self, transport: asyncio.Transport, turn: Turn) -> None:
        self.transport = transport
        self._turn = turn
        self._parts: list[bytes] = []
        self._closes = False

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._turn.sends(self)
        self._parts.append(data)

    def flush(self) -> None:
        """What the turn does at its end."""
        parts = self._parts
        if not parts:
            return  # aborted meanwhile
        if not self.transport.is_closing():
            self.transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        parts.clear()
        if self._closes:
            self.transport.close()

    def close(self) -> None:
        """Once what was written is out."""
        if self._parts:
            self._closes = True
        else:
            self.transport.close()

    def abort(self) -> None:
        self._parts.clear()
        self.transport.abort()

    def is_closing(self) -> bool:
        return self._closes or self.transport.is_closing()

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.transport.get_extra_info(name, default)
