"""One request's answer on the wire, and the failure that meets it on the way.

Owns the events of an answer (docs/line-protocol.md) and how a failure of a stream looks. Must not know who decides that
one fails.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from twinline.engine import wire
from twinline.engine.request import Output, Request
from twinline.lines.simulated.faults import LATE_WAKE_SECONDS, Fault
from twinline.lines.simulated.http import Connection

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Around:
    """What an answer needs of the process around it: the name of its model, timers, and its end."""

    model: str
    created: int
    vocab_size: int
    abort: Callable[[str], None]  # ends the request in the engine
    ended: Callable[[str], None]  # the answer is over, however
    hang: Callable[[Fault], None]
    later: Callable[[float, Callable[[], None]], object]
    random: random.Random


class Answering:
    """Takes a request's outputs until its end. `fault` is what will strike it, if anything."""

    def __init__(
        self, connection: Connection, asked: wire.CompletionRequest, request: Request, fault: Fault | None, at: Around
    ) -> None:
        self.request = request
        self.fault = fault
        self._connection = connection
        self._at = at
        self._stream = asked.stream
        self._usage = not asked.stream or bool(asked.stream_options and asked.stream_options.include_usage)
        self._sent = 0
        self._first, self._begun = True, False
        self._wrong = self._broken = False
        self._held: list[bytes] | None = None  # events of a stream that is silent
        self._over = False
        self._tokens: list[int] = []  # of an answer that is not streamed
        envelope = {"id": request.id, "object": "text_completion", "created": at.created, "model": at.model}
        self._envelope = wire.encode(envelope)[:-1]
        connection.exchange = self
        if fault is not None and fault.mode == "200_then_nothing":
            self._begin()
            self._held = []

    def left(self) -> None:
        if not self._over:
            self._finish(abort=True)

    def take(self, output: Output) -> None:
        """What a step brought."""
        if self._over:
            return
        if self.fault is not None and self._sent >= self.fault.after_tokens and not self._survives(self.fault):
            return
        tokens = output.tokens
        if self._wrong:
            tokens = tuple(self._at.random.randrange(self._at.vocab_size) for _ in tokens)
        self._sent += len(tokens)
        if self._stream:
            self._say(self._event(output, tokens), output.finish is not None)
        else:
            self._tokens += tokens
            if output.finish is not None:
                self._whole(output)

    def wake(self) -> None:
        """Sends what was held back."""
        held, self._held, self.fault = self._held, None, None
        if held and not self._over:
            self._say(b"".join(held), held[-1].endswith(DONE))

    def _event(self, output: Output, tokens: tuple[int, ...]) -> bytes:
        """By hand, because it is the path of every token."""
        finish = b"null" if output.finish is None else b'"%b"' % output.finish.encode()
        stopped = b"null" if output.stop_token is None else b"%d" % tokens[-1]
        ids = ",".join(map(str, tokens)).encode()
        prompt = b""
        if self._first:
            self._first = False
            prompt = b',"prompt_token_ids":' + wire.encode(self.request.prompt)
        event = b'data: %b,"choices":[{"index":0,"text":"","token_ids":[%b],"logprobs":null,"finish_reason":%b,'
        event = event % (self._envelope, ids, finish) + b'"stop_reason":%b%b}]}\n\n' % (stopped, prompt)
        if self._broken:
            self._broken = False
            event = event[: len(event) // 2] + b"\n\n"
        if output.finish is not None:
            if self._usage:
                event += b'data: %b,"choices":[],"usage":%b}\n\n' % (self._envelope, self._totals(output))
            event += DONE
        return event

    def _totals(self, output: Output) -> bytes:
        count = self.request.carried + self._sent
        return wire.encode(wire.usage(len(self.request.prompt), count, output.cached_tokens))

    def _say(self, events: bytes, last: bool) -> None:
        if self._held is not None:
            self._held.append(events)
            return
        self._begin()
        self._connection.send(events)
        if last:
            self._connection.end()
            self._finish(abort=False)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._connection.begin()

    def _whole(self, output: Output) -> None:
        if self._held is not None:
            return
        joined = Output(output.request_id, tuple(self._tokens), finish=output.finish, stop_token=output.stop_token)
        chosen = wire.choice(joined) | {"prompt_token_ids": self.request.prompt}
        body = self._envelope + b',"choices":[%b],"usage":%b}' % (wire.encode(chosen), self._totals(output))
        self._connection.plain(200, body[: len(body) // 2] if self._broken else body)
        self._finish(abort=False)

    def _survives(self, fault: Fault) -> bool:
        """Lets the fault strike; False if nothing may be sent after it."""
        self.fault = None
        match fault.mode:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                self._at.hang(fault)
            case "wrong":
                self._wrong = True
            case "broken_json":
                self._broken = True
            case "stall" | "late_wake":
                self._held = []
                if fault.mode == "late_wake":
                    self._at.later(fault.seconds or LATE_WAKE_SECONDS, self.wake)
            case "reset" | "fin" | "in_band":
                self._finish(abort=True)
                self._break_off(fault.mode)
                return False
        return True

    def _break_off(self, mode: str) -> None:
        if mode == "reset":
            self._connection.reset()
        elif mode == "fin":
            self._connection.fin()
        else:
            error = wire.error_body("a failure that was asked for", "server_error", code="line_failed")
            if not self._stream:
                self._connection.plain(500, error)
                return
            self._begin()
            self._connection.send(b"data: " + error + b"\n\n")
            self._connection.end()

    def _finish(self, *, abort: bool) -> None:
        self._over = True
        self._connection.exchange = None
        self._at.ended(self.request.id)
        if abort:
            self._at.abort(self.request.id)
