"""One line's book: what is on it, and what its answers have shown."""

from __future__ import annotations

from random import Random

import pytest
from tests.gateway.routing.play import Clock, ask, router_of, teach

from twinline.gateway.routing import Placement, Router, Station, Traits
from twinline.gateway.routing.fit import Fit


@pytest.fixture
def clock() -> Clock:
    return Clock()


def one(clock: Clock, **traits: object) -> tuple[Router, Station]:
    router = router_of(clock, Traits("a", **traits))  # type: ignore[arg-type]
    return router, router.station("a")


def placed(router: Router, prompt: int = 1000, **more: object) -> Placement:
    placement = router.choose(ask(prompt, **more), ("a",))
    assert isinstance(placement, Placement)
    return placement


@pytest.mark.parametrize("wrong", [0.5, 2.0])
def test_learns_prefill_and_step_from_a_start_that_is_wrong_by_two(clock: Clock, wrong: float) -> None:
    router, station = one(clock, prefill_tokens_per_second=4000 * wrong, step_seconds=0.02 / wrong)
    teach(clock, router, "a", 4000, 0.02, count=200)
    snapshot = station.snapshot()
    assert snapshot["prefill_tokens_per_second"] == pytest.approx(4000, rel=0.05)
    assert snapshot["predicted_tpot_seconds"] == pytest.approx(0.02, rel=0.05)
    assert station.ttft(2000) == pytest.approx(0.5, rel=0.05)


def test_learns_prefill_from_a_queue_as_from_an_idle_line(clock: Clock) -> None:
    """Ten prompts at once, served one after another: the waiting is not taken for slowness."""
    router, station = one(clock)
    for _ in range(20):
        batch = [placed(router, 1000) for _ in range(10)]
        for placement in batch:
            clock.now += 0.25
            placement.first_token()
        for placement in batch:
            placement.end(0)
        clock.now += 1
    assert station.seconds_per_token * 1000 + station.ttft_fixed == pytest.approx(0.25, rel=0.05)
    waiting = [placed(router, 1000) for _ in range(4)]
    assert waiting[3].ttft == pytest.approx(1.0, rel=0.1)


def test_what_is_already_done_of_the_running_prefill_is_not_waited_for_again(clock: Clock) -> None:
    router, station = one(clock)
    teach(clock, router, "a", 1000, 0.02)
    placed(router, 10_000)
    assert station.ttft(1000) == pytest.approx(11, rel=0.05)
    clock.now += 6
    assert station.ttft(1000) == pytest.approx(5, rel=0.1)


def test_learns_how_the_step_grows_with_load(clock: Clock) -> None:
    router, station = one(clock)
    random = Random(2)
    for _ in range(40):
        streams = random.randrange(1, 40)
        batch = [placed(router, 100) for _ in range(streams)]
        for placement in batch:
            placement.first_token()
        clock.now += 100 * (0.03 + 0.001 * streams)
        for placement in batch:
            placement._learn_step(101, clock.now)
            station.derive()
        for placement in batch:
            placement.end(101)
    assert station.step.fixed == pytest.approx(0.03, rel=0.05)
    assert station.step.slope == pytest.approx(0.001, rel=0.05)


def test_a_stream_is_set_against_the_mean_load_while_it_ran(clock: Clock) -> None:
    router, station = one(clock)
    seen: list[float] = []

    class Watched(Fit):
        def learn(self, load: float, seconds: float) -> None:
            seen.append(load)

    station.step = Watched(0.03, 0.001, 30)
    first, second = placed(router), placed(router)
    first.first_token()
    clock.now += 5
    second.first_token()
    clock.now += 15
    second.end(100)
    first.end(100)
    assert seen == pytest.approx([2.0, 1.75])


def test_progress_teaches_before_the_end(clock: Clock) -> None:
    router, station = one(clock)
    placement = placed(router)
    clock.now += 0.3
    placement.first_token()
    for tokens in range(51, 1000, 50):
        clock.now += 50 * 0.2
        placement.progress(tokens)
    assert station.tpot == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("how", ["end", "client left", "fault", "moved", "before the first token"])
def test_all_is_given_back_once(clock: Clock, how: str) -> None:
    router, station = one(clock)
    placement = placed(router, 1000)
    assert (station.queue, station.inflight, station.decoding) == (1000, 1, 0)
    if how != "before the first token":
        placement.first_token()
        placement.first_token()
        assert (station.queue, station.inflight, station.decoding) == (0, 1, 1)
    clock.now += 1
    for _ in range(3):
        if how == "moved":
            placement.moved(20)
        else:
            placement.end(20, ok=how == "end", fault=how == "fault")
    placement.first_token()
    placement.progress(500)
    assert (station.queue, station.inflight, station.decoding) == (0, 0, 0)


def test_any_order_of_ends_leaves_nothing(clock: Clock) -> None:
    router, station = one(clock, slots=8)
    random = Random(4)
    live: list[Placement] = []
    for _ in range(3000):
        clock.now += random.random()
        if random.random() < 0.5:
            live.append(placed(router, random.randrange(1, 5000)))
        elif live:
            placement = random.choice(live)
            if random.random() < 0.5:
                placement.first_token()
            else:
                live.remove(placement)
                placement.end(random.randrange(100), random.choice((None, 0, 50)), ok=random.random() < 0.8)
        assert station.inflight == len(live)
        assert station.queue == pytest.approx(sum(p.prefill_tokens for p in live if p.waits), abs=1e-6)
    for placement in live:
        placement.end()
    assert (station.queue, station.inflight, station.decoding) == (0, 0, 0)
    assert len(station._waiting) == 0


def test_a_full_line_makes_wait_for_others_ends(clock: Clock) -> None:
    router, station = one(clock, slots=2)
    teach(clock, router, "a", 10_000, 0.05)
    free = station.ttft(100)
    for _ in range(2):
        placed(router, 16).first_token()
    assert station.ttft(100) > free + 0.4 * station.mean_output * 0.05


def test_a_wait_for_a_slot_is_not_taken_for_slow_prefill(clock: Clock) -> None:
    router, station = one(clock, slots=1)
    teach(clock, router, "a", 10_000, 0.05)
    for _ in range(50):
        running, waiting = placed(router, 1000), placed(router, 1000)
        clock.now += 0.1
        running.first_token()
        clock.now += 20
        running.end(400)
        clock.now += 0.1
        waiting.first_token()
        waiting.end(1)
    assert 1 / station.seconds_per_token == pytest.approx(10_000, rel=0.15)


def test_a_first_token_that_does_not_come_makes_the_line_slow_before_any_answer(clock: Clock) -> None:
    router, station = one(clock)
    teach(clock, router, "a", 4000, 0.02)
    placed(router, 2000)
    clock.now += 5
    station.refresh(clock.now)
    assert station.overdue == pytest.approx(10, rel=0.1)
    assert station.ttft(2000) > 5


def test_cached_tokens_correct_the_guess(clock: Clock) -> None:
    router, station = one(clock)
    keys = list(range(1, 11))  # 640 tokens
    placed(router, 700, keys=keys).end(10, 0)
    assert station.trust == 1.0
    for _ in range(30):
        placement = placed(router, 700, keys=keys)
        placement.first_token()
        clock.now += 1
        placement.end(10, cached_tokens=0)
    assert station.trust < 0.5
    assert placed(router, 700, keys=keys).prefill_tokens > 380
    assert station.snapshot()["cached_token_share"] == 0


def test_prefill_is_learnt_from_what_was_really_computed(clock: Clock) -> None:
    """The index is wrong: half of each prompt is cached already, and the line says so."""
    router, station = one(clock)
    for i in range(100):
        keys = list(range(i * 10, i * 10 + 10))
        router.index.put(keys[:1], station.bit)
        placement = placed(router, 1000, keys=keys)
        clock.now += 0.5
        placement.first_token()
        placement.end(1, cached_tokens=500)
    assert station.seconds_per_token * 500 + station.ttft_fixed == pytest.approx(0.5, rel=0.05)


def test_faults_raise_the_hazard_many_streams_at_once_count_as_one(clock: Clock) -> None:
    router, station = one(clock, failures_per_hour=0.1)
    before = station.hazard
    batch = [placed(router) for _ in range(50)]
    for placement in batch:
        placement.end(ok=False, fault=True)
    one_fault = station.hazard * 3600
    assert before * 3600 == pytest.approx(0.1, rel=0.01)
    assert one_fault == pytest.approx(1.1, rel=0.05)
    for _ in range(5):
        clock.now += 60
        placed(router).end(ok=False, fault=True)
    assert station.hazard * 3600 > 4
    clock.now += 8 * 3600
    station.refresh(clock.now)
    assert station.hazard * 3600 < 0.2


def test_client_aborts_are_no_faults(clock: Clock) -> None:
    router, station = one(clock)
    for _ in range(100):
        clock.now += 2
        placed(router).end(ok=False)
    assert station.snapshot()["faults_per_hour"] < 0.02


@pytest.mark.parametrize("per_stream", [20, 100, 400])
def test_the_99th_percentile_of_gaps_from_longest_gaps(clock: Clock, per_stream: int) -> None:
    _, station = one(clock)
    random = Random(6)
    for _ in range(3000):
        station.saw_gap(max(random.expovariate(20) for _ in range(per_stream)), per_stream)
    gap = station.p99_gap_seconds
    assert gap is not None and gap == pytest.approx(4.6 / 20, rel=0.25)
    assert station.stall_seconds == pytest.approx(max(1.5, 20 * gap))


def test_a_stall_is_never_called_under_one_and_a_half_seconds(clock: Clock) -> None:
    _, station = one(clock, step_seconds=0.001)
    assert station.stall_seconds == 1.5


def test_load_of_other_gateways_counts_and_is_not_ours_to_release(clock: Clock) -> None:
    router, station = one(clock, slots=64)
    idle = station.ttft(100), station.tpot
    station.seen_elsewhere(5000, 20)
    assert station.ttft(100) > idle[0] + 1 and station.tpot > idle[1]
    placement = placed(router)
    placement.first_token()
    placement.end(10)
    assert (station.queue, station.decoding) == (5000, 20)
    station.seen_elsewhere(0, 0)
    assert (station.queue, station.decoding, station.inflight) == (0, 0, 0)


def test_new_traits_keep_what_was_learnt(clock: Clock) -> None:
    router, station = one(clock)
    teach(clock, router, "a", 4000, 0.02)
    router.update(Traits("a", price_per_hour=9.0, context=100))
    assert router.station("a") is station
    assert 1 / station.seconds_per_token == pytest.approx(4000, rel=0.1)
    assert router.choose(ask(context=101), ("a",)) is None


def test_the_shares_of_streams_that_end_together_add_up_to_the_line(clock: Clock) -> None:
    """Each ends a moment after the one before it: the last was not alone on the line, nor the first in full company."""
    router, _ = one(clock)
    batch = [placed(router) for _ in range(16)]
    for placement in batch:
        placement.first_token()
    clock.now += 10
    shares = []
    for placement in batch:
        shares.append(10 / placement.company)
        placement.end(400)
    assert sum(shares) == pytest.approx(10)


def test_shares_follow_who_came_and_went(clock: Clock) -> None:
    """Four seconds alone, two beside another, one among four: of seven seconds 4 + 2/2 + 1/4 are its own."""
    router, _ = one(clock)
    first = placed(router)
    assert first.company == 1
    first.first_token()
    clock.now += 4
    others = [placed(router) for _ in range(3)]
    others[0].first_token()
    clock.now += 2
    for other in others[1:]:
        other.first_token()
    clock.now += 1
    assert first.company == pytest.approx(7 / (4 + 2 / 2 + 1 / 4))
    assert others[1].company == pytest.approx(4)


@pytest.mark.parametrize("first", ["the tokens are read", "the line is looked after"])
def test_what_comes_when_we_stood_still_teaches_nothing(clock: Clock, first: str) -> None:
    router, station = one(clock)
    teach(clock, router, "a", 4000, 0.02, count=50)
    station.looked = clock.now
    before = station.step.at(1), station.prefill.at(1000)
    decoding, waiting, later = placed(router), placed(router), placed(router)
    decoding.first_token()
    clock.now += 30
    if first == "the line is looked after":
        for placement in (decoding, waiting, later):
            placement.spoil()
        station.looked = clock.now
    decoding.end(50)
    waiting.first_token()
    station.looked = clock.now
    clock.now += 1
    waiting.end(30)
    assert station.step.at(1) == before[0]
    assert station.prefill.at(1000) == pytest.approx(before[1], rel=0.2)  # of the first, that came in time
