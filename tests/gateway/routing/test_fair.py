"""Who waits, who is served next, who is sent away."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from random import Random

import pytest

from twinline.gateway.routing import FairQueue, Refused, Ticket


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def put(queue: FairQueue[str], item: str, key: str, **more: float) -> Ticket[str]:
    ticket = queue.put(item, key, **more)  # type: ignore[arg-type]
    assert isinstance(ticket, Ticket)
    return ticket


def popped(queue: FairQueue[str], count: int) -> list[str]:
    return [item for _ in range(count) if (item := queue.pop()) is not None]


def test_one_key_is_served_in_order(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    for i in range(5):
        put(queue, str(i), "a", tokens=100 - i)
    assert popped(queue, 6) == list("01234")
    assert queue.pop() is None


def test_keys_share_by_tokens_not_by_requests(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    for _ in range(100):
        put(queue, "long", "a", tokens=1000)
    for _ in range(400):
        put(queue, "short", "b", tokens=100)
    served = Counter(popped(queue, 220))
    assert served["long"] * 1000 == pytest.approx(served["short"] * 100, rel=0.1)


def test_a_weight_of_three_gets_three_times_the_tokens(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    for _ in range(300):
        put(queue, "a", "a", tokens=50, weight=3.0)
        put(queue, "b", "b", tokens=50, weight=1.0)
    served = Counter(popped(queue, 200))
    assert served["a"] == pytest.approx(150, abs=2)


def test_a_newcomer_does_not_wait_for_a_flood_and_an_idle_key_saves_up_nothing(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    for _ in range(500):
        put(queue, "flood", "a", tokens=100)
    popped(queue, 300)
    for _ in range(50):
        put(queue, "new", "b", tokens=100)
    served = popped(queue, 40)
    assert "new" in served[:2]
    assert 18 <= served.count("new") <= 22


def test_higher_priority_first(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    put(queue, "low", "a", priority=0)
    put(queue, "high", "a", priority=5)
    put(queue, "middle", "b", priority=1)
    assert popped(queue, 3) == ["high", "middle", "low"]


def test_a_client_that_left_is_not_served_and_frees_its_room(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_requests=2)
    first = put(queue, "1", "a")
    put(queue, "2", "a")
    assert queue.remove(first) and not queue.remove(first)
    put(queue, "3", "a")
    assert popped(queue, 3) == ["2", "3"]


def test_a_key_pays_for_what_is_served_not_for_what_left(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    served: Counter[str] = Counter()
    for _ in range(200):
        put(queue, "b", "b", tokens=100)
    for _ in range(60):
        cheap = put(queue, "bait", "a", tokens=1)
        put(queue, "a", "a", tokens=1000)
        queue.remove(cheap)
        item = queue.pop()
        assert item is not None
        served[item] += 1
    served.update(popped(queue, 60))
    assert served["a"] * 1000 <= served["b"] * 100 * 1.3 + 2000


def test_full_in_requests_the_longest_of_the_lowest_gives_way(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_requests=4)
    for i in range(3):
        put(queue, f"a{i}", "a", priority=0, tokens=10)
    put(queue, "b0", "b", priority=0, tokens=10)
    high = put(queue, "c", "c", priority=1, tokens=10)
    assert high.displaced == ["a2"]
    assert len(queue) == 4
    refused = queue.put("a3", "a", priority=0, tokens=10)
    assert isinstance(refused, Refused) and "requests" in refused.reason
    assert popped(queue, 5) == ["c", "a0", "b0", "a1"]


def test_a_flooding_key_gives_way_to_another_of_its_priority_but_never_below_it(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_requests=10)
    for i in range(10):
        put(queue, f"a{i}", "a", tokens=10)
    shown = 0
    for i in range(10):
        outcome = queue.put(f"b{i}", "b", tokens=10)
        shown += isinstance(outcome, Ticket)
    assert shown == 5 or shown == 4
    assert len(queue) == 10


def test_low_priority_never_displaces_high(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_requests=1)
    put(queue, "high", "a", priority=1)
    assert isinstance(queue.put("low", "b", priority=0), Refused)
    assert queue.pop() == "high"


def test_bounded_in_tokens(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_tokens=1000)
    put(queue, "1", "a", tokens=600)
    refused = queue.put("2", "a", tokens=600)
    assert isinstance(refused, Refused) and "tokens" in refused.reason
    never = queue.put("3", "a", tokens=1001)
    assert isinstance(never, Refused)
    assert put(queue, "4", "b", priority=1, tokens=900).displaced == ["1"]
    assert queue.tokens == 900


def test_expired_are_taken_out_once(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_seconds=10)
    put(queue, "old", "a")
    clock.now = 5.0
    put(queue, "young", "b")
    assert queue.expired(10.0) == []
    assert queue.expired(10.5) == ["old"]
    assert queue.expired(10.5) == []
    assert popped(queue, 2) == ["young"]


def test_retry_after_is_what_waits_over_what_drains(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock, max_tokens=20_000)
    for _ in range(600):
        clock.now += 0.1
        put(queue, "x", "a", tokens=100)
        queue.pop()
    assert queue.drain_rate() == pytest.approx(1000, rel=0.1)
    for _ in range(100):
        put(queue, "x", "a", tokens=100)
    assert queue.retry_after() == pytest.approx(10, rel=0.15)
    assert queue.retry_after(priority=3) == 1.0


@pytest.mark.parametrize(("tokens", "weight"), [(0, 1), (1, 0), (-5, 1)])
def test_nonsense_is_refused(clock: Clock, tokens: float, weight: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        FairQueue(clock).put("x", "a", tokens=tokens, weight=weight)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_doubled_or_kept_whatever_happens(clock: Clock, seed: int) -> None:
    random = Random(seed)
    queue: FairQueue[int] = FairQueue(clock, max_requests=30, max_tokens=3000, max_seconds=20)
    inside: dict[int, Ticket[int]] = {}
    out: Counter[int] = Counter()
    for number in range(3000):
        clock.now += random.expovariate(2)
        match random.randrange(4):
            case 0 | 1:
                entered = queue.put(number, random.choice("abcde"), random.randrange(3), random.randrange(1, 400),
                                    random.choice((1.0, 2.0)))  # fmt: skip
                if isinstance(entered, Ticket):
                    for item in entered.displaced:
                        del inside[item]
                        out[item] += 1
                    inside[number] = entered
            case 2:
                item = queue.pop()
                assert (item is None) == (not inside)
                if item is not None:
                    del inside[item]
                    out[item] += 1
            case _:
                if inside and random.random() < 0.3:
                    item = random.choice(list(inside))
                    assert queue.remove(inside.pop(item))
                    out[item] += 1
                for item in queue.expired(clock.now):
                    del inside[item]
                    out[item] += 1
        assert len(queue) == len(inside) <= 30
        assert queue.tokens == pytest.approx(sum(t.tokens for t in inside.values())) and queue.tokens <= 3000
    assert max(out.values()) == 1


def test_memory_is_bounded_by_what_waits(clock: Clock) -> None:
    queue: FairQueue[str] = FairQueue(clock)
    put(queue, "stays", "busy", priority=-1)
    for i in range(20_000):
        put(queue, "keeps the class alive", "busy")
        queue.remove(put(queue, "left", f"key{i}"))
        queue.remove(put(queue, "left", "busy"))
        queue.pop()
    group = queue._classes.get(0)
    assert group is None or len(group.backlogs) < 500
    assert len(queue._arrivals) < 100
    assert all(len(b.tickets) < 100 for c in queue._classes.values() for b in c.backlogs.values())


def test_what_has_left_is_not_kept_alive(clock: Clock) -> None:
    class Item: ...

    queue: FairQueue[Item] = FairQueue(clock)
    kept = []
    for key in ("alice", "bob"):
        items = [Item() for _ in range(4)]
        tickets = [queue.put(item, key) for item in items]
        kept += [weakref.ref(item) for item in items]
        assert isinstance(tickets[1], Ticket) and queue.remove(tickets[1])
        del items, tickets
    while queue.pop() is not None:
        pass
    gc.collect()
    assert not any(item() for item in kept)
