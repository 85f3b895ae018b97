"""The client side of the line protocol (docs/line-protocol.md): token ids out, token ids in.

Owns the wire's names and their meaning. Must not know text, models or how a line is started.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any

import msgspec

from twinline.lines.http import Connection, ConnectionBroken, Target, connect
from twinline.lines.wire import Chunk, Delta, EventLines, Usage, merge, to_delta

DEADLINE_GRACE_SECONDS = 2.0  # how much longer than the request's own deadline a silent line is waited for
AFTER_FINISH_SECONDS = 2.0  # how long the usage chunk may take once the finish reason is here
QUESTION_SECONDS = 10.0  # for /v1/models, /health and /metrics
LONGEST_EVENT_BYTES = 256 << 20
# vLLM writes log-probabilities under token texts, which two ids may share, unless it is asked for ids.
_STREAMED = (
    b'{"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true,"return_tokens_as_token_ids":true,'
)


class LineError(Exception):
    """Anything a line did instead of answering."""


class LineRefused(LineError):
    """The line did not take the request; nothing was generated. `status` is HTTP's, `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        retry_after: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after, self.param = status, message, code, retry_after, param


class LineBroken(LineError):
    """The line took the request and then failed: reset, early end, broken JSON, an in-band error, or silence."""

    def __init__(self, reason: str, code: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a line is asked for; every field is the protocol's. `max_tokens` counts `output_prefix_ids` too."""

    model: str
    prompt: list[int]
    request_id: str
    output_prefix_ids: list[int] = []
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: dict[str, float] = {}
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    timeout_s: float | None = None


class _ErrorDetail(msgspec.Struct):
    message: str = ""
    code: str | int | None = None
    param: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail


_chunk_decoder = msgspec.json.Decoder(Chunk)
_error_decoder = msgspec.json.Decoder(_ErrorBody)
_request_encoder = msgspec.json.Encoder()


class LineClient:
    """Speaks to one line at `url` (`http://host:port` or `unix:///path`). Holds no connection between calls."""

    def __init__(self, url: str) -> None:
        self.target = Target.parse(url)

    async def stream(self, request: TokenRequest) -> AsyncGenerator[Delta, None]:
        """The answer as it arrives, one Delta per network read; ends after the last.

        Closing the generator closes the connection, which aborts the request at the line. Raises LineRefused before the
        first Delta, or LineBroken at any time before a finish reason was given; after that a failure only ends it.
        """
        finished = False
        body = _STREAMED + _request_encoder.encode(request)[1:]
        with closing(await self._send("POST", "/v1/completions", body)) as connection:
            if request.timeout_s is not None:
                silence = ConnectionBroken("the line stayed silent past the request's deadline", "deadline")
                connection.fail_after(request.timeout_s + DEADLINE_GRACE_SECONDS, silence)
            try:
                status = await connection.status()
                if status != 200:
                    raise await _refusal(connection, status)
                events = EventLines()
                while data := await connection.read():
                    delta, failure, done = _parse(events, data)
                    if delta is not None:
                        if delta.finish_reason is not None:
                            finished = True
                            connection.fail_after(AFTER_FINISH_SECONDS, ConnectionBroken("no usage chunk came"))
                        yield delta
                    if failure is not None:
                        raise failure
                    if done:
                        break
                if not finished:
                    raise LineBroken("the stream ended without a finish reason")
            except ConnectionBroken as error:
                if not finished:
                    raise LineBroken(str(error), error.code) from error
            except LineBroken:
                if not finished:
                    raise

    async def _send(self, method: str, path: str, body: bytes = b"") -> Connection:
        """A connection on which the request is under way. A line that cannot be reached has refused."""
        try:
            connection = await connect(self.target)
        except ConnectionBroken as error:
            raise LineRefused(503, str(error), "line_unreachable") from error
        connection.send(method, path, body)
        return connection

    async def _get(self, path: str) -> tuple[int, bytes]:
        with closing(await self._send("GET", path)) as connection:
            silence = ConnectionBroken(f"no answer to {path} within {QUESTION_SECONDS:g} s")
            connection.fail_after(QUESTION_SECONDS, silence)
            try:
                return await connection.status(), await _read_all(connection)
            except ConnectionBroken as error:
                raise LineBroken(str(error)) from error

    async def models(self) -> list[dict[str, Any]]:
        """The entries of `/v1/models`. Raises LineRefused or LineBroken."""
        status, body = await self._get("/v1/models")
        if status != 200:
            raise LineRefused(status, _message(body))
        try:
            listed: list[dict[str, Any]] = msgspec.json.decode(body)["data"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise LineBroken(f"/v1/models is not OpenAI's list: {error}") from error
        return listed

    async def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether the line can answer, and what it says of itself. Raises LineRefused or LineBroken."""
        status, body = await self._get("/health")
        try:
            said = msgspec.json.decode(body)
        except msgspec.DecodeError:
            said = {}
        return status == 200, said if isinstance(said, dict) else {}

    async def metrics_text(self) -> str:
        """The line's Prometheus text. Raises LineRefused or LineBroken."""
        status, body = await self._get("/metrics")
        if status != 200:
            raise LineRefused(status, _message(body))
        return body.decode("utf-8", "replace")


def _parse(events: EventLines, data: bytes) -> tuple[Delta | None, LineBroken | None, bool]:
    """What one read brought: its chunks merged, a failure that came after them, and whether the stream is done."""
    merged: Delta | None = None
    for event in events.feed(data):
        if event == b"[DONE]":
            return merged, None, True
        try:
            delta = _decode(event)
        except LineBroken as error:
            return merged, error, False
        merged = delta if merged is None else merge(merged, delta)
    if events.pending > LONGEST_EVENT_BYTES:
        return merged, LineBroken(f"an event longer than {LONGEST_EVENT_BYTES >> 20} MiB"), False
    return merged, None, False


def _decode(event: bytes) -> Delta:
    try:
        chunk = _chunk_decoder.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LineBroken(f"a chunk that is not the protocol's: {error}") from error
    if chunk.error is not None:
        code = chunk.error.code
        raise LineBroken(chunk.error.message or "the line reported an error", None if code is None else str(code))
    try:
        return to_delta(chunk)
    except ValueError as error:
        raise LineBroken(f"a chunk that is not the protocol's: {error}") from error


async def _read_all(connection: Connection) -> bytes:
    parts = []
    while data := await connection.read():
        parts.append(data)
    return b"".join(parts)


async def _refusal(connection: Connection, status: int) -> LineRefused:
    body = await _read_all(connection)
    try:
        detail = _error_decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = _ErrorDetail()
    code = None if detail.code is None else str(detail.code)
    message = detail.message or _message(body) or f"status {status}"
    return LineRefused(status, message, code, connection.headers.get("retry-after"), detail.param)


def _message(body: bytes) -> str:
    return body[:500].decode("utf-8", "replace")


__all__ = ["Delta", "LineBroken", "LineClient", "LineError", "LineRefused", "TokenRequest", "Usage"]
