"""The engine's loop, promise by promise: how requests end, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.tiny import VOCAB, alone, ask, drain, heard, load_tiny, make_engine, write_checkpoint

from twinline.engine.batch import Batch
from twinline.engine.build import Built
from twinline.engine.loop import FATAL_FAILURES, Engine
from twinline.engine.request import Output, Request
from twinline.engine.scheduler import QueueFull, Step


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    torch.set_num_threads(1)
    return load_tiny(write_checkpoint(tmp_path_factory.mktemp("tiny")))


def run(built: Built, *requests: Request, **limits: Any) -> Engine:
    engine = make_engine(built, **limits)
    for request in requests:
        engine.submit(request)
    drain(engine)
    return engine


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


# How requests end


def test_max_tokens_ends_with_length_and_counts_carried_output(built: Built) -> None:
    whole = tokens(alone(built, ask("a", max_tokens=8)))
    assert len(whole) == 8
    engine = run(built, ask("a", output=whole[:5], max_tokens=8))
    assert heard(engine).tokens("a") == whole[5:]
    assert heard(engine).finish("a") == "length"
    assert (engine.counters.generated_tokens, engine.counters.finished["length"]) == (3, 1)


def test_a_stop_token_ends_the_output_and_is_sent_last(built: Built) -> None:
    whole = tokens(alone(built, ask("a", max_tokens=8)))
    place = next(i for i in range(1, 8) if whole[i] not in whole[:i])
    last = heard(run(built, ask("a", stop_token_ids=frozenset([whole[place]])))).last("a")
    assert (last.tokens, last.finish, last.stop_token) == ((whole[place],), "stop", whole[place])


@pytest.mark.parametrize("carried", [0, 2])
def test_no_stop_token_comes_before_min_tokens(built: Built, carried: int) -> None:
    """With every token a stop token, the output ends with the first that may be one: number min_tokens + 1."""
    everything = frozenset(range(VOCAB))
    output = [3] * carried
    result = heard(run(built, ask("a", output=output, stop_token_ids=everything - {5}, min_tokens=4))).outputs["a"]
    assert tokens(result)[: 4 - carried] == [5] * (4 - carried)  # the only token that does not stop
    assert (len(tokens(result)), result[-1].finish) == (5 - carried, "stop")


def test_max_model_len_ends_with_length(built: Built) -> None:
    heard_ = heard(run(built, ask("a", 10, max_tokens=100), max_model_len=16))
    assert (len(heard_.tokens("a")), heard_.finish("a")) == (6, "length")


def test_a_deadline_ends_waiting_and_running_requests(built: Built) -> None:
    engine = make_engine(built, max_running=1)
    for name in ("runs", "waits"):
        engine.submit(ask(name, max_tokens=200, deadline=time.monotonic() + 0.2))
    engine.submit(ask("patient", max_tokens=2))
    engine.step()
    assert (engine.scheduler.running, engine.scheduler.waiting) == (1, 2)
    time.sleep(0.21)
    drain(engine)
    assert [heard(engine).finish(name) for name in ("runs", "waits", "patient")] == ["deadline", "deadline", "length"]
    assert heard(engine).tokens("waits") == []
    assert engine.counters.finished["deadline"] == 2


def test_abort_ends_waiting_and_running_requests_and_frees_their_pages(built: Built) -> None:
    engine = make_engine(built, max_running=1)
    for name in ("runs", "waits"):
        engine.submit(ask(name, max_tokens=200))
    engine.step()
    for name in ("runs", "waits", "unknown"):
        engine.abort(name)
    engine.step()
    assert engine.pool.free == engine.pool.count
    assert [heard(engine).finish(name) for name in ("runs", "waits")] == ["abort", "abort"]
    assert "unknown" not in heard(engine).outputs
    engine.abort("runs")  # long gone
    drain(engine)


def test_an_abort_that_comes_late_does_not_meet_the_next_request_of_its_id(built: Built) -> None:
    """A client leaves when its last token is on the way, and comes back under the same name before the next step."""
    engine = run(built, ask("a", 5))
    heard(engine).outputs.clear()
    engine.abort("a")
    engine.submit(ask("a", 5))
    engine.submit(ask("b", 5))
    engine.abort("b")
    drain(engine)
    assert [heard(engine).finish(name) for name in "ab"] == ["length", "abort"]


def test_an_id_can_be_used_again_once_its_request_ended(built: Built) -> None:
    engine = run(built, ask("a", 5))
    heard(engine).outputs.clear()
    again = ask("a", 9, repetition_penalty=1.5)
    engine.submit(again)
    drain(engine)
    assert heard(engine).tokens("a") == tokens(alone(built, again))


# What is refused


def test_too_many_waiting_requests_are_refused_and_the_queue_opens_again(built: Built) -> None:
    engine = make_engine(built, max_waiting=2)
    for name in "ab":
        engine.submit(ask(name))
    with pytest.raises(QueueFull, match="max_waiting is 2") as caught:
        engine.submit(ask("c"))
    assert caught.value.waiting == 2
    engine.step()
    engine.submit(ask("c"))
    drain(engine)
    assert heard(engine).finish("c") == "length"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("a", 20, max_tokens=30), r"needs 13 pages of 4 tokens and the cache has 8.*lower max_tokens to 13"),
        (ask("a", 70), r"70 tokens and max_model_len is 64: shorten them by 7"),
        (ask("a", [1], output=[2, 3], max_tokens=2), r"2 tokens and max_tokens is 2: raise max_tokens to 3"),
        (ask("a", []), "0 tokens"),
    ],
)
def test_what_can_never_be_served_is_refused_with_numbers(built: Built, request_: Request, message: str) -> None:
    engine = make_engine(built, pages=8, max_model_len=64)
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)
    assert not engine.scheduler.has_work


# A failing model


def break_hidden(engine: Engine, steps: int, spoil: Callable[[Batch, torch.Tensor], None] | None = None) -> None:
    """The next `steps` passes through the model raise; or are spoilt afterwards."""
    real, left = engine.runner.hidden, steps

    def hidden(batch: Batch) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left >= 0 and spoil is None:
            raise RuntimeError("no such kernel")
        result = real(batch)
        if left >= 0 and spoil is not None:
            spoil(batch, result)
        return result

    engine.runner.hidden = hidden  # type: ignore[method-assign]


def test_a_step_that_raises_ends_its_requests_and_the_engine_goes_on(built: Built) -> None:
    engine = make_engine(built, max_running=2)
    for name in "abc":
        engine.submit(ask(name, max_tokens=20))
    engine.step()
    break_hidden(engine, 1)
    engine.step()
    assert [heard(engine).finish(name) for name in "ab"] == ["error", "error"]
    assert "no such kernel" in (heard(engine).last("a").error or "")
    drain(engine)
    assert heard(engine).tokens("c") == tokens(alone(built, ask("c", max_tokens=20)))
    assert engine.failure is None
    assert engine.counters.finished["error"] == 2


def test_failures_with_successes_between_are_not_fatal(built: Built) -> None:
    engine = make_engine(built)
    for i in range(2 * FATAL_FAILURES):
        break_hidden(engine, 1)
        engine.submit(ask(f"bad{i}"))
        drain(engine)
        engine.submit(ask(f"good{i}"))
        drain(engine)
    assert engine.failure is None
    engine.submit(ask("more"))


def test_failures_in_a_row_make_the_engine_refuse_work(built: Built) -> None:
    engine = make_engine(built, max_running=1)
    for i in range(FATAL_FAILURES):
        assert engine.failure is None
        engine.submit(ask(f"r{i}"))
    break_hidden(engine, FATAL_FAILURES)
    drain(engine)
    assert engine.failure is not None and "no such kernel" in engine.failure
    with pytest.raises(RuntimeError, match="no such kernel"):
        engine.submit(ask("late"))


def spoil_hidden(batch: Batch, hidden: torch.Tensor) -> None:
    hidden.fill_(math.nan)


@pytest.mark.parametrize("where", ["hidden", "cache"])
@pytest.mark.parametrize("chunked", [False, True], ids=["decode", "chunk"])
def test_a_nan_never_outlives_the_requests_it_met(built: Built, where: str, chunked: bool) -> None:
    """Not in the prefix cache, not in a page's tail that its next owner has not written yet."""
    engine = make_engine(built, pages=16, max_tokens_per_step=12, max_running=3)
    cache = [tensor for layer in engine.runner.cache for tensor in layer]

    def spoil_cache(batch: Batch, hidden: torch.Tensor) -> None:
        for tensor in cache:
            tensor.flatten(1, 2)[:, batch.plan.slots_N] = math.nan
            tensor[:, -1] = math.nan  # the scratch page, which belongs to nobody

    engine.submit(ask("victim", 30))
    if not chunked:
        for _ in range(4):
            engine.step()
    break_hidden(engine, 1, spoil_hidden if where == "hidden" else spoil_cache)
    drain(engine)
    assert (chunked and where == "hidden") or heard(engine).finish("victim") == "error"
    later = [ask("again", 30), *(ask(f"r{i}", 5 + 4 * i, max_tokens=12) for i in range(8))]
    for request in later:
        engine.submit(request)
    drain(engine)
    for request in later:
        assert heard(engine).last(request.id).error is None
        assert heard(engine).tokens(request.id) == tokens(alone(built, request))
    assert engine.failure is None
    assert all(tensor.isfinite().all() for tensor in cache)


def test_a_nan_of_one_request_ends_that_one_alone(built: Built) -> None:
    engine = make_engine(built)
    pair = [ask("bad", 9, max_tokens=20), ask("good", 7, max_tokens=20)]
    for request in pair:
        engine.submit(request)
    for _ in range(3):
        engine.step()

    @torch.inference_mode()
    def spoil_first(batch: Batch, hidden: torch.Tensor) -> None:
        hidden[batch.ends[[w.request.id for w in batch.work].index("bad")]] = math.nan

    break_hidden(engine, 1, spoil_first)
    drain(engine)
    error = heard(engine).last("bad").error
    assert error is not None and "NaN" in error
    assert heard(engine).tokens("good") == tokens(alone(built, pair[1]))
    assert engine.failure is None


def test_a_failed_step_spares_those_who_share_its_prefix(built: Built) -> None:
    """A running request outside the failed step keeps its pages as they are, shared ones included."""
    engine = make_engine(built)
    stem = list(range(20))
    engine.submit(ask("first", stem, max_tokens=1))
    drain(engine)
    pair = [ask(name, [*stem, i], max_tokens=20) for i, name in enumerate(("fails", "lives"))]
    for request in pair:
        engine.submit(request)
    engine.step()
    assert pair[0].pages[:5] == pair[1].pages[:5]
    schedule = engine.scheduler.schedule
    engine.scheduler.schedule = lambda drafts: Step(schedule(drafts).work[:1])  # type: ignore[method-assign]
    break_hidden(engine, 1)
    engine.step()
    engine.scheduler.schedule = schedule  # type: ignore[method-assign]
    drain(engine)
    assert [heard(engine).finish(request.id) for request in pair] == ["error", "length"]
    assert heard(engine).tokens("lives") == tokens(alone(built, pair[1]))


def test_a_cache_that_cannot_be_cleaned_is_fatal_at_once_and_requests_still_end(built: Built) -> None:
    engine = make_engine(built)

    def scrub(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    engine.runner.scrub = scrub  # type: ignore[method-assign,assignment]
    break_hidden(engine, 1)
    engine.start()
    engine.submit(ask("a"))
    wait_for(lambda: bool(heard(engine).outputs["a"]))
    assert heard(engine).finish("a") == "error"
    wait_for(lambda: engine.failure is not None)
    assert "the device is gone" in str(engine.failure)
    engine.stop()


def test_a_loop_that_breaks_says_so(built: Built) -> None:
    """An error outside the model (broken books, a receiver that is gone) must not leave a healthy face."""
    engine = make_engine(built)

    def deliver(outputs: Any) -> None:
        raise LookupError("nobody is there")

    engine.deliver = deliver
    engine.start()
    engine.submit(ask("a"))
    wait_for(lambda: engine.failure is not None)
    assert "nobody is there" in str(engine.failure)
    with pytest.raises(RuntimeError, match="nobody is there"):
        engine.submit(ask("b"))
    engine.stop()


# Threads


def test_requests_come_and_go_from_many_threads(built: Built) -> None:
    engine = make_engine(built, pages=24, max_running=6, max_waiting=1000)
    requests = [
        [ask(f"{t}.{i}", 3 + (5 * t + i) % 11, temperature=i % 2, seed=i, max_tokens=1 + i) for i in range(10)]
        for t in range(6)
    ]

    def client(mine: list[Request]) -> None:
        for i, request in enumerate(mine):
            engine.submit(request)
            if i % 3 == 2:
                time.sleep(0.001 * i)
                engine.abort(request.id)

    threads = [threading.Thread(target=client, args=(mine,)) for mine in requests]
    engine.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everyone = [request for mine in requests for request in mine]
    wait_for(lambda: all(r.id in heard(engine).outputs and heard(engine).finish(r.id) for r in everyone), 60)
    wait_for(lambda: not engine.scheduler.has_work)
    engine.stop()
    engine.scheduler.check_integrity()
    assert engine.pool.free == engine.pool.count
    assert engine.failure is None
    for request in everyone:
        got, want = heard(engine).tokens(request.id), tokens(alone(built, request))
        assert got == want[: len(got)]
        assert heard(engine).finish(request.id) == "abort" or got == want


def test_stop_ends_a_busy_loop_at_once(built: Built) -> None:
    engine = make_engine(built)
    engine.start()
    for i in range(5):
        engine.submit(ask(f"r{i}", max_tokens=200))
    wait_for(lambda: engine.counters.steps > 3)
    engine.stop()
    steps = engine.counters.steps
    time.sleep(0.02)
    assert engine.scheduler.has_work
    assert engine.counters.steps == steps
    engine.stop()  # twice is fine


def test_an_idle_engine_does_not_step(built: Built) -> None:
    engine = make_engine(built)
    engine.start()
    engine.submit(ask("a", max_tokens=2))
    wait_for(lambda: bool(heard(engine).outputs.get("a")) and heard(engine).finish("a") == "length")
    steps = engine.counters.steps
    engine.abort("nobody")
    time.sleep(0.02)
    assert engine.counters.steps == steps
    engine.stop()


def test_a_nan_in_one_prompt_whose_log_probabilities_are_asked_for_ends_that_one_alone(built: Built) -> None:
    engine = make_engine(built)
    requests = [ask("plain", [5, 6], max_tokens=10), ask("bad", [3, 4, 90, 5], max_tokens=5, prompt_logprobs=0)]
    embed = built.engine.runner.model.embed.weight
    kept = embed[90].clone()
    try:
        with torch.no_grad():
            embed[90] = math.nan
        for request in requests:
            engine.submit(request)
        drain(engine)
    finally:
        with torch.no_grad():
            embed[90] = kept
    assert heard(engine).finish("plain") == "length" and len(heard(engine).tokens("plain")) == 10
    last = heard(engine).last("bad")
    assert last.finish == "error" and last.error is not None and "NaN or infinite for request bad" in last.error
    assert engine.failure is None
