"""A simulated line: its endpoints, its clock, and the failures that are played on command.

Owns the join of engine, answers and faults in one event loop. Must not know sockets nor how text is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Sequence

from twinline.engine import wire
from twinline.engine.request import Output, Request
from twinline.engine.scheduler import IdInUse, QueueFull, TooLong
from twinline.lines.simulated import faults
from twinline.lines.simulated.answering import Answering, Around
from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.engine import Engine
from twinline.lines.simulated.faults import Fault, Faults
from twinline.lines.simulated.http import Connection
from twinline.lines.simulated.teacher import Teacher

OWNER = "twinline-simulated"


class Line:
    """Answers HTTP requests. Make it in the event loop that serves it.

    `label` says wherever the model is shown that it is a simulated one.
    """

    def __init__(self, name: str, chip: Chip, teacher: Teacher, vocab_size: int, fault: Fault, seed: int = 0) -> None:
        """Raises ValueError for a chip whose sizes do not fit together."""
        self.name, self.vocab_size = name, vocab_size
        self.label = f"simulated {chip.name}"
        self.engine = Engine(chip, teacher, self._deliver)
        self.faults = Faults(seed)
        self._created = int(time.time())
        self._end_tokens = teacher.end
        self._answers: dict[str, Answering] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._relief: asyncio.TimerHandle | None = None  # ends a failure of some seconds
        self._hung = False
        self._unanswered: list[Callable[[], None]] = []  # while it hangs
        self._loop = asyncio.get_running_loop()
        self._around = Around(
            name,
            self._created,
            vocab_size,
            self.engine.abort,
            self._forget,
            self._hang,
            self._loop.call_later,
            random.Random(seed),
        )
        self._set(fault)

    def handle(self, connection: Connection, method: str, target: str, body: bytes) -> None:
        """Answers one request, at once or when its tokens come."""
        path = target.partition("?")[0]
        if self._hung and path != "/simulate":
            self._unanswered.append(lambda: self.handle(connection, method, target, body))
            return
        routes = {
            ("POST", "/v1/completions"): self._completions,
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/simulate"): self._simulate,
        }
        answer = routes.get((method, path))
        if answer is None:
            known = any(p == path for _, p in routes)
            status, text = (405, f"{method} is not allowed on {path}") if known else (404, f"there is no {path}")
            connection.plain(status, wire.error_body(text, "invalid_request_error"))
            return
        try:
            answer(connection, body)
        except wire.BadRequest as error:
            told = wire.error_body(str(error), "invalid_request_error", error.param, error.code)
            connection.plain(error.status, told)

    # What a step brings.

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            if self._hung:
                self._unanswered.append(lambda output=output: self._deliver([output]))  # type: ignore[misc]
                continue
            answering = self._answers.get(output.request_id)
            if answering is not None:
                answering.take(output)

    def _forget(self, request_id: str) -> None:
        del self._answers[request_id]

    def _tick(self) -> None:
        self._timer = None
        if not self._hung:
            self.engine.advance(time.monotonic())
            self._wind()

    def _wind(self) -> None:
        """Sets the clock to the end of the step under way."""
        if self._timer is None and self.engine.due is not None and not self._hung:
            self._timer = self._loop.call_later(max(0.0, self.engine.due - time.monotonic()), self._tick)

    # Endpoints.

    def _models(self, connection: Connection, body: bytes) -> None:
        card = {"id": self.name, "object": "model", "created": self._created, "owned_by": OWNER,
                "max_model_len": self.engine.chip.max_model_len, "vocab_size": self.vocab_size,
                "label": self.label}  # fmt: skip
        connection.plain(200, wire.encode({"object": "list", "data": [card]}))

    def _health(self, connection: Connection, body: bytes) -> None:
        counters, scheduler = self.engine.counters, self.engine.scheduler
        told = {"status": "ok", "reason": None, "steps": counters.steps, "tokens_generated": counters.generated_tokens,
                "running": scheduler.running, "waiting": scheduler.waiting, "label": self.label,
                "simulates": self.faults.on.mode}  # fmt: skip
        connection.plain(200, wire.encode(told))

    def _metrics(self, connection: Connection, body: bytes) -> None:
        engine, counters, pool = self.engine, self.engine.counters, self.engine.pool
        told = [
            ("vllm:num_requests_running", "gauge", engine.scheduler.running),
            ("vllm:num_requests_waiting", "gauge", engine.scheduler.waiting),
            ("vllm:kv_cache_usage_perc", "gauge", 1 - pool.free / pool.count),
            ("vllm:num_preemptions_total", "counter", engine.scheduler.preemptions),
            ("vllm:prompt_tokens_total", "counter", counters.prompt_tokens),
            ("vllm:generation_tokens_total", "counter", counters.generated_tokens),
            ("vllm:prefix_cache_queries_total", "counter", pool.queried_tokens),
            ("vllm:prefix_cache_hits_total", "counter", pool.hit_tokens),
            ("twinline:engine_steps_total", "counter", counters.steps),
        ]
        name = self.name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines = [f'# TYPE {what} {kind}\n{what}{{model_name="{name}"}} {value}\n' for what, kind, value in told]
        lines.append("# TYPE vllm:request_success_total counter\n")
        for reason, count in counters.finished.items():
            lines.append(f'vllm:request_success_total{{model_name="{name}",finished_reason="{reason}"}} {count}\n')
        connection.plain(200, "".join(lines).encode(), kind="text/plain; version=0.0.4")

    def _completions(self, connection: Connection, body: bytes) -> None:
        asked = wire.decode(body)
        if asked.model is not None and asked.model != self.name:
            text = f"this line serves {self.name!r}, not {asked.model!r}"
            raise wire.BadRequest(text, "model", 404, "model_not_found")
        for field, value in (("logprobs", asked.logprobs), ("prompt_logprobs", asked.prompt_logprobs)):
            if value is not None:
                raise wire.BadRequest(f"a simulated line computes no probabilities: leave out {field}", field)
        if asked.logit_bias:
            raise wire.BadRequest("a simulated line has no logits to add to: leave out logit_bias", "logit_bias")
        request_id = asked.request_id or f"cmpl-{secrets.token_hex(12)}"
        if request_id in self._answers:
            raise wire.BadRequest(f"request_id {request_id!r} is in use", "request_id", 409)
        draw = secrets.randbits(63)
        request = wire.to_request(asked, request_id, vocab=self.vocab_size, eos=self._end_tokens, seed=draw)
        fault = self.faults.strikes()
        if fault is not None and fault.mode == "500":
            connection.plain(500, wire.error_body("a failure that was asked for", "server_error", code="line_failed"))
            return
        if fault is not None and fault.mode == "refuse":
            self._refuse(connection, "a refusal that was asked for")
            return
        try:
            self._submit(request)
        except QueueFull as error:
            self._refuse(connection, str(error))
            return
        self._answers[request_id] = Answering(connection, asked, request, fault, self._around)
        self._wind()

    def _submit(self, request: Request) -> None:
        try:
            self.engine.submit(request, time.monotonic())
        except IdInUse as error:
            raise wire.BadRequest(str(error), "request_id", 409) from None
        except TooLong as error:
            raise wire.BadRequest(str(error), "prompt", code="context_length_exceeded") from None
        except ValueError as error:
            raise wire.BadRequest(str(error), "prompt") from None

    def _refuse(self, connection: Connection, message: str) -> None:
        connection.plain(429, wire.error_body(message, "rate_limit_error", code="queue_full"), {"retry-after": "1"})

    # Failures.

    def _simulate(self, connection: Connection, body: bytes) -> None:
        """`POST /simulate`, from this machine only."""
        if not connection.local:
            connection.plain(403, wire.error_body("only this machine may ask for failures", "permission_error"))
            return
        try:
            fault = faults.parse(body)
        except ValueError as error:
            raise wire.BadRequest(str(error)) from None
        connection.plain(200, wire.encode({"simulates": fault}))
        self._set(fault)

    def _set(self, fault: Fault) -> None:
        self.faults.set(fault)
        if self._relief is not None:
            self._relief.cancel()
            self._relief = None
        self.engine.slowed = fault.factor if fault.mode == "slow" else 1.0
        if fault.mode == "ok":
            self._recover()
        elif fault.mode == "slow" and fault.seconds is not None:
            self._relief = self._loop.call_later(fault.seconds, self._set, Fault("ok"))
        elif fault.mode == "hang" and not fault.after_tokens:
            self._hang(fault)
        elif fault.mode == "die" and not fault.after_tokens:
            self._loop.call_later(0.05, os.kill, os.getpid(), signal.SIGKILL)  # the answer goes out first
        elif fault.mode not in faults.WHOLE | faults.AT_THE_DOOR and fault.streams == "all":
            for answering in self._answers.values():
                answering.fault = fault if self.faults.falls_on_one() else None

    def _hang(self, fault: Fault) -> None:
        self._hung = True
        if fault.seconds is not None:
            self._relief = self._loop.call_later(fault.seconds, self._set, Fault("ok"))

    def _recover(self) -> None:
        for answering in list(self._answers.values()):
            answering.wake()
        if self._hung:
            self._hung = False
            unanswered, self._unanswered = self._unanswered, []
            for answer in unanswered:
                with contextlib.suppress(ConnectionError):
                    answer()
            self._wind()
