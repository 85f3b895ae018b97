"""The simulated engine by a clock of the test's own: how long things take, who waits, what the cache spares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.scheduler import QueueFull, TooLong
from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.engine import Engine
from twinline.lines.simulated.texts import murmured


class Watched:
    """An engine, and when each token came."""

    def __init__(self, **figures: Any) -> None:
        self.outputs: dict[str, list[tuple[float, Output]]] = defaultdict(list)
        self.engine = Engine(Chip(**figures), murmured(500), self._deliver)
        self.now = 0.0

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.outputs[output.request_id].append((self.engine.due or self.now, output))

    def ask(self, name: str, prompt: Sequence[int] = (1, 2, 3), most: int = 8, **more: Any) -> Request:
        request = Request(name, list(prompt), SamplingParams(max_tokens=most, temperature=0), **more)
        self.engine.submit(request, self.now)
        return request

    def until(self, now: float) -> None:
        self.now = now
        self.engine.advance(now)

    def drain(self) -> None:
        while self.engine.due is not None:
            self.until(self.engine.due)

    def times(self, name: str) -> list[float]:
        return [at for at, output in self.outputs[name] if output.tokens]

    def tokens(self, name: str) -> list[int]:
        return [token for _, output in self.outputs[name] for token in output.tokens]


def test_prefill_and_decode_take_what_the_chip_says() -> None:
    watched = Watched(prefill_tokens_per_second=100, decode_tokens_per_second=10)
    watched.ask("a", range(50), 4)
    watched.drain()
    assert watched.times("a") == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert watched.outputs["a"][-1][1].finish == "length"


def test_a_batch_takes_longer_by_its_streams() -> None:
    watched = Watched(prefill_tokens_per_second=1e9, decode_step_seconds=0.01, decode_step_seconds_per_stream=0.002)
    for name in "abcde":
        watched.ask(name, most=9)
    watched.drain()
    times = watched.times("e")
    assert times[2] - times[1] == pytest.approx(0.01 + 5 * 0.002)


def test_who_finds_no_slot_waits_and_who_finds_no_place_to_wait_is_refused() -> None:
    watched = Watched(slots=2, max_waiting=1, decode_tokens_per_second=10)
    for name in "ab":
        watched.ask(name)
        watched.until(watched.engine.due or 0)
    watched.ask("c")
    with pytest.raises(QueueFull):
        watched.ask("d")
    assert (watched.engine.scheduler.running, watched.engine.scheduler.waiting) == (2, 1)
    watched.drain()
    assert watched.times("c")[0] > watched.times("a")[-1]


def test_a_full_cache_makes_requests_wait_or_come_back() -> None:
    watched = Watched(kv_tokens=160, slots=8, max_model_len=128)
    for index in range(6):
        watched.ask(str(index), range(index * 50, index * 50 + 40), 40)
    watched.drain()
    assert all(len(watched.tokens(str(index))) == 40 for index in range(6))
    assert watched.engine.scheduler.preemptions or watched.times("5")[0] > watched.times("0")[-1]
    watched.engine.scheduler.check_integrity()
    with pytest.raises(TooLong):
        watched.ask("long", range(128), 1)


def test_a_known_prefix_is_not_computed_again() -> None:
    watched = Watched(prefill_tokens_per_second=100, decode_tokens_per_second=1000)
    prompt = [i % 97 for i in range(200)]
    watched.ask("a", prompt, 2)
    watched.drain()
    began = watched.now
    request = watched.ask("b", [*prompt, 5, 6], 2)
    watched.drain()
    assert request.cached_tokens == 192
    assert watched.times("b")[0] - began == pytest.approx(0.1)


def test_it_goes_on_with_an_answer_from_elsewhere() -> None:
    whole, half = Watched(), Watched(decode_tokens_per_second=7)
    whole.ask("a", most=100)
    whole.drain()
    tokens = whole.tokens("a")
    request = half.ask("a", most=100, output=tokens[:37])
    half.drain()
    assert half.tokens("a") == tokens[37:] and request.carried == 37


def test_deadlines_aborts_slowness_and_lost_time() -> None:
    watched = Watched(decode_tokens_per_second=10, prefill_tokens_per_second=1e9)
    watched.ask("late", most=100, deadline=0.55)
    watched.ask("left", most=100)
    watched.until(0.35)
    watched.engine.abort("left")
    count = len(watched.tokens("left"))
    watched.until(0.8)
    assert watched.outputs["late"][-1][1].finish == "deadline" and len(watched.tokens("left")) == count
    assert watched.engine.counters.finished == {"abort": 1, "deadline": 1}
    watched.ask("slow", most=1000)
    watched.engine.slowed = 10
    watched.until(watched.engine.due or 0)
    for _ in range(8):
        watched.until(watched.now + 0.4)
    assert len(watched.tokens("slow")) == 4
    watched.engine.slowed = 1
    watched.until(watched.now + 1)
    before = len(watched.tokens("slow"))
    watched.until(watched.now + 100)  # the process was stopped
    assert len(watched.tokens("slow")) == before + 1


def test_figures_that_contradict_each_other_are_refused() -> None:
    for figures, word in (
        ({"decode_tokens_per_second": 10, "decode_step_seconds": 0.1}, "exclude"),
        ({"decode_tokens_per_second": 100, "decode_step_seconds_per_stream": 0.02}, "at most 0.01"),
        ({"slots": 0}, "slots"),
        ({"kv_tokens": -1}, "kv_tokens"),
        ({"prefill_tokens_per_second": float("inf")}, "prefill"),
    ):
        with pytest.raises(ValueError, match=word):
            Chip(**figures)  # type: ignore[arg-type]
