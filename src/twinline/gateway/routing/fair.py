"""The gateway's own queue: who waits, who is served next, who is sent away.

Owns order and bounds. Must not know lines or how a refusal is written. Pure: time from the clock it is given.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp
from typing import Generic, TypeVar

Item = TypeVar("Item")

DRAIN_SECONDS = 10.0  # time constant of the drain rate
MIN_RETRY, MAX_RETRY = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Refused:
    """No room. `reason` names the bound; come back after so many seconds."""

    reason: str
    retry_after_seconds: float


@dataclass(slots=True, eq=False)
class Ticket(Generic[Item]):
    """A place in the queue. `displaced`: items of lower claim that had to leave for it; they are refused now."""

    item: Item
    key: str
    priority: int
    tokens: float
    weight: float
    since: float
    displaced: list[Item] = field(default_factory=list)
    waits: bool = True


@dataclass(slots=True)
class _Backlog(Generic[Item]):
    """One key's requests within one priority, oldest first."""

    tickets: deque[Ticket[Item]] = field(default_factory=deque)
    waiting: int = 0
    tokens: float = 0.0
    start: float = 0.0  # virtual time from which the oldest is served
    finish: float = 0.0  # virtual time at which the last that left is paid for
    weight: float = 1.0
    listed: bool = False


@dataclass(slots=True)
class _Class(Generic[Item]):
    """One priority: keys share it by tokens over weight (self-clocked fair queueing, Golestani 1994)."""

    backlogs: dict[str, _Backlog[Item]] = field(default_factory=dict)
    heads: list[tuple[float, int, str]] = field(default_factory=list)  # (virtual finish of a key's oldest, order, key)
    virtual: float = 0.0


class FairQueue(Generic[Item]):
    """Higher priorities first; within one, keys by turns so that each gets tokens in proportion to its weight.

    Bounded in requests, tokens and seconds of waiting. When it is full the newcomer is refused, unless there are
    requests of lower priority, or of a key of the same priority with more tokens waiting for its weight than the
    newcomer's: then the newest of those leave.
    """

    def __init__(
        self, clock: Callable[[], float], max_requests: int = 1024, max_tokens: float = 4_000_000,
        max_seconds: float = 30.0,
    ) -> None:  # fmt: skip
        self.max_requests, self.max_tokens, self.max_seconds = max_requests, max_tokens, max_seconds
        self.tokens = 0.0
        self._clock = clock
        self._classes: dict[int, _Class[Item]] = {}
        self._arrivals: deque[Ticket[Item]] = deque()
        self._waiting = 0
        self._order = 0
        self._drained, self._drained_at, self._began = 0.0, clock(), clock()

    def __len__(self) -> int:
        return self._waiting

    def put(
        self, item: Item, key: str, priority: int = 0, tokens: float = 1.0, weight: float = 1.0
    ) -> Ticket[Item] | Refused:
        """Raises ValueError for a weight or a token count that is not above 0."""
        if not weight > 0 or not tokens > 0:
            raise ValueError(
                f"a request of {tokens} tokens with weight {weight} cannot be queued; both must be above 0"
            )
        if tokens > self.max_tokens:
            return Refused(f"it has {tokens:.0f} tokens and the queue holds {self.max_tokens:.0f}", MAX_RETRY)
        victims = self._victims(key, priority, tokens, weight)
        if victims is None:
            full = "requests" if self._waiting >= self.max_requests else "tokens"
            return Refused(f"the queue is full: {self._waiting} requests, {self.tokens:.0f} tokens (bound on {full})",
                           self.retry_after(priority))  # fmt: skip
        for victim in victims:
            self.remove(victim)
        ticket = Ticket(item, key, priority, tokens, weight, self._clock(), [victim.item for victim in victims])
        group = self._classes.setdefault(priority, _Class())
        backlog = group.backlogs.setdefault(key, _Backlog())
        backlog.tickets.append(ticket)
        backlog.tokens += tokens
        backlog.weight = weight
        backlog.waiting += 1
        self._waiting += 1
        self.tokens += tokens
        self._arrivals.append(ticket)
        if not backlog.listed:
            self._list(group, key, backlog)
        return ticket

    def pop(self) -> Item | None:
        """The next request, or None if nobody waits."""
        for priority in sorted(self._classes, reverse=True):
            group = self._classes[priority]
            while group.heads:
                _, _, key = heapq.heappop(group.heads)
                backlog = group.backlogs[key]
                backlog.listed = False
                if not backlog.waiting:
                    continue
                ticket = self._oldest(backlog)
                # The one it was listed for may have left: what is served is what is paid.
                backlog.finish = backlog.start + ticket.tokens / ticket.weight
                group.virtual = max(group.virtual, backlog.finish)
                self._gone(ticket)
                if backlog.waiting:
                    self._list(group, key, backlog)
                self._drain(ticket.tokens)
                return ticket.item
            del self._classes[priority]
        return None

    def remove(self, ticket: Ticket[Item]) -> bool:
        """The client left. False if the request waits no more."""
        if not ticket.waits:
            return False
        self._gone(ticket)
        return True

    def expired(self, now: float) -> list[Item]:
        """Takes out and returns what has waited longer than the bound."""
        out: list[Item] = []
        while self._arrivals and (not self._arrivals[0].waits or now - self._arrivals[0].since > self.max_seconds):
            ticket = self._arrivals.popleft()
            if ticket.waits:
                self._gone(ticket)
                out.append(ticket.item)
        return out

    def retry_after(self, priority: int = 0) -> float:
        """Seconds until what waits before a newcomer of that priority is drained, at the rate of the last seconds."""
        ahead = sum(backlog.tokens for level, group in self._classes.items() if level >= priority
                    for backlog in group.backlogs.values())  # fmt: skip
        rate = self.drain_rate()
        return min(MAX_RETRY, max(MIN_RETRY, ahead / rate)) if rate > 0 else self.max_seconds

    def drain_rate(self) -> float:
        """Tokens per second taken out over about the last ten seconds."""
        now = self._clock()
        span = min(DRAIN_SECONDS, now - self._began)
        return self._drained * exp((self._drained_at - now) / DRAIN_SECONDS) / span if span > 0 else 0.0

    def _drain(self, tokens: float) -> None:
        now = self._clock()
        self._drained = self._drained * exp((self._drained_at - now) / DRAIN_SECONDS) + tokens
        self._drained_at = now

    def _victims(self, key: str, priority: int, tokens: float, weight: float) -> list[Ticket[Item]] | None:
        """Whom the newcomer may displace so that it fits; None: it may not."""
        requests_over = self._waiting + 1 - self.max_requests
        tokens_over = self.tokens + tokens - self.max_tokens
        victims: list[Ticket[Item]] = []
        if requests_over <= 0 and tokens_over <= 0:
            return victims
        for level in sorted(self._classes):
            if level > priority:
                break
            backlogs = self._classes[level].backlogs
            left = {name: [t for t in backlog.tickets if t.waits] for name, backlog in backlogs.items()}
            claims = {name: backlogs[name].tokens / backlogs[name].weight for name in left}
            own = claims.get(key, 0.0) + tokens / weight if level == priority else 0.0
            while requests_over > 0 or tokens_over > 0:
                name = max((n for n in left if left[n]), key=claims.__getitem__, default=None)
                if name is None or (level == priority and (name == key or claims[name] <= own)):
                    break
                victim = left[name].pop()
                claims[name] -= victim.tokens / backlogs[name].weight
                victims.append(victim)
                requests_over -= 1
                tokens_over -= victim.tokens
        return victims if requests_over <= 0 and tokens_over <= 0 else None

    def _list(self, group: _Class[Item], key: str, backlog: _Backlog[Item]) -> None:
        oldest = self._oldest(backlog)
        self._order += 1
        backlog.start = max(group.virtual, backlog.finish)
        heapq.heappush(group.heads, (backlog.start + oldest.tokens / oldest.weight, self._order, key))
        backlog.listed = True
        if len(group.backlogs) > 2 * len(group.heads) + 64:  # keys that wait for nothing and owe nothing
            for name in [n for n, b in group.backlogs.items() if not b.listed and b.finish <= group.virtual]:
                del group.backlogs[name]

    def _gone(self, ticket: Ticket[Item]) -> None:
        """Out of all counts. Its places in the lists are cleared when they are looked at, or when most or all are so:
        nothing is kept alive by a queue that nobody looks at."""
        ticket.waits = False
        backlog = self._classes[ticket.priority].backlogs[ticket.key]
        backlog.tokens -= ticket.tokens
        backlog.waiting -= 1
        self._waiting -= 1
        self.tokens = self.tokens - ticket.tokens if self._waiting else 0.0
        if not backlog.waiting or len(backlog.tickets) > 2 * backlog.waiting + 16:
            backlog.tickets = deque(t for t in backlog.tickets if t.waits)
        if not self._waiting or len(self._arrivals) > 2 * self._waiting + 16:
            self._arrivals = deque(t for t in self._arrivals if t.waits)

    @staticmethod
    def _oldest(backlog: _Backlog[Item]) -> Ticket[Item]:
        while not backlog.tickets[0].waits:
            backlog.tickets.popleft()
        return backlog.tickets[0]
