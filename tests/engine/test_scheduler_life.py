"""Long random lives of a scheduler over a tiny cache, in which every promise is checked after every step."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.engine.pages import PagePool
from twinline.engine.request import Request, SamplingParams
from twinline.engine.scheduler import QueueFull, Scheduler, Step


class Life:
    """A scheduler, a model that is a hash, and a cache that remembers what was written where.

    A slot holds a hash of all tokens up to its position: as with real keys and values, the same token after another
    prefix is another content. The model's next token is drawn from that hash, so shared prefixes go on alike.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.pool = PagePool(rng.randint(4, 24), rng.choice([1, 2, 3, 4]), prefix_cache=rng.random() < 0.8)
        max_running = rng.randint(1, 6)
        self.budget = max_running + rng.randint(1, 12)
        self.scheduler = Scheduler(
            self.pool, max_tokens_per_step=self.budget, max_running=max_running, max_waiting=8, max_model_len=40
        )
        self.slots: list[int | None] = [None] * (self.pool.count * self.pool.size)
        self.live: dict[str, Request] = {}
        self.expected: dict[Request, int] = {}  # the next position that must be computed
        self.restarts: dict[Request, int] = {}
        self.born = 0
        self.stems = [[rng.randrange(2) for _ in range(20)] for _ in range(2)]

    def arrive(self, now: int) -> None:
        rng = self.rng
        prompt = rng.choice(self.stems)[: rng.randint(1, 20)] + [rng.randrange(2) for _ in range(rng.randint(0, 3))]
        output = [rng.randrange(2) for _ in range(rng.choice([0, 0, 0, 3]))]
        params = SamplingParams(max_tokens=rng.randint(4, 12), prompt_logprobs=rng.choice([None, None, None, 0]))
        deadline = now + rng.randint(1, 30) if rng.random() < 0.1 else None
        request = Request(
            f"r{self.born}", prompt, params, output=output, priority=rng.choice([0, 0, 1, 2]), deadline=deadline
        )
        self.born += 1
        try:
            self.scheduler.submit(request)
        except (QueueFull, ValueError):
            assert request not in self.scheduler
        else:
            self.live[request.id] = request
            self.restarts[request] = 0

    def end(self, request: Request) -> None:
        assert (request.pages, request in self.scheduler) == ([], False)
        del self.live[request.id], self.restarts[request]

    def disturb(self, now: int) -> None:
        late = [request for request in self.live.values() if request.deadline is not None and request.deadline <= now]
        expired = self.scheduler.expired(now)
        assert set(expired) == set(late)
        for request in expired:
            self.end(request)
        if self.live and self.rng.random() < 0.05:
            victim = self.scheduler.abort(self.rng.choice(list(self.live)))
            assert victim is not None
            self.end(victim)
        running = [request for request in self.live.values() if request.pages]
        if running and self.rng.random() < 0.02:
            self.scheduler.preempt(self.rng.choice(running))
        if self.rng.random() < 0.01:
            self.pool.reset_prefix_cache()

    def contents(self, request: Request) -> list[int]:
        contents, state = [], 0
        for token in request.tokens(0, request.known):
            state = hash((state, token))
            contents.append(state)
        return contents

    def slot(self, pages: list[int], position: int) -> int:
        return pages[position // self.pool.size] * self.pool.size + position % self.pool.size

    def assert_cache_holds(self, request: Request, pages: list[int], end: int) -> None:
        for position, content in enumerate(self.contents(request)[:end]):
            assert self.slots[self.slot(pages, position)] == content, f"{request.id} reads another's {position}"

    def compute(self, step: Step) -> list[tuple[Request, int]]:
        """Runs the model: checks what every work item reads, then writes; the sampled tokens."""
        read_only = [page for work in step.work for page in work.request.pages[: work.start // self.pool.size]]
        written: set[int] = set()
        for work in step.work:
            self.assert_cache_holds(work.request, work.request.pages, work.start)
            for position in range(work.start, work.end):
                slot = self.slot(work.request.pages, position)
                assert slot not in written
                assert slot // self.pool.size not in read_only
                written.add(slot)
                self.slots[slot] = self.contents(work.request)[position]
        for work in step.work:
            self.assert_cache_holds(work.request, work.request.pages, work.end)
        return [(w.request, (self.contents(w.request)[-1] >> 5) & 1) for w in step.work if w.samples]

    def assert_in_order(self, step: Step) -> None:
        """Budget, one item per request, no gap and no repetition, single tokens first, progress for the first."""
        assert step.tokens <= self.budget
        requests = [work.request for work in step.work]
        assert len(set(requests)) == len(requests)
        kinds = [work.count > 1 for work in step.work]
        assert kinds == sorted(kinds)
        for work in step.work:
            request = work.request
            assert work.start == request.computed < work.end <= request.known
            if request.preemptions != self.restarts[request] or request not in self.expected:
                self.restarts[request] = request.preemptions  # a (re)start, at a page's edge
                assert work.start % self.pool.size == 0
                assert work.start == 0 or (request.params.prompt_logprobs is None and self.pool.prefix_cache)
            else:
                assert work.start == self.expected[request]
            self.expected[request] = work.end
        running = [request for request in self.live.values() if request.pages]
        assert not self.live or min(running, key=Request.order) in requests

    def step(self, now: int, *, disturbed: bool) -> None:
        first = min(self.live.values(), key=Request.order, default=None)
        safe = first.preemptions if first is not None and first.pages else None
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        assert first is None or safe is None or first.preemptions == safe, "the first request was preempted"
        self.assert_in_order(step)
        sampled = self.compute(step)
        if disturbed:
            self.disturb(now)  # while the step is in flight
        self.scheduler.commit(step)
        for request, token in sampled:
            if request not in self.scheduler or not request.pages:
                continue
            request.output.append(token)
            if len(request.output) == request.params.max_tokens or request.known == self.scheduler.max_model_len:
                self.scheduler.finish(request)
                self.end(request)
        self.scheduler.check_integrity()
        for request in self.live.values():
            self.assert_cache_holds(request, request.pages, request.computed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), busy=st.floats(0.05, 1.5))
def test_promises_hold_in_any_life(seed: int, busy: float) -> None:
    rng = random.Random(seed)
    life = Life(rng)
    for now in range(100):
        while rng.random() < busy / (1 + busy):
            life.arrive(now)
        life.step(now, disturbed=True)
    # Nobody new comes. The first running request computes a token in every step, and loses them at most once for each
    # more urgent one that enters.
    tokens = sum(len(request.prompt) + request.params.max_tokens for request in life.live.values())
    bound = tokens * len(life.live)
    for now in range(bound):
        if not life.scheduler.has_work:
            break
        life.step(now, disturbed=False)
    assert not life.scheduler.has_work, "somebody starved"
    assert not life.live
    assert life.pool.free == life.pool.count, "pages leaked"
