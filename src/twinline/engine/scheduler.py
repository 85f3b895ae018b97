"""Which tokens the next step computes, and for whom.

Owns the waiting and running requests, the token budget of a step, admission and preemption. Knows nothing of tensors,
sampling or time: the loop brings the clock. Not thread-safe: one loop calls it.

Order. Requests are served by (priority, arrival). Running ones come before waiting ones; a waiting one is never
overtaken by another waiting one, so a large request is not starved by small ones.

Budget. A step computes at most `max_tokens_per_step` tokens: one for each decode, then chunks of running prefills in
order, then of newly admitted requests. Decodes never fill a step: there are at most `max_running` of them, and the
budget must be larger, so more than `max_tokens_per_step - max_running` tokens are left for the first prefill.

Admission. The first waiting request enters when everything it knows fits into free pages beside a reserve of one page
per running request (so that entering does not cause a preemption in the next steps), though it gets only its first
chunk's pages at once. Nobody is admitted in a step that preempted.

Preemption. A running request without pages takes them from the one served last, possibly itself, which goes back to
waiting in its old place and computes again later; what it had published stays in the prefix cache while pages last.

Progress. The first running request computes at least one token in every step: its share of the budget is never zero,
pages are given out in order, all others can be preempted for it, and `submit` refused what the whole pool cannot hold.
So it ends, and the running set drains. The first request of all is, if it waits, the next to be admitted, at the latest
when nothing runs; once it runs it is never preempted. So every request ends, unless more urgent ones arrive for ever.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from twinline.engine.pages import Chain, PagePool
from twinline.engine.request import Request


class IdInUse(ValueError):
    """Another live request has this id."""


class TooLong(ValueError):
    """Prompt and output prefix leave no room in the context."""


class QueueFull(Exception):
    """No more requests may wait. `waiting`: how many do."""

    def __init__(self, message: str, waiting: int) -> None:
        super().__init__(message)
        self.waiting = waiting


@dataclass(frozen=True, slots=True)
class Work:
    """Compute positions `start` to `start + count` of a request, whose pages are there already.

    A decode may come with a `draft`: tokens guessed to follow what is known, computed in the same step.
    """

    request: Request
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def samples(self) -> bool:
        """Whether the last position's logits give a new token. Read it before that token is appended."""
        return self.end - len(self.draft) == self.request.known


@dataclass(frozen=True, slots=True)
class Step:
    """One pass through the model: decodes (every single token) first, then chunks, each in order of service."""

    work: tuple[Work, ...]

    @property
    def tokens(self) -> int:
        return sum(work.count for work in self.work)


class Scheduler:
    """Call in turn: `schedule`, run the step, `commit`, append the sampled tokens, `finish` what ended.

    The loop must end a request at `max_tokens` output tokens or when `known` reaches `max_model_len`. The pages that
    are free in `pool` now are this scheduler's: allocate what others need for good before. `preemptions` only grows.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_tokens_per_step: int,
        max_running: int,
        max_waiting: int,
        max_model_len: int,
        ahead: int = 0,
    ) -> None:
        """`ahead`: how many tokens after a page its content depends on (`pages.Chain`)."""
        if min(max_running, max_waiting) < 1:
            raise ValueError(f"max_running {max_running} and max_waiting {max_waiting} must be at least 1")
        if max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2 (one token in, one out), not {max_model_len}")
        if max_tokens_per_step <= max_running:
            raise ValueError(
                f"max_tokens_per_step {max_tokens_per_step} leaves nothing for prefills beside max_running "
                f"{max_running} decodes: raise it to at least {max_running + 1}"
            )
        self.max_tokens_per_step = max_tokens_per_step
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.max_model_len = max_model_len
        self.preemptions = 0
        self._ahead = ahead
        self._pool = pool
        self._capacity = pool.free
        # Both sorted by Request.order. A request holds pages if and only if it runs.
        self._running: list[Request] = []
        self._waiting: list[Request] = []
        self._live: dict[str, Request] = {}
        self._chains: dict[str, Chain] = {}
        self._deadlines: list[tuple[float, str]] = []  # sorted, of all live requests that have one

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def live(self) -> list[Request]:
        """Everyone, running or waiting."""
        return list(self._live.values())

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def __contains__(self, request: Request) -> bool:
        return self._live.get(request.id) is request

    def find(self, request_id: str) -> Request | None:
        """The live request of this id."""
        return self._live.get(request_id)

    def submit(self, request: Request) -> None:
        """Puts a new request among the waiting.

        Raises ValueError for one that could never be served, with the smallest change that would help, and QueueFull
        when too many wait.
        """
        self._refuse_impossible(request)
        if len(self._waiting) >= self.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests wait and max_waiting is {self.max_waiting}: try again later, "
                f"or raise max_waiting",
                len(self._waiting),
            )
        self._live[request.id] = request
        self._chains[request.id] = Chain(request.tokens, self._pool.size, ahead=self._ahead)
        insort(self._waiting, request, key=Request.order)
        if request.deadline is not None:
            insort(self._deadlines, (request.deadline, request.id))

    def _refuse_impossible(self, request: Request) -> None:
        known, prompt, max_tokens = request.known, len(request.prompt), request.params.max_tokens
        if request.id in self._live:
            raise IdInUse(f"request id {request.id!r} is in use: choose another")
        if not prompt:
            raise ValueError("the prompt has 0 tokens: give at least 1")
        if request.pool is not None:
            return self._refuse_long_text(known)
        if known >= self.max_model_len:
            raise TooLong(
                f"prompt and output prefix have {known} tokens and max_model_len is {self.max_model_len}: shorten them "
                f"by {known - self.max_model_len + 1}, or raise max_model_len to {known + 1}"
            )
        if len(request.output) >= max_tokens:
            raise ValueError(
                f"the output prefix has {len(request.output)} tokens and max_tokens is {max_tokens}: "
                f"raise max_tokens to {len(request.output) + 1}"
            )
        # The last token is never computed: nothing follows it.
        longest = min(prompt + max_tokens, self.max_model_len) - 1
        pages = self._pool.pages_for(longest)
        if pages > self._capacity:
            room = self._capacity * self._pool.size + 1
            raise ValueError(
                f"a prompt of {prompt} tokens with max_tokens {max_tokens} needs {pages} pages of {self._pool.size} "
                f"tokens and the cache has {self._capacity}: give it {pages} pages"
                + (
                    f", or lower max_tokens to {room - prompt}"
                    if room > known
                    else f", or shorten prompt and output prefix by {known - room + 1} tokens"
                )
            )

    def _refuse_long_text(self, tokens: int) -> None:
        """A text that is pooled has every token computed, and nothing after them."""
        longest = min(self.max_model_len, self._capacity * self._pool.size)
        if tokens > longest:
            raise TooLong(f"the text has {tokens} tokens and at most {longest} are allowed: shorten it by "
                          f"{tokens - longest}")  # fmt: skip

    @property
    def decoding(self) -> Sequence[Request]:
        """The requests that run, if all decode and nobody can enter beside them: then a step has rows to spare."""
        open_place = len(self._running) < self.max_running
        if (self._waiting and open_place) or any(request.remaining != 1 for request in self._running):
            return ()
        return self._running

    def schedule(self, drafts: Mapping[str, Sequence[int]] = MappingProxyType({})) -> Step:
        """What to compute next; empty if nothing can be (no work, or sampled tokens not appended yet).

        `drafts` are guessed tokens by request id, for requests that decode; they take what nobody else wants of budget
        and pages.
        """
        counts, budget = self._share_budget()
        work: list[Work] = []
        before = list(self._running)
        for request, count in zip(before, counts, strict=True):
            if not request.pages:
                break  # preempted for one before it, and so is all that follows
            if count and self._make_room(request, count):
                work.append(Work(request, request.computed, count))
        if len(self._running) == len(before):
            work += self._admit(budget)
        if drafts:
            budget = self.max_tokens_per_step - sum(w.count for w in work)
            for i, w in enumerate(work):
                draft = tuple(drafts.get(w.request.id, ()))[:budget]
                if draft and w.count == 1 and w.samples and self.reserve(w.request, len(draft)):
                    work[i] = Work(w.request, w.start, 1 + len(draft), draft)
                    budget -= len(draft)
        return Step(tuple(sorted(work, key=_is_chunk)))

    def reserve(self, request: Request, more: int) -> bool:
        """Takes pages for `more` tokens beyond those known, if that leaves each running request one."""
        needed = self._pool.pages_for(request.known + more) - len(request.pages)
        if needed <= 0:
            return True
        pages = self._pool.allocate(needed) if needed + len(self._running) <= self._pool.free else None
        if pages is None:
            return False
        request.pages += pages
        return True

    def _share_budget(self) -> tuple[list[int], int]:
        """Tokens for each running request, and what is left for waiting ones."""
        remaining = [request.remaining for request in self._running]
        budget = self.max_tokens_per_step - remaining.count(1)
        counts = []
        for tokens in remaining:
            if tokens > 1:
                tokens = min(tokens, budget)
                budget -= tokens
            counts.append(tokens)
        return counts, budget

    def _make_room(self, request: Request, count: int) -> bool:
        """Gives a running request pages for `count` more tokens; false if it was preempted itself."""
        needed = self._pool.pages_for(request.computed + count) - len(request.pages)
        while needed > 0:
            pages = self._pool.allocate(needed)
            if pages is not None:
                request.pages += pages
                break
            if len(self._running) == 1:
                raise RuntimeError(
                    f"request {request.id!r} needs {needed} more pages beside its {len(request.pages)}, runs alone and "
                    f"{self._pool.free} are free: it outgrew what submit allowed, or pages were lost"
                )
            last = self._running[-1]
            self.preempt(last)
            if last is request:
                return False
        return True

    def _admit(self, budget: int) -> list[Work]:
        """Lets waiting requests in, strictly in order, while budget, places and pages last."""
        pool = self._pool
        admitted = []
        while budget and self._waiting and len(self._running) < self.max_running:
            request = self._waiting[0]
            lookup = not request.every_position
            chain = self._chains[request.id]
            matched = pool.match(chain, request.known - 1) if lookup else []
            needed = pool.pages_for(request.known) - len(matched) + pool.unheld(matched)
            if needed + len(self._running) > pool.free:
                break
            first_time = request.preemptions == 0
            pool.take(chain, matched, queried=request.known if lookup and first_time else 0)
            request.pages = matched
            request.computed = len(matched) * pool.size
            if first_time:  # later it would find its own pages
                request.cached_tokens = min(request.computed, len(request.prompt))
            del self._waiting[0]
            insort(self._running, request, key=Request.order)
            count = min(request.remaining, budget)
            self._make_room(request, count)
            budget -= count
            admitted.append(Work(request, request.computed, count))
        return admitted

    def commit(self, step: Step, held: Mapping[str, int] = MappingProxyType({})) -> None:
        """Records that a step ran. Call it before the new tokens are appended; what ended meanwhile is skipped.

        `held`, by request id: how many positions of a work with a draft hold, the tokens of all of them known by now.
        """
        for work in step.work:
            request = work.request
            if not request.pages or request.computed != work.start:
                continue
            request.computed = work.start + held.get(request.id, work.count)
            self._pool.publish(self._chains[request.id], request.pages, work.start, request.computed)

    def preempt(self, request: Request) -> None:
        """Sends a running request back to waiting, to compute again later. ValueError if it does not run."""
        if request not in self or not request.pages:
            raise ValueError(f"request {request.id!r} does not run")
        _remove(self._running, request)
        self._give_up_pages(request)
        request.preemptions += 1
        self.preemptions += 1
        insort(self._waiting, request, key=Request.order)

    def finish(self, request: Request) -> None:
        """Forgets a request and frees its pages. ValueError if it is not here (any more)."""
        if request not in self:
            raise ValueError(f"request {request.id!r} is neither waiting nor running")
        _remove(self._running if request.pages else self._waiting, request)
        self._give_up_pages(request)
        del self._live[request.id], self._chains[request.id]
        if request.deadline is not None:
            del self._deadlines[bisect_left(self._deadlines, (request.deadline, request.id))]

    def abort(self, request_id: str) -> Request | None:
        """Ends a request at any moment, between `schedule` and `commit` too. None if there is none of that id."""
        request = self.find(request_id)
        if request is not None:
            self.finish(request)
        return request

    def expired(self, now: float) -> list[Request]:
        """Ends and returns the requests whose deadline has come; `now` as `time.monotonic()`."""
        ended = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = self._live[self._deadlines[0][1]]
            self.finish(request)
            ended.append(request)
        return ended

    def _give_up_pages(self, request: Request) -> None:
        self._pool.release(request.pages)
        request.pages = []  # a new list: a step in flight may still read the old one
        request.computed = 0

    def check_integrity(self, others: Iterable[Sequence[int]] = ()) -> None:
        """Raises AssertionError where queues, requests and pages disagree. `others`: pages held outside, by holder."""
        self._pool.check_integrity([*(request.pages for request in self._running), *others])
        faults = []
        for request in self._waiting:
            if request.pages or request.computed:
                faults.append(f"{request.id!r} waits with {len(request.pages)} pages, {request.computed} computed")
        for request in self._running:
            if len(request.pages) < max(1, self._pool.pages_for(request.computed)):
                faults.append(f"{request.id!r} runs with {len(request.pages)} pages, {request.computed} computed")
        everyone = self._running + self._waiting
        for queue in (self._running, self._waiting):
            if queue != sorted(queue, key=Request.order):
                faults.append("a queue is out of order")
        if {r.id: r for r in everyone} != self._live or len(everyone) != len(self._live):
            faults.append(f"{len(self._live)} live requests, {len(everyone)} in queues")
        if self._chains.keys() != self._live.keys():
            faults.append(f"{len(self._chains)} key chains for {len(self._live)} live requests")
        if len(self._running) > self.max_running:
            faults.append(f"{len(self._running)} run, max_running is {self.max_running}")
        if faults:
            raise AssertionError("; ".join(faults))


def _is_chunk(work: Work) -> bool:
    return work.count > 1 and not work.draft


def _remove(queue: list[Request], request: Request) -> None:
    del queue[queue.index(request, bisect_left(queue, request.order(), key=Request.order))]
