"""The engine's loop: schedule, run, sample, hand out; submit, abort and deadlines between steps.

Owns the order of things and the one thread that runs them, and a second one that watches whether a step ever ends.
`submit` and `abort` may be called from any thread; outputs are handed to `deliver`, once per step, on the loop's
thread, or on the watch's when the loop is stuck. Knows no HTTP and no text.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch

from twinline.engine import batch as batches
from twinline.engine.devices.device import silence
from twinline.engine.pages import PagePool
from twinline.engine.pooling import gathered
from twinline.engine.request import FinishReason, Output, Request, TokenLogprob
from twinline.engine.runner import Runner
from twinline.engine.sampler import BadLogits, Sampled, Sampler, prompt_logprobs
from twinline.engine.scheduler import Scheduler, Step, Work
from twinline.engine.speculation import Speculation, agreed, ahead

log = logging.getLogger(__name__)

FailureCode = Literal["line_failed", "device_lost", "device_hung"]

FATAL_FAILURES = 3  # steps in a row that raise, before the engine says it is dead
LOOK_SECONDS = 0.2  # between two looks at whether the step is over
PROMPT_LOGPROB_ROWS = 64  # logits of a whole vocabulary at a time


@dataclass
class Counters:
    """What the engine has done since it started. Only grows."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(FinishReason), 0))


class _New(NamedTuple):
    """What a step gave one request: the tokens that hold, the last of them not yet in its output."""

    work: Work
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


class Engine:
    def __init__(
        self,
        runner: Runner,
        pool: PagePool,
        scheduler: Scheduler,
        sampler: Sampler,
        deliver: Callable[[Sequence[Output]], None],
        observe: Callable[[Request, float], None] = lambda request, now: None,
        speculation: Speculation | None = None,
    ):
        """`observe` is called with each request that ends, and the time, for metrics.

        `failure` is why the engine has stopped for good, None while it has not; `failure_code` is its kind.
        """
        self.runner, self.pool, self.scheduler, self.sampler = runner, pool, scheduler, sampler
        self.deliver, self.observe, self.speculation = deliver, observe, speculation
        self.counters = Counters()
        self._tables = batches.PageTables(runner.spare_page)
        self.failure: str | None = None
        self.failure_code: FailureCode = "line_failed"
        self._step = 0  # the number of the one that runs, 0 between steps
        self._begun = 0
        self._lock = threading.Condition()
        self._aborts: list[Request] = []
        self._stopping = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._over = threading.Event()

    def start(self) -> None:
        self._thread.start()
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def stop(self) -> None:
        """Ends the loop after the step it is in, and waits for that; not for a step that hangs."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        while self._thread.is_alive():
            self._thread.join(LOOK_SECONDS)
            if self.failure_code == "device_hung":
                break
        self._over.set()

    def submit(self, request: Request) -> None:
        """Queues a request. Raises ValueError if it can never be served, QueueFull if too many wait."""
        with self._lock:
            if self.failure:
                raise RuntimeError(self.failure)
            self.scheduler.submit(request)
            self.counters.prompt_tokens += len(request.prompt)
            self._lock.notify()

    def abort(self, request_id: str) -> None:
        """Ends the request that has this id now, at any moment; its pages are free before the next step."""
        with self._lock:
            request = self.scheduler.find(request_id)
            if request is not None:  # else the id may soon be another's
                self._aborts.append(request)
                self._lock.notify()

    def _watch(self) -> None:
        """Ends every request when the loop is stuck in a step, which may never return."""
        device = self.runner.device
        seen, waited = 0, 0.0
        while not self._over.wait(LOOK_SECONDS):
            if self._step != seen or not seen:
                seen, waited = self._step, 0.0
                continue
            waited += LOOK_SECONDS  # not by the clock: it goes on while a process is stopped
            if waited > device.step_seconds:
                reason = (
                    f"device hangs: {device.name} has not ended a step within {device.step_seconds:g} s, "
                    f"which no step takes"
                )
                self._failed(reason, "device_hung")
                self._give_up(reason)
                return

    def _failed(self, reason: str, code: FailureCode = "line_failed") -> None:
        """The first reason stands: what comes after follows from it."""
        if self.failure is None:
            self.failure_code, self.failure = code, reason

    def _run(self) -> None:
        try:
            self.runner.device.prepare_thread()
            while not self.failure and self._wait():
                self.step()
        except Exception as error:
            log.exception("the loop broke")
            self._failed(f"the engine's loop broke: {type(error).__name__}: {error}")
        self._over.set()
        if self.failure:
            self._give_up(self.failure)

    def _give_up(self, reason: str) -> None:
        """Ends everything that is left, so that nobody waits for an engine that has stopped."""
        with self._lock:
            now, outputs = time.monotonic(), []
            for request in self.scheduler.live:
                self.scheduler.finish(request)
                outputs.append(self._ended(request, "error", now, reason))
        try:
            self.deliver(outputs)
        except Exception:
            log.exception("nobody could be told")

    def _wait(self) -> bool:
        """Sleeps until there is something to do; false when the engine is to stop."""
        with self._lock:
            while not (self._stopping or self._aborts or self.scheduler.has_work):
                self._lock.wait()
            return not self._stopping

    def step(self) -> None:
        """One pass: end what was aborted or is late, schedule, run, sample, hand out."""
        with self._lock:
            outputs = self._end_aborted_and_late()
            scheduler, guesses = self.scheduler, self.speculation
            drafts = guesses.drafts(scheduler.decoding, scheduler.max_model_len) if guesses is not None else {}
            step = scheduler.schedule(drafts)
        if step.work:
            self._begun += 1
            self._step = self._begun
            try:
                outputs += self._execute(step)
            except Exception as error:
                log.exception("a step failed for %s", ", ".join(w.request.id for w in step.work))
                outputs += self._fail(step, self._reason(error))
            finally:
                self._step = 0
        if outputs and self.failure_code != "device_hung":  # else all have been told already
            self.deliver(outputs)
        if step.work and guesses is not None and not self.failure:
            self._step = self._begun
            guesses.think(scheduler.max_model_len)
            self._step = 0

    def _reason(self, error: Exception) -> str:
        """Why a step failed, in words. A device that does not answer any more is lost, and the engine with it."""
        text = f"{type(error).__name__}: {error}"
        device = self.runner.device
        if (said := silence(device)) is not None:
            log.error("device %s does not answer: %s", device.name, said)
            self._failed(f"device lost: {device.name} does not answer any more ({text})", "device_lost")
            return str(self.failure)
        return f"the engine failed: {text}"

    def _end_aborted_and_late(self) -> list[Output]:
        now, ended = time.monotonic(), []
        aborts, self._aborts = self._aborts, []
        for request in aborts:
            if request in self.scheduler:
                self.scheduler.finish(request)
                ended.append(self._ended(request, "abort", now))
        ended += [self._ended(request, "deadline", now) for request in self.scheduler.expired(now)]
        return ended

    def _ended(self, request: Request, finish: FinishReason, now: float, error: str | None = None) -> Output:
        """Books the end of a request that the scheduler has forgotten already."""
        self.sampler.forget(request.id)
        if self.speculation is not None:
            self.speculation.forget(request.id)
        self.counters.finished[finish] += 1
        self.observe(request, now)
        return Output(request.id, finish=finish, cached_tokens=request.cached_tokens, error=error)

    def _execute(self, step: Step) -> list[Output]:
        runner = self.runner
        batch = batches.build(
            step.work, runner.page_size, runner.device.torch_device, runner.spare_page, self._tables,
            blocked=runner.gathers,
        )  # fmt: skip
        hidden = runner.hidden(batch)
        unreadable = self._collect_prompt_logprobs(batch, hidden)
        vectors = gathered(batch, hidden) if runner.model.head is None else {}
        sampling = {
            w: end
            for w, end in zip(batch.work, batch.ends, strict=True)
            if w.samples and w.request.pool is None and w.request.id not in unreadable
        }
        bad: BadLogits | None = None
        failed = [*unreadable, *(w.request.id for w, v in vectors.items() if v is None)]
        while True:
            try:
                result = self._sample(hidden, sampling)
                break
            except BadLogits as error:
                # A card that computes NaN for one request may be right about the others: they go on, it is told.
                bad, failed, before = error, [*failed, *error.request_ids], len(sampling)
                sampling = {w: end for w, end in sampling.items() if w.request.id not in failed}
                if len(sampling) == before:
                    raise
        with self._lock:
            if self.failure:  # the step came back after all, when its requests had been given up
                return []
            new = self._take(sampling, result)
            self.scheduler.commit(step, {w.request.id: len(tokens) for w, tokens, _ in new if w.draft})
            if self.speculation is not None and not failed:
                gave = {w.request.id: tokens for w, tokens, _ in new}
                self.speculation.ran(batch, hidden, gave, self.scheduler.running)
            self.counters.steps += 1
            self.counters.generated_tokens += sum(len(tokens) for _, tokens, _ in new)
            now = time.monotonic()
            outputs = [self._advance(w.request, tokens, logprobs, now) for w, tokens, logprobs in new]
            outputs += [self._gave(w.request, v, now) for w, v in vectors.items() if v is not None]
        if bad is None and failed:
            bad = BadLogits(failed, "hidden states are NaN or infinite")
        if bad is None:
            self._failures = 0
            return outputs
        log.error("%s", bad)
        of_bad = tuple(w for w in step.work if w.request.id in failed)
        return outputs + self._fail(Step(of_bad), f"the engine failed: {bad}")

    def _sample(self, hidden: torch.Tensor, sampling: dict[Work, int]) -> Sampled:
        """A token for each row of the works: of a draft, one for each of its places and one after."""
        if not sampling:
            return Sampled([], [])
        rows = [row for w, end in sampling.items() for row in range(end - len(w.draft), end + 1)]
        asked = [ahead(w.request, w.draft[:n]) for w in sampling for n in range(len(w.draft) + 1)]
        return self.sampler.sample(self.runner.logits(hidden, rows), asked)

    def _take(self, sampling: dict[Work, int], result: Sampled) -> list[_New]:
        """The tokens that hold, and what was asked of them. All but each request's last are in its output by now."""
        new, at = [], 0
        for w in sampling:
            count, end = 1, at + len(w.draft) + 1
            if w.draft:
                count = agreed(w.draft, result.tokens[at:end])
                self.counters.draft_tokens += len(w.draft)
                self.counters.accepted_tokens += count - 1
                if self.speculation is not None:
                    self.speculation.heard(w.request, len(w.draft), count - 1)
            tokens = result.tokens[at : at + count]
            for n, token in enumerate(tokens[:-1]):
                if self._finish(w.request, token) is not None:
                    tokens = tokens[: n + 1]
                    break
                w.request.output.append(token)
            logprobs = tuple(p for p in result.logprobs[at : at + len(tokens)] if p is not None)
            new.append(_New(w, tuple(tokens), logprobs))
            at = end
        return new

    def _finish(self, request: Request, token: int) -> Literal["stop", "length", "error"] | None:
        """Why a request ends with this token as its next, if it does. "error": its grammar can go no further."""
        length = len(request.output) + 1
        if token in request.params.stop_token_ids and (
            length > request.params.min_tokens or request.constraint is not None
        ):  # a grammar lets a stop token through where nothing else may follow, before min_tokens too
            return "stop"
        if request.constraint is not None and (verdict := request.constraint.verdict(request.output, token)):
            return verdict
        if length >= request.params.max_tokens or request.known + 1 >= self.scheduler.max_model_len:
            return "length"
        return None

    def _advance(
        self, request: Request, tokens: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], now: float
    ) -> Output:
        """Appends the last of a step's tokens, ends the request if it is its last, and says so."""
        finish = self._finish(request, tokens[-1])
        request.output.append(tokens[-1])
        first = request.first_token_at is None
        if first:
            request.first_token_at = now
        if finish:
            self.scheduler.finish(request)
            self._ended(request, finish, now)
        error = request.constraint.why if finish == "error" and request.constraint is not None else None
        wants_prompt = first and request.params.prompt_logprobs is not None
        return Output(
            request.id,
            tokens,
            logprobs,
            tuple(request.prompt_logprobs) if wants_prompt else None,
            finish,
            tokens[-1] if finish == "stop" and tokens[-1] in request.params.stop_token_ids else None,
            request.cached_tokens,
            error,
        )

    def _gave(self, request: Request, vector: bytes, now: float) -> Output:
        """Ends a text whose vector is made."""
        request.first_token_at = now
        self.scheduler.finish(request)
        return dataclasses.replace(self._ended(request, "stop", now), vector=vector)

    def _collect_prompt_logprobs(self, batch: batches.Batch, hidden: torch.Tensor) -> list[str]:
        """The logits at position p judge the prompt's token p + 1; the first token has none. Returns the ids of
        requests whose logits are no numbers."""
        unreadable = []
        for w, end_row in zip(batch.work, batch.ends, strict=True):
            request = w.request
            if request.params.prompt_logprobs is None:
                continue
            found = request.prompt_logprobs
            if not found:
                found.append(None)
            begin, stop = max(w.start, len(found) - 1), min(w.end, len(request.prompt) - 1)
            first_row = end_row - (w.end - 1)
            for at in range(begin, stop, PROMPT_LOGPROB_ROWS):
                until = min(at + PROMPT_LOGPROB_ROWS, stop)
                logits = self.runner.logits(hidden, range(first_row + at, first_row + until))
                try:
                    found += prompt_logprobs(logits, request.prompt[at + 1 : until + 1], request.params.prompt_logprobs)
                except ValueError:
                    unreadable.append(request.id)
                    break
        return unreadable

    def _fail(self, step: Step, message: str) -> list[Output]:
        """Ends every request of a step that raised: their tokens cannot be known. Others go on.

        A NaN shows only when a token is sampled, steps after it was written and perhaps published: so nothing that
        these requests computed is kept, and no prefix is.
        """
        self._failures += 1
        if self._failures >= FATAL_FAILURES:
            self._failed(f"{FATAL_FAILURES} steps in a row failed; the last: {message}")
        with self._lock:
            now, outputs = time.monotonic(), []
            pages = dict.fromkeys(page for w in step.work for page in w.request.pages)
            for request in (w.request for w in step.work):
                if request in self.scheduler:
                    self.scheduler.finish(request)
                    outputs.append(self._ended(request, "error", now, message))
            self.pool.reset_prefix_cache()
        if self.failure_code != "line_failed":
            return outputs
        try:
            self.runner.scrub([page for page in pages if self.pool.unheld([page])])
        except Exception as error:
            log.exception("the cache cannot be cleaned")
            self._failed(f"{message}; the cache cannot be cleaned: {type(error).__name__}: {error}")
        return outputs
