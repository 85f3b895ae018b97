"""Scheduling: each rule by itself."""

from __future__ import annotations

from typing import Any

import pytest

from twinline.engine.pages import PagePool
from twinline.engine.request import Request, SamplingParams
from twinline.engine.scheduler import QueueFull, Scheduler, Step, Work


def make(pages: int = 64, size: int = 4, *, prefix_cache: bool = True, **limits: int) -> Scheduler:
    defaults: dict[str, Any] = {"max_tokens_per_step": 16, "max_running": 8, "max_waiting": 32, "max_model_len": 128}
    return Scheduler(PagePool(pages, size, prefix_cache=prefix_cache), **(defaults | limits))


_next_token = iter(range(1000, 10**9))


def ask(
    name: str, prompt: int | list[int], *, max_tokens: int = 8, prompt_logprobs: int | None = None, **more: Any
) -> Request:
    """A request; a prompt given as a length has tokens that no other prompt has."""
    ids = [next(_next_token) for _ in range(prompt)] if isinstance(prompt, int) else prompt
    return Request(name, ids, SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs), **more)


def plan(step: Step) -> list[tuple[str, int, int]]:
    return [(work.request.id, work.start, work.count) for work in step.work]


def run(scheduler: Scheduler, token: int = 7) -> list[tuple[str, int, int]]:
    """One step, in which every request that samples gets `token` and ends at its max_tokens."""
    step = scheduler.schedule()
    sampled = [work.request for work in step.work if work.samples]
    scheduler.commit(step)
    for request in sampled:
        request.output.append(token)
        if len(request.output) == request.params.max_tokens:
            scheduler.finish(request)
    scheduler.check_integrity()
    return plan(step)


def test_a_prompt_longer_than_a_step_is_computed_in_chunks() -> None:
    scheduler = make()
    request = ask("a", 37, max_tokens=2)
    scheduler.submit(request)
    assert (scheduler.waiting, scheduler.running, scheduler.has_work) == (1, 0, True)
    assert [run(scheduler) for _ in range(4)] == [[("a", 0, 16)], [("a", 16, 16)], [("a", 32, 5)], [("a", 37, 1)]]
    assert request.output == [7, 7]
    assert (scheduler.waiting, scheduler.running, scheduler.has_work) == (0, 0, False)
    assert run(scheduler) == []


def test_only_the_last_chunk_samples() -> None:
    request = ask("a", 10)
    assert not Work(request, 0, 9).samples
    assert Work(request, 9, 1).samples


def test_decodes_go_first_and_prefills_share_what_is_left() -> None:
    scheduler = make()
    for name, prompt, priority in (("d", 8, 5), ("long", 30, 6), ("late", 4, 9)):
        scheduler.submit(ask(name, prompt, priority=priority))
        if name == "d":
            run(scheduler)
    step = scheduler.schedule()
    assert plan(step) == [("d", 8, 1), ("long", 0, 15)]
    assert step.tokens == 16
    scheduler.commit(step)
    step.work[0].request.output.append(7)
    assert run(scheduler) == [("d", 9, 1), ("long", 15, 15)]
    assert run(scheduler) == [("d", 10, 1), ("long", 30, 1), ("late", 0, 4)]


def test_waiting_requests_enter_by_priority_then_arrival() -> None:
    scheduler = make(max_running=3)
    for name, priority in (("b", 1), ("c", 1), ("d", 2), ("a", 0)):
        scheduler.submit(ask(name, 4, priority=priority))
    assert [name for name, _, _ in run(scheduler)] == ["a", "b", "c"]
    assert (scheduler.running, scheduler.waiting) == (3, 1)


def test_decodes_cannot_fill_a_step() -> None:
    with pytest.raises(ValueError, match=r"max_tokens_per_step 8 .* max_running 8 .* at least 9"):
        make(max_tokens_per_step=8, max_running=8)
    scheduler = make(max_tokens_per_step=9, max_running=8)
    for name in "abcdefg":
        scheduler.submit(ask(name, 1, max_tokens=50))
    run(scheduler)
    scheduler.submit(ask("prefill", 20))
    work = run(scheduler)
    assert [count for _, _, count in work] == [1] * 7 + [2]
    assert work[-1][0] == "prefill"


def test_a_cached_prefix_is_not_computed_again() -> None:
    scheduler = make()
    prompt = list(range(12))
    scheduler.submit(ask("a", prompt, max_tokens=1))
    run(scheduler)
    again, scored = ask("again", prompt), ask("scored", prompt, prompt_logprobs=0)
    scheduler.submit(again)
    scheduler.submit(scored)
    assert run(scheduler) == [("again", 8, 4), ("scored", 0, 12)]  # the last token is always computed
    assert (again.cached_tokens, scored.cached_tokens) == (8, 0)


def test_a_twin_in_the_same_step_computes_for_itself() -> None:
    scheduler = make()
    for name in "ab":
        scheduler.submit(ask(name, list(range(8))))
    assert run(scheduler) == [("a", 0, 8), ("b", 0, 8)]
    third = ask("c", list(range(8)))
    scheduler.submit(third)
    run(scheduler)
    assert third.cached_tokens == 4


def test_a_continuation_is_prefilled_whole_and_cached_tokens_count_only_the_prompt() -> None:
    scheduler = make()
    tokens = list(range(12))
    scheduler.submit(ask("a", [*tokens, 5], max_tokens=1))
    run(scheduler)
    moved = ask("moved", tokens[:6], output=[*tokens[6:], 99])
    scheduler.submit(moved)
    assert run(scheduler) == [("moved", 12, 1)]
    assert moved.cached_tokens == 6


def test_admission_keeps_a_page_for_each_running_request() -> None:
    scheduler = make(pages=6)
    scheduler.submit(ask("a", 4, max_tokens=12))
    run(scheduler)  # a holds 1 page of 6
    scheduler.submit(ask("wide", 16, max_tokens=1))
    assert run(scheduler) == [("a", 4, 1)]  # now 2 of 6: 4 more would fit, but not 1 in reserve beside them
    scheduler.submit(ask("small", 1, max_tokens=1, priority=0))
    assert "small" not in [name for name, _, _ in run(scheduler)]  # nobody overtakes
    while scheduler.has_work:
        run(scheduler)
    assert scheduler.preemptions == 0


def test_whoever_is_served_last_makes_room() -> None:
    scheduler = make(pages=6, prefix_cache=False)
    urgent, old, new = ask("u", 4, max_tokens=12), ask("o", 4, max_tokens=12, priority=1), ask("n", 4, priority=1)
    for request in (new, old, urgent):
        request.arrival = {"u": 30, "o": 10, "n": 20}[request.id]
        scheduler.submit(request)
    run(scheduler)
    while not scheduler.preemptions:
        run(scheduler)
    assert (urgent.preemptions, old.preemptions, new.preemptions) == (0, 0, 1)
    assert (new.pages, new.computed, scheduler.waiting) == ([], 0, 1)
    known = new.known
    while new.computed == 0:
        work = run(scheduler)
    assert ("n", 0, known) in work


def test_nobody_enters_in_a_step_that_preempted() -> None:
    scheduler = make(pages=4, max_running=2)
    for request in (ask("u", 4), ask("last", 8, priority=2), ask("small", 1, priority=1, max_tokens=1)):
        scheduler.submit(request)
        if request.id == "last":
            run(scheduler)
    assert run(scheduler) == [("u", 4, 1)]
    assert scheduler.preemptions == 1
    assert run(scheduler) == [("u", 5, 1), ("small", 0, 1)]


def test_a_preempted_request_finds_its_own_pages_and_its_old_place() -> None:
    scheduler = make()
    first, second = ask("a", 9), ask("b", 5)
    scheduler.submit(first)
    run(scheduler)
    scheduler.submit(second)
    scheduler.preempt(first)
    scheduler.check_integrity()
    assert run(scheduler) == [("a", 8, 2), ("b", 0, 5)]
    assert (first.preemptions, first.cached_tokens) == (1, 0)
    with pytest.raises(ValueError, match="'c' does not run"):
        scheduler.preempt(ask("c", 1))


def test_a_step_waits_for_tokens_that_are_not_appended() -> None:
    scheduler = make()
    scheduler.submit(ask("a", 4))
    scheduler.commit(scheduler.schedule())
    assert scheduler.schedule() == Step(())


@pytest.mark.parametrize("moment", ["waiting", "running", "in flight"])
def test_abort_at_any_moment(moment: str) -> None:
    scheduler = make()
    request, other = ask("a", 8), ask("b", 8)
    scheduler.submit(request)
    scheduler.submit(other)
    if moment == "running":
        run(scheduler)
    step = scheduler.schedule() if moment == "in flight" else Step(())
    assert request in scheduler
    assert scheduler.abort("a") is request
    scheduler.commit(step)
    scheduler.check_integrity()
    assert (request in scheduler, other in scheduler) == (False, True)
    assert request.pages == []
    assert scheduler.abort("a") is None
    with pytest.raises(ValueError, match="neither waiting nor running"):
        scheduler.finish(request)
    scheduler.submit(ask("a", 4))  # the id is free again


def test_deadlines() -> None:
    scheduler = make(max_running=2)
    requests = [ask(name, 4, deadline=deadline) for name, deadline in (("a", 3.0), ("b", None), ("c", 2.0), ("d", 9.0))]
    for request in requests:
        scheduler.submit(request)
    run(scheduler)
    assert scheduler.expired(1.9) == []
    assert [request.id for request in scheduler.expired(3.0)] == ["c", "a"]
    scheduler.check_integrity()
    scheduler.abort("d")
    assert scheduler.expired(99.0) == []
    assert (scheduler.running, scheduler.waiting) == (1, 0)


def test_a_full_queue_refuses_with_its_length() -> None:
    scheduler = make(max_waiting=2)
    for name in "ab":
        scheduler.submit(ask(name, 4))
    with pytest.raises(QueueFull, match="2 requests wait and max_waiting is 2") as refusal:
        scheduler.submit(ask("c", 4))
    assert refusal.value.waiting == 2
    run(scheduler)
    scheduler.submit(ask("c", 4))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask("a", 0), "prompt has 0 tokens"),
        (ask("a", 120, output=[1] * 8, max_tokens=9), "have 128 tokens and max_model_len is 128.* by 1, or .* to 129"),
        (ask("a", 4, output=[1, 2], max_tokens=2), "2 tokens and max_tokens is 2: raise max_tokens to 3"),
        (ask("a", 30, max_tokens=12), "needs 11 pages of 4 tokens and the cache has 10: .* lower max_tokens to 11"),
        (ask("a", 42), "needs 13 pages .* shorten prompt and output prefix by 2 tokens"),
        (ask("used", 4), "'used' is in use"),
    ],
)
def test_what_can_never_be_served_is_refused_with_a_way_out(request_: Request, message: str) -> None:
    scheduler = make(pages=10)
    scheduler.submit(ask("used", 4))
    with pytest.raises(ValueError, match=message):
        scheduler.submit(request_)
    assert scheduler.waiting == 1
    scheduler.check_integrity()


def test_the_largest_requests_that_are_accepted_finish_alone() -> None:
    scheduler = make(pages=10)
    for name, prompt, max_tokens in (("a", 30, 11), ("b", 40, 1), ("c", 39, 2)):
        scheduler.submit(ask(name, prompt, max_tokens=max_tokens))
    for _ in range(40):
        run(scheduler)
    assert (scheduler.has_work, scheduler.preemptions) == (False, 0)


def test_pages_that_are_held_outside_are_not_counted_on() -> None:
    pool = PagePool(10, 4)
    padding = pool.allocate(1)
    scheduler = Scheduler(pool, max_tokens_per_step=16, max_running=8, max_waiting=8, max_model_len=128)
    with pytest.raises(ValueError, match="the cache has 9"):
        scheduler.submit(ask("a", 30, max_tokens=11))
    scheduler.check_integrity([padding or []])


def test_a_request_that_outgrows_what_was_agreed_is_reported() -> None:
    scheduler = make(pages=2)
    request = ask("a", 7, max_tokens=2)
    scheduler.submit(request)
    run(scheduler)
    request.output += [7] * 4
    with pytest.raises(RuntimeError, match="'a' needs 1 more pages beside its 2, runs alone"):
        scheduler.schedule()


@pytest.mark.parametrize(
    ("limits", "message"), [({"max_running": 0}, "at least 1"), ({"max_waiting": 0}, "at least 1"),
                            ({"max_model_len": 1}, "at least 2")]
)  # fmt: skip
def test_limits_that_cannot_work_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**limits)


def test_no_hashing_when_nothing_new_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode step costs no pass over the sequence: token ids are read once per page that fills."""
    reads: list[tuple[int, int]] = []
    plain = Request.tokens

    def counted(self: Request, start: int, end: int) -> list[int]:
        reads.append((start, end))
        return plain(self, start, end)

    monkeypatch.setattr(Request, "tokens", counted)
    scheduler = make()
    request = ask("a", 14, max_tokens=20)
    scheduler.submit(request)
    for _ in range(8):
        run(scheduler)
    scheduler.preempt(request)
    for _ in range(4):
        run(scheduler)
    assert reads == [(start, start + 4) for start in range(0, 24, 4)]
