"""The lines of one model and who is on them: placing, queueing, resuming, and what a line's faults lead to.

Owns which lines may be asked now, and who waits. Must not know text or HTTP. The rule of choice is `routing`'s.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from twinline.gateway.choice import MOVES, Choice
from twinline.gateway.closing import wanted_elsewhere
from twinline.gateway.errors import cannot_continue, no_line, too_busy
from twinline.gateway.judging import able, named, traits_of, why_none
from twinline.gateway.meters import ModelMeter
from twinline.gateway.room import Room
from twinline.gateway.routing import Budget, FairQueue, Placement, Policy, Refused, Router, Wait
from twinline.gateway.segment import Segment, cost_of
from twinline.lines.circuit import Circuit
from twinline.lines.line import Line
from twinline.lines.protocol import LineBroken
from twinline.lines.state import LineState

EXPECTED_OUTPUT = 256.0  # tokens, before any answer has ended
OUTPUT_RATE = 0.02
RESUME_BURST_SECONDS = 2.0
RESUME_LEAST, RESUME_LEAST_BURST = 2048.0, 16384.0  # tokens a second, tokens: what is no storm is not held up
MOST_HEADS = 64


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how many may wait. `resume_seconds` is how long a broken stream waits for a line to come up."""

    queue_requests: int = 1024
    queue_tokens: int = 4_000_000
    queue_seconds: float = 60.0
    resume_seconds: float = 20.0
    moves: int = MOVES


class Supply:
    """One model's lines. `on_trip` hears of each opened circuit."""

    def __init__(
        self,
        model: str,
        policy: Policy,
        meter: ModelMeter,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.meter = meter
        self.bounds = bounds or Bounds()
        self.lines: dict[str, Line] = {}
        self.circuits: dict[str, Circuit] = {}
        self.router = Router(policy, clock)
        self.lent: frozenset[str] = frozenset()  # see `Line`
        self.on_trip: Callable[[Line, str], None] = lambda line, reason: None
        self._clock = clock
        self._ready: tuple[str, ...] = ()
        self._room = Room()
        self._queue: FairQueue[Choice] = FairQueue(
            clock, self.bounds.queue_requests, self.bounds.queue_tokens, self.bounds.queue_seconds
        )
        self._heads: list[Choice] = []  # they left the queue, but no line took them yet; by the time that they came
        self._pumping = self._again = False
        self._resuming: list[tuple[int, int, Choice]] = []
        self._budget = Budget(1.0, 1.0, clock)
        self._order = itertools.count()
        self._mean_output = EXPECTED_OUTPUT

    # Lines.

    def add(self, line: Line) -> None:
        """Raises ValueError if there is one of that name."""
        line.lend(self.lent)
        self.router.add(traits_of(line))
        self.lines[line.name], self.circuits[line.name] = line, Circuit()
        self.meter.added(line.name)
        line.life.on_change = lambda: self.changed(line)
        self.changed(line)

    def remove(self, name: str) -> None:
        """Streams that are still on it move."""
        line = self.lines.pop(name, None)
        if line is None:
            return
        self.router.remove(name)
        del self.circuits[name]
        self._room.forget(name)
        self._refresh()
        for choice in list(line.calls.values()):
            choice.move(f"line {name} was taken away", drained=True)
        line.at(None)

    def close(self) -> None:
        """The model is taken away, with all its lines: nothing runs there or waits for them any more."""
        waiting = [*self._queue.expired(math.inf), *self._heads, *(choice for *_, choice in self._resuming)]
        self._heads, self._resuming = [], []
        for choice in [*waiting, *(each for line in self.lines.values() for each in line.calls.values())]:
            choice.ticket = None
            why = "its model was taken away"
            choice.refused(cannot_continue(why) if choice.begun else no_line(self.model, [why]))
        for name in list(self.lines):
            self.remove(name)

    def restarted(self, line: Line) -> None:
        """Another engine listens under that name: what was held against the old one is forgotten, as is its cache."""
        self.circuits[line.name] = Circuit()
        self._room.forget(line.name)
        self.router.healed(line.name)
        self.changed(line)

    def changed(self, line: Line) -> None:
        """Its state is another. One that drains gives up its streams where another line can take them."""
        self._refresh()
        if line.state is LineState.DRAINING:
            for choice in list(line.calls.values()):
                if self.elsewhere(choice, line):
                    choice.move(f"line {line.name} is being drained", drained=True)
        elif not line.state.takes_requests:
            for call in list(line.calls):
                call.give_up(LineBroken(f"line {line.name} is {line.state}: {line.life.reason}", "gone"))
        self.pump()

    def elsewhere(self, choice: Choice, line: Line) -> bool:
        """Whether another line that is up can take over what `line` is at."""
        ask = wanted_elsewhere(choice)
        up = self._up_for(choice)
        return ask is not None and any(name != line.name and able(self.lines[name], ask) for name in up)

    def _refresh(self) -> None:
        self._ready = tuple(  # handed on as it is: the router looks its lines up once for each tuple
            name
            for name, line in self.lines.items()
            if line.state.takes_requests and self.circuits[name].closed and not self._room.lacks(name)
        )
        rate = sum(1.0 / self.router.station(name).prefill.slope for name in self._ready)
        self._budget.rate = max(rate, RESUME_LEAST)  # all of the lines' prefill
        self._budget.burst = max(self._budget.rate * RESUME_BURST_SECONDS, RESUME_LEAST_BURST)

    @property
    def ready(self) -> Sequence[str]:
        """Names of the lines that may be asked now."""
        return self._ready

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._heads) + len(self._resuming)

    def expected_output(self, limit: int) -> int:
        """Tokens that an answer with that limit is likely to have."""
        return max(1, min(limit, int(self._mean_output)))

    def expected_cost(self, prompt_tokens: int, output_tokens: int) -> float:
        """What a request may cost at most, by the dearest line that is up; 0 where no price is given."""
        stations = map(self.router.station, self._ready)
        return max((cost_of(s, max(1, s.decoding), prompt_tokens, output_tokens) for s in stations), default=0.0)

    # Requests.

    def place(self, choice: Choice) -> None:
        """Gives a choice of which nothing is out yet to a line, or lets it wait, or refuses it."""
        fresh = not choice.segments
        if (fresh and self._behind(choice)) or not self._try(choice, may_wait=fresh):
            self._wait(choice)

    def _behind(self, choice: Choice) -> bool:
        """Whether others have to be served before it."""
        if not self._heads:
            return len(self._queue) > 0
        return self._particular(choice) or not all(map(self._particular, self._heads))

    def _particular(self, choice: Choice) -> bool:
        """It waits for lines of its own, while others may go to any."""
        return choice.pinned is not None or not all(able(self.lines[name], choice.ask) for name in self._ready)

    def has_fresh(self, choice: Choice) -> bool:
        """Whether there is a line that has not failed it."""
        return any(name not in choice.excluded for name in self._open(choice))

    def speaks_on(self, choice: Choice) -> bool:
        """Whether any line of its class can go on after the text so far, now or later."""
        lines = [line for line in self.lines.values() if line.spec.weights_class == choice.weights_class]
        return any(line.driver.dialect(line.spec).carries(choice.request) is None for line in lines if line.text_only)

    def full(self, line: Line, retry_after: str | None) -> None:
        """The line has no room: it is not asked before one of its answers ends, or the time that it gave is over."""
        self._room.refused(line.name, self._clock(), retry_after)
        self._refresh()

    def _try(self, choice: Choice, may_wait: bool) -> bool:
        """False if it has to wait."""
        among = self._open(choice)
        placement = self.router.choose(choice.ask, among, may_wait) if among else None
        if isinstance(placement, Wait) or (placement is None and self._room_soon(choice)):
            return False
        self.withdraw(choice)
        if placement is None:
            choice.refused(why_none(self.model, choice.ask, choice.pinned, self._meant(choice), self.circuits))
        else:
            self._give(choice, placement)
        return True

    def _give(self, choice: Choice, placement: Placement) -> None:
        if self._room and self._room.given(placement.line):
            self._refresh()
        choice.placed(self.lines[placement.line], placement)

    def _wait(self, choice: Choice) -> None:
        if choice.waits_since:  # it had left the queue: its place is there no more
            bisect.insort(self._heads, choice, key=attrgetter("waits_since"))
            return
        claim = choice.claim
        tokens = choice.ask.prompt_tokens + choice.ask.output_tokens
        ticket = self._queue.put(choice, claim.key, claim.priority, tokens, claim.weight)
        if isinstance(ticket, Refused):
            choice.refused(too_busy(self.model, ticket.reason, ticket.retry_after_seconds))
            return
        choice.ticket = ticket
        choice.waits_since = self._clock()
        for displaced in ticket.displaced:
            why = "requests of more claim took its place in the queue"
            displaced.refused(too_busy(self.model, why, self._queue.retry_after(displaced.claim.priority)))

    def withdraw(self, choice: Choice) -> None:
        """It waits for nothing any more."""
        if choice.ticket is not None:
            self._queue.remove(choice.ticket)
            choice.ticket = None
        elif choice in self._heads:
            self._heads.remove(choice)

    def resume(self, choice: Choice, *, refused: bool = False) -> None:
        """Gives a choice that broke to another line: by priority, and not all at once. Where a line `refused` it, its
        wait goes on."""
        if not refused:
            choice.waits_since = self._clock()
        at_once = not self._resuming and self.has_fresh(choice)
        if at_once and not self._budget.wait(choice.ask.prompt_tokens) and self._try_resume(choice):
            return
        self._resuming.append((-choice.claim.priority, next(self._order), choice))

    def _try_resume(self, choice: Choice) -> bool:
        """False if no line is up for it now."""
        among = self._open(choice)
        if not among:
            return False
        placement = self.router.choose(choice.ask, among)
        if placement is None:
            return False
        self._budget.take(choice.ask.prompt_tokens)
        self._give(choice, placement)
        return True

    def pump(self) -> None:
        """Something became free, or time has passed. What that leads to may call it again: then it goes round again."""
        self._again = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._again:
                self._again = False
                self._pump(self._clock())
        finally:
            self._pumping = False

    def _pump(self, now: float) -> None:
        if self._room and self._room.look(now, self.waiting > 0):
            self._refresh()
        self._resume_some(now)
        over = self._queue.expired(now)
        over += [choice for choice in self._heads if now - choice.waits_since > self.bounds.queue_seconds]
        for choice in over:
            choice.ticket = None
            choice.refused(too_busy(self.model, f"no line was free within {self.bounds.queue_seconds:g} s", 1.0))
        for choice in list(self._heads):
            if choice in self._heads and not self._try(choice, may_wait=True) and not self._particular(choice):
                return
        while len(self._queue) and len(self._heads) < MOST_HEADS:
            popped = self._queue.pop()
            if popped is None:
                return
            popped.ticket = None
            if not self._try(popped, may_wait=True):
                self._wait(popped)
                if not self._particular(popped):
                    return

    def _resume_some(self, now: float) -> None:
        """Broken streams by priority, within the budget. One whose lines are all down keeps no other waiting."""
        waiting, self._resuming = sorted(self._resuming), []
        kept, spent = [], False
        for entry in waiting:
            choice = entry[2]
            if choice.over:
                continue
            if now - choice.waits_since > self.bounds.resume_seconds:
                choice.refused(cannot_continue("no other line could take it in time"))
                continue
            if not spent and self._open(choice):
                spent = self._budget.wait(choice.ask.prompt_tokens) > 0
                if not spent and self._try_resume(choice):
                    continue
            kept.append(entry)
        self._resuming = kept + self._resuming

    def _open(self, choice: Choice) -> Sequence[str]:
        """Lines that may be asked for it: healthy, and none that failed it unless there are no others."""
        ready = self._up_for(choice)
        if choice.excluded:
            fit = [name for name in ready if able(self.lines[name], choice.ask)]
            return [name for name in fit if name not in choice.excluded] or fit or ready
        return ready

    def _up_for(self, choice: Choice) -> Sequence[str]:
        ready: Sequence[str] = self._ready
        if choice.pinned is not None or choice.kept_to is not None:
            meant = {line.name for line in self._meant(choice)}
            ready = [name for name in ready if name in meant]
        if choice.begun:
            request = choice.request
            ready = [
                name
                for name in ready
                if (line := self.lines[name]).spec.weights_class == choice.weights_class
                and line.text_only is (choice.transcript.spoken is not None)
                and line.client.dialect.carries(request) is None
            ]
        return ready

    def _meant(self, choice: Choice) -> list[Line]:
        """Lines that the client may have, whatever their state."""
        lines = [line for line in self.lines.values() if choice.pinned is None or named(line.name, choice.pinned)]
        return [line for line in lines if choice.kept_to in (None, line.spec.weights_class)]

    def _room_soon(self, choice: Choice) -> bool:
        """Whether a line that could take it has no room now, and nothing else."""
        return bool(self._room) and any(
            line.state.takes_requests and self._room.lacks(line.name) and able(line, choice.ask)
            for line in self._meant(choice)
        )

    # What the choices tell.

    def first_token(self, choice: Choice, segment: Segment) -> None:
        circuit = self.circuits.get(segment.line.name)
        if circuit is not None:
            circuit.well(self._clock())
        self.meter.first_token(segment)
        if self._heads or len(self._queue):
            self.pump()

    def ended(self, choice: Choice, segment: Segment, ok: bool) -> None:
        if ok and segment.tokens:
            self._mean_output += OUTPUT_RATE * (segment.tokens - self._mean_output)
        if self._room and segment.left != "full" and self._room.ended(segment.line.name):
            self._refresh()
        self.meter.ended(segment)
        if self._heads or len(self._queue) or self._resuming:
            self.pump()

    def fault(self, line: Line, reason: str, *, unreachable: bool = False) -> None:
        """The line failed a request by its own doing."""
        circuit = self.circuits.get(line.name)
        if circuit is None or self.lines.get(line.name) is not line:
            return
        self.meter.fault(line.name)
        if circuit.fault(self._clock(), reason) and (unreachable or self._may_eject(line)):
            self.trip(line, reason)

    def trip(self, line: Line, reason: str) -> None:
        """Takes the line out for a while."""
        circuit = self.circuits.get(line.name)
        if circuit is None or not circuit.closed:
            return
        now = self._clock()
        circuit.open(now, reason)
        self.router.station(line.name).fault(now)
        self._refresh()
        self.on_trip(line, reason)

    def _may_eject(self, line: Line) -> bool:
        """At most half of the lines, and never the last: a fault that all have is not theirs."""
        out = sum(not circuit.closed for circuit in self.circuits.values())
        return any(name != line.name for name in self._ready) and out + 1 <= max(1, len(self.circuits) // 2)

    def heal(self, line: Line) -> None:
        """A probe was answered well."""
        self.circuits[line.name].close(self._clock())
        self.router.healed(line.name, restarted=False)
        self.changed(line)
