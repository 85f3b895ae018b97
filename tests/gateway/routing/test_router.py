"""The choice among lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest
from tests.gateway.routing.play import Clock, ask, router_of, teach

from twinline.gateway.routing import Ask, Placement, Policy, Router, Traits, Wait

FEW = 50


@pytest.fixture
def clock() -> Clock:
    return Clock()


def chosen(router: Router, among: Iterable[str], request: Ask | None = None) -> Placement:
    placement = router.choose(request or ask(), among)
    assert isinstance(placement, Placement)
    return placement


def fast_and_cheap(clock: Clock, **policy: object) -> Router:
    router = router_of(clock, Traits("fast", price_per_hour=4.0), Traits("cheap", price_per_hour=0.4), **policy)
    teach(clock, router, "fast", 8000, 0.007)
    teach(clock, router, "cheap", 2000, 0.025)
    return router


BOTH = ("fast", "cheap")
BOTH_SPEEDS = ("fast", "slow")


def test_cheapest_takes_the_cheap_line_while_it_is_in_time(clock: Clock) -> None:
    router = fast_and_cheap(clock)
    lines = Counter(chosen(router, BOTH).line for _ in range(12))
    assert lines["cheap"] > 0 and lines["fast"] > 0
    assert chosen(fast_and_cheap(clock), BOTH).line == "cheap"
    assert chosen(fast_and_cheap(clock), BOTH, ask(6000)).line == "fast"


def test_cheapest_keeps_to_the_goal_between_tokens(clock: Clock) -> None:
    router = fast_and_cheap(clock, inter_token_seconds=0.01)
    assert chosen(router, BOTH).line == "fast"


def test_a_line_paid_by_the_token_is_weighed_by_what_it_will_charge(clock: Clock) -> None:
    for per_million, line in ((0.01, "remote"), (50.0, "own")):
        remote = Traits("remote", price_per_million_input=per_million, price_per_million_output=per_million)
        router = router_of(clock, Traits("own", price_per_hour=1.0), remote)
        assert chosen(router, ("own", "remote")).line == line


def test_fastest_takes_the_least_wait(clock: Clock) -> None:
    router = fast_and_cheap(clock, rule="fastest")
    first = chosen(router, BOTH)
    assert first.line == "fast"
    chosen(router, BOTH, ask(30_000))
    assert chosen(router, BOTH, ask(100)).line == "cheap"


def test_prefer_spills_when_late_and_comes_back(clock: Clock) -> None:
    router = fast_and_cheap(clock, rule="prefer", order=("cheap", "fast"))
    booked = [chosen(router, BOTH) for _ in range(20)]
    names = [p.line for p in booked]
    assert names[:4] == ["cheap"] * 4 and "fast" in names
    assert all(p.tier <= 1 for p in booked)
    for placement in booked:
        placement.end()
    assert chosen(router, BOTH).line == "cheap"
    assert chosen(router, ("fast",)).line == "fast"


def test_prefer_takes_lines_that_are_not_named_last(clock: Clock) -> None:
    router = router_of(clock, Traits("x"), Traits("y"), Traits("z"), rule="prefer", order=("z",))
    assert chosen(router, ("x", "y", "z")).line == "z"
    assert chosen(router, ("x", "y")).line == "x"


def test_weighted_follows_the_weights(clock: Clock) -> None:
    wanted = {"a": 50.0, "b": 30.0, "c": 20.0}
    router = router_of(clock, *map(Traits, wanted), rule="weighted", weights=wanted)
    shares = Counter(chosen(router, tuple(wanted)).line for _ in range(10_000))
    assert all(abs(shares[line] / 100 - weight) < 0.1 for line, weight in wanted.items())


def test_weighted_interleaves_and_a_weight_of_zero_gets_nothing(clock: Clock) -> None:
    router = router_of(clock, Traits("a", weight=2), Traits("b"), Traits("c", weight=0), rule="weighted")
    assert "".join(chosen(router, "abc").line for _ in range(6)) == "abaaba"
    assert router.choose(ask(), ("c",)) is None


def test_a_line_that_the_client_names_needs_no_weight_and_takes_no_turn(clock: Clock) -> None:
    router = router_of(clock, Traits("a", weight=2), Traits("b"), Traits("c", weight=0), rule="weighted")
    named = msgspec.structs.replace(ask(), named=True)
    turns = ""
    for _ in range(6):
        turns += chosen(router, "abc").line
        for line in "ac":
            placed = router.choose(named, (line,), may_wait=True)
            assert isinstance(placed, Placement) and placed.line == line
    assert turns == "abaaba"


def test_weighted_shares_among_those_that_are_up(clock: Clock) -> None:
    router = router_of(clock, Traits("a", weight=50), Traits("b", weight=30), Traits("c", weight=20), rule="weighted")
    shares = Counter(chosen(router, ("b", "c")).line for _ in range(1000))
    assert shares["b"] == pytest.approx(600, abs=2)


@pytest.mark.parametrize("rule", ["cheapest", "fastest", "weighted", "prefer"])
def test_only_lines_that_can_take_it_are_asked(clock: Clock, rule: str) -> None:
    router = router_of(clock, Traits("plain", context=4096), Traits("able", frozenset({"tools", "grammar"}), 8192),
                       Traits("long", frozenset({"tools"}), 100_000), rule=rule)  # fmt: skip
    every = ("plain", "able", "long")
    for _ in range(FEW):
        assert chosen(router, every, ask(needs=frozenset({"grammar"}))).line == "able"
        assert chosen(router, every, ask(context=50_000)).line == "long"
        assert chosen(router, every, ask(context=8000)).line != "plain"
    assert router.choose(ask(needs=frozenset({"vision"})), every) is None
    assert router.choose(ask(needs=frozenset({"grammar"}), context=9000), every) is None
    assert router.choose(ask(), ()) is None
    assert router.choose(ask(), ("unknown",)) is None


def test_the_kept_look_up_follows_lines_that_come_change_and_go(clock: Clock) -> None:
    router = router_of(clock, Traits("a"), Traits("b"))
    every = ("a", "b", "c")
    chosen(router, every)
    router.remove("a")
    router.remove("b")
    assert router.choose(ask(), every) is None
    router.add(Traits("c", context=100))
    assert chosen(router, every).line == "c"
    router.update(Traits("c", context=10))
    assert router.choose(ask(context=50), every) is None


def test_what_cannot_be_moved_goes_where_nothing_breaks(clock: Clock) -> None:
    for rule in ("cheapest", "fastest"):
        router = router_of(clock, Traits("shaky", price_per_hour=0.8), Traits("steady", price_per_hour=1.0), rule=rule)
        teach(clock, router, "shaky", 3000, 0.02)
        teach(clock, router, "steady", 2800, 0.021)
        assert chosen(router, ("shaky", "steady")).line == "shaky"
        for _ in range(10):
            clock.now += 30
            chosen(router, ("shaky",)).end(ok=False, fault=True)
        assert chosen(router, ("shaky", "steady"), ask(movable=False)).line == "steady"


def test_a_prompt_goes_where_its_beginning_is(clock: Clock) -> None:
    for rule in ("cheapest", "fastest"):
        router = router_of(clock, Traits("a"), Traits("b"), rule=rule)
        keys = list(range(1, 33))  # 2,048 tokens
        chosen(router, ("b",), ask(2100, keys)).end(10)
        again = chosen(router, ("a", "b"), ask(2200, [*keys, 77]))
        assert again.line == "b" and again.cached == 2048 and again.prefill_tokens == 152
        router.forget("b")
        assert chosen(router, ("b",), ask(2200, [*keys, 78])).cached == 0


def test_the_answers_blocks_are_held_too(clock: Clock) -> None:
    router = router_of(clock, Traits("a"))
    chosen(router, ("a",), ask(640, list(range(10)))).end(128, keys=list(range(12)))
    assert chosen(router, ("a",), ask(800, list(range(12)))).cached == 768


def test_when_all_are_late_the_holder_of_the_prompt_is_preferred(clock: Clock) -> None:
    keys = list(range(1, 33))
    outcome = {}
    for sticky in (True, False):
        router = router_of(clock, Traits("a"), Traits("b"), sticky=sticky)
        chosen(router, ("b",), ask(2100, keys)).end(10)
        chosen(router, ("a",), ask(11_000))
        chosen(router, ("b",), ask(14_000))
        outcome[sticky] = chosen(router, ("a", "b"), ask(2100, keys)).line
    assert outcome[True] == "b"


def test_saturation_is_told_and_books_nothing(clock: Clock) -> None:
    for rule in ("cheapest", "fastest", "prefer", "weighted"):
        router = router_of(clock, Traits("a"), Traits("b"), rule=rule)
        every = ("a", "b")
        for line in every:
            for _ in range(10):
                chosen(router, (line,), ask(3000))
        before = [(s.queue, s.inflight, s.credit) for s in router.stations()]
        wait = router.choose(ask(), every, may_wait=True)
        assert isinstance(wait, Wait)
        assert wait.tier >= 3 and wait.line in every and wait.seconds > 8
        assert [(s.queue, s.inflight, s.credit) for s in router.stations()] == before
        assert isinstance(router.choose(ask(), every), Placement)
        for station in router.stations():
            station.seen_elsewhere(-station.queue, 0)
            station._waiting.clear()
            station.head_seconds = 0.0
        assert isinstance(router.choose(ask(), every, may_wait=True), Placement)


def test_a_line_that_hangs_loses_its_traffic_before_it_answers(clock: Clock) -> None:
    router = fast_and_cheap(clock, rule="fastest")
    chosen(router, ("fast",), ask(100))
    clock.now += 4
    assert [chosen(router, BOTH, ask(100)).line for _ in range(3)] == ["cheap"] * 3


def test_a_healed_line_comes_up_over_thirty_seconds(clock: Clock) -> None:
    router = router_of(clock, Traits("a", price_per_hour=1.0), Traits("b", price_per_hour=2.0))
    clock.now += 100
    router.healed("a")
    shares = []
    for age in (0, 15, 30):
        clock.now += age and 15
        count = 0
        for _ in range(400):
            placement = chosen(router, ("a", "b"), ask(100, output=10))
            count += placement.line == "a"
            placement.end()
        shares.append(count / 400)
        alone = chosen(router, ("a",))
        assert alone.line == "a"
        alone.end()
    assert shares[0] < 0.02
    assert 0.4 < shares[1] < 0.6
    assert shares[2] == 1.0


def test_a_line_added_later_ramps_up_and_the_first_ones_do_not(clock: Clock) -> None:
    router = router_of(clock, Traits("a", price_per_hour=1.0))
    assert router.station("a").ramp_until <= clock.now
    clock.now += 100
    router.add(Traits("b"))
    assert router.station("b").ramp_until == clock.now + 30


def test_lines_not_known_yet_are_tried_until_they_are(clock: Clock) -> None:
    router = Router(Policy(rule="cheapest"), clock, seed=3)
    for name, price in (("a", 1.0), ("b", 50.0), ("c", 50.0)):
        router.add(Traits(name, price_per_hour=price))
    for _ in range(2000):
        clock.now += 0.5
        placement = chosen(router, ("a", "b", "c"), ask(100))
        clock.now += 0.05
        placement.first_token()
        clock.now += 1
        placement.end(50)
    asked = {station.name: station.asked for station in router.stations()}
    assert 16 <= asked["b"] <= 60 and 16 <= asked["c"] <= 60


def test_a_line_not_heard_of_is_tried_by_one_in_a_hundred(clock: Clock) -> None:
    router = router_of(clock, Traits("a", price_per_hour=1.0), Traits("b", price_per_hour=50.0), explore=0.01)
    clock.now += 100
    router.station("a").heard = float("inf")
    for _ in range(4000):
        clock.now += 0.3
        chosen(router, ("a", "b"), ask(100)).end()
    assert 15 <= router.station("b").asked <= 80


@pytest.mark.parametrize("rule", ["prefer", "weighted"])
def test_rules_that_name_the_line_do_not_try_others(clock: Clock, rule: str) -> None:
    router = Router(Policy(rule=rule, order=("a",), weights={"a": 1, "b": 0}, explore=0.5), clock)  # type: ignore[arg-type]
    for name in "ab":
        router.add(Traits(name))
    for _ in range(300):
        clock.now += 1
        chosen(router, ("a", "b"), ask(100)).end()
    assert router.station("b").asked == 0


def test_free_lines_are_told_apart_by_their_work(clock: Clock) -> None:
    router = router_of(clock, Traits("slow"), Traits("quick"))
    teach(clock, router, "slow", 1000, 0.05)
    teach(clock, router, "quick", 5000, 0.01)
    assert chosen(router, ("slow", "quick"), ask(100)).line == "quick"


def test_the_same_seed_and_clock_give_the_same_choices() -> None:
    def run() -> list[str]:
        clock = Clock()
        router = Router(Policy(), clock, seed=9)
        for name in "abcd":
            router.add(Traits(name, price_per_hour=1.0))
        out = []
        for i in range(500):
            clock.now += 0.1
            placement = chosen(router, "abcd", ask(100 + i % 700))
            out.append(placement.line)
            placement.first_token()
            clock.now += 0.2
            placement.end(20 + i % 30)
        return out

    assert run() == run()


def test_lines_are_unique_and_unknown_ones_an_error(clock: Clock) -> None:
    router = router_of(clock, Traits("a"))
    with pytest.raises(ValueError, match="line a is already there"):
        router.add(Traits("a"))
    with pytest.raises(KeyError):
        router.update(Traits("b"))
    router.remove("b")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"rule": "best"}, "choose one of cheapest"), ({"ttft_seconds": 0}, "above 0"), ({"weights": {"a": -1}}, "line a"),
     ({"explore": 2}, "between 0 and 0.5"), ({"inter_token_seconds": float("nan")}, "above 0")],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Policy(**wrong)


def test_another_policy_keeps_what_was_learnt(clock: Clock) -> None:
    router = fast_and_cheap(clock)
    router.follow(Policy(rule="prefer", order=("fast",), explore=0.0))
    assert chosen(router, BOTH).line == "fast"
    assert 1 / router.station("fast").seconds_per_token == pytest.approx(8000, rel=0.1)


def test_a_removed_lines_streams_still_end(clock: Clock) -> None:
    router = router_of(clock, Traits("a"), Traits("b"))
    placement = chosen(router, ("a",))
    router.remove("a")
    placement.first_token()
    placement.end(10)
    assert [chosen(router, ("a", "b")).line for _ in range(3)] == ["b"] * 3


@pytest.mark.parametrize("rule", ["cheapest", "fastest", "prefer", "weighted"])
def test_a_line_that_is_late_by_itself_is_asked_all_the_same(clock: Clock, rule: str) -> None:
    """Nobody would be served sooner by waiting for it; but it is not given everything that comes."""
    router = router_of(clock, Traits("cpu", slots=4), rule=rule)
    teach(clock, router, "cpu", 150, 0.05)
    long = ask(4000, output=20)
    first = router.choose(long, ("cpu",), may_wait=True)
    assert isinstance(first, Placement) and first.ttft > 20
    assert isinstance(router.choose(long, ("cpu",), may_wait=True), Placement)
    assert isinstance(router.choose(long, ("cpu",), may_wait=True), Wait)
    for station in router.stations():
        assert (station.inflight, station.credit) == (2, 0.0)
    clock.now += 27
    first.first_token()
    first.end(20)
    assert isinstance(router.choose(long, ("cpu",), may_wait=True), Placement)


def test_slow_steps_are_no_reason_to_wait_for_an_idle_line(clock: Clock) -> None:
    router = router_of(clock, Traits("cpu"))
    teach(clock, router, "cpu", 5000, 0.5)
    assert router.station("cpu").late_step > 4
    for _ in range(4):
        assert isinstance(router.choose(ask(100), ("cpu",), may_wait=True), Placement)


def test_one_cold_answer_does_not_shut_a_line_out(clock: Clock) -> None:
    router = router_of(clock, Traits("a"))
    router.station("a").prefill.seen = 0
    cold = chosen(router, ("a",), ask(16))
    clock.now += 60
    cold.first_token()
    cold.end(1)
    placed = router.choose(ask(16), ("a",), may_wait=True)
    assert isinstance(placed, Placement)


def test_a_request_waits_for_a_line_that_will_be_in_time_rather_than_go_to_one_that_never_is(clock: Clock) -> None:
    router = router_of(clock, Traits("fast"), Traits("slow"), rule="fastest")
    teach(clock, router, "fast", 8000, 0.007)
    teach(clock, router, "slow", 150, 0.5)
    for _ in range(30):
        chosen(router, ("fast",), ask(4000))
    assert isinstance(router.choose(ask(2000), BOTH_SPEEDS, may_wait=True), Wait)
    assert isinstance(router.choose(ask(2000), ("slow",), may_wait=True), Placement)  # as when the other is down


@pytest.mark.parametrize("rule", ["cheapest", "fastest", "prefer"])
def test_a_prompt_that_is_long_for_all_waits_for_the_best_rather_than_go_to_the_worst(clock: Clock, rule: str) -> None:
    router = router_of(
        clock, Traits("fast"), Traits("slow"), rule=rule, order=("fast", "slow") if rule == "prefer" else ()
    )
    teach(clock, router, "fast", 8000, 0.007)
    teach(clock, router, "slow", 150, 0.007)
    given = [router.choose(ask(80_000), BOTH_SPEEDS, may_wait=True) for _ in range(4)]
    assert [placed.line for placed in given] == ["fast"] * 4  # type: ignore[union-attr]
    assert [type(placed) for placed in given] == [Placement, Placement, Wait, Wait]


def test_how_many_a_slow_line_gets_does_not_jump_with_its_speed(clock: Clock) -> None:
    taken = []
    for fixed in (0.24, 0.25, 0.258, 0.262, 0.27):
        router = router_of(clock, Traits("cpu"))
        step = router.station("cpu").step
        step.fixed, step.slope = fixed, 0.005
        router.station("cpu").derive()
        count = 0
        while isinstance(placed := router.choose(ask(50), ("cpu",), may_wait=True), Placement):
            placed.first_token()
            step.fixed, step.slope = fixed, 0.005
            router.station("cpu").derive()
            count += 1
        taken.append(count)
    assert min(taken) > 40 and max(taken) - min(taken) < 10


def test_weighted_passes_over_a_line_that_is_late_while_another_is_not(clock: Clock) -> None:
    router = router_of(clock, Traits("fast"), Traits("slow"), rule="weighted")
    teach(clock, router, "fast", 8000, 0.007)
    teach(clock, router, "slow", 150, 0.007)
    lines: Counter[str] = Counter()
    for _ in range(12):
        placed = router.choose(ask(1000), BOTH_SPEEDS, may_wait=True)
        assert isinstance(placed, Placement)
        lines[placed.line] += 1
    assert lines["slow"] >= 1 and lines["fast"] > lines["slow"]


def saturate(router: Router, line: str) -> list[Placement]:
    placed = []
    while isinstance(placement := router.choose(ask(4000), (line,), may_wait=True), Placement):
        placed.append(placement)
    return placed


def test_weighted_owes_no_turns_to_a_line_that_it_passed_over(clock: Clock) -> None:
    router = router_of(clock, Traits("a"), Traits("b"), rule="weighted")
    for name in "ab":
        teach(clock, router, name, 8000, 0.007)
    kept = saturate(router, "a")

    def turn() -> str:
        clock.now += 0.3
        placement = router.choose(ask(1000), ("a", "b"), may_wait=True)
        assert isinstance(placement, Placement)
        placement.first_token()
        placement.end(1)
        return placement.line

    assert Counter(turn() for _ in range(200))["b"] > 150
    for placement in kept:
        placement.end(0, ok=False)
    clock.now += 60
    assert Counter(turn() for _ in range(20)) == {"a": 10, "b": 10}


def test_weighted_gives_nothing_to_a_line_without_weight_however_late_the_others_are(clock: Clock) -> None:
    router = router_of(clock, Traits("a"), Traits("none", weight=0.0), rule="weighted")
    teach(clock, router, "a", 8000, 0.007)
    saturate(router, "a")
    assert isinstance(router.choose(ask(4000), ("a", "none"), may_wait=True), Wait)


def test_of_lines_that_are_all_late_one_that_has_little_to_do_is_taken(clock: Clock) -> None:
    router = router_of(clock, Traits("a"), Traits("b"), rule="prefer", order=("a", "b"))
    for name in "ab":
        teach(clock, router, name, 150, 0.05)
    lines = [router.choose(ask(3000), ("a", "b"), may_wait=True) for _ in range(6)]
    names = [placed.line for placed in lines if isinstance(placed, Placement)]
    assert sorted(names) == ["a", "a", "b", "b"], "each gets what it can bear"
    assert isinstance(lines[-1], Wait)


def test_no_two_lines_share_a_bit_however_often_they_restart(clock: Clock) -> None:
    names = ("a", "b", "c", "d")
    router = router_of(clock, *map(Traits, names))
    for restart in range(1100):
        router.forget(names[restart % 3])
        bits = [station.bit for station in router.stations()]
        assert len(set(bits)) == len(bits)
        assert bits == [router.index.bit(name) for name in names]
    keys = list(range(1, 100))
    router.index.put(keys, router.station("a").bit)
    (held,) = {bits for _, bits in router.index.held(keys)}
    assert [name for name in names if router.station(name).bit & held] == ["a"]
