"""One HTTP exchange in raw ASGI: read a bounded body, answer with JSON or with server-sent events, notice who left.

Owns the wire towards the client. Must not know models, tokens or fields. Raw ASGI because a streamed token should cost
one `send` and nothing else.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from twinline.gateway.errors import ApiError, bad_request

T = TypeVar("T")

MAX_BODY_BYTES = 64 << 20
BODY_SILENCE_SECONDS = 60.0  # between two pieces of a body
_PATH_IN_MESSAGE = re.compile(r" - at `(key in )?\$\.?(.*?)`$")
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
CLIENT_LEFT = 499  # nginx's word for it; only metrics and the log see it
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Exchange:
    """One request and its answer. `status` is what was sent, or None so far; `cause` is the failure that was told.

    `request_id` is the client's `x-request-id` if that is a token of sane length, else ours; every answer carries it.
    `subject` is what the request is about, in the log's words. `body_bytes` is the size of the body once it was read.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._scope_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.status: int | None = None
        self.streaming = False
        given = self.header("x-request-id") or ""
        self.request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self._id_header = (b"x-request-id", self.request_id.encode())
        self.subject = "model=- line=-"
        self.cause: str | None = None
        self.body_bytes = 0

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        for key, value in self._scope_headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    async def body(self, limit: int) -> bytes | None:
        """The whole body, or None if the client left. Raises ApiError: 413 above `limit` bytes, 408 if it stalls.

        A body that is too long is read to four times the limit and dropped, so that the client, which is still writing,
        gets to read why.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_SILENCE_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                silence = f"Nothing came of the body for {BODY_SILENCE_SECONDS:g} s."
                raise _body_error(408, silence, "slow_body") from None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= limit:
                parts.append(part)
            else:
                parts.clear()
            if not message.get("more_body", False) or size > 4 * limit:
                break
        if size > limit:
            raise _body_error(413, f"The body is longer than {limit} bytes.", "body_too_large")
        self.body_bytes = size
        return b"".join(parts)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> bool:
        """Runs `work`; cancels it when the client leaves first, and then returns False."""
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(self._client_left())
        try:
            await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return False
            task.result()
            return True
        finally:
            for each in (task, left):
                each.cancel()
            await asyncio.gather(task, left, return_exceptions=True)

    async def _client_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), self._id_header]
        sent += [(name.encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": sent})
        await self._send({"type": "http.response.body", "body": body})

    async def events(self, data: bytes) -> None:
        """Sends finished events; the first call also begins the answer."""
        if not self.streaming:
            self.streaming = True
            self.status = 200
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": [*_EVENT_HEADERS, self._id_header]}
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def error(self, error: ApiError) -> None:
        """An error answer or, once events have been sent, an in-band error event without `[DONE]`."""
        if self.status is not None and not self.streaming:
            return  # an answer is being sent already
        self.cause = error.message
        if not self.streaming:
            await self.json(error.body(), error.status, error.headers)
            return
        self.status = error.status
        await self.events(b"data: " + error.body() + b"\n\n")
        await self.end()


def _body_error(status: int, message: str, code: str) -> ApiError:
    """The connection cannot be used again: the rest of the body would be read as the next request."""
    return ApiError(status, message, code=code, headers={"connection": "close"})


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body as the decoder's type. Raises ApiError 400 that names the field at fault when there is one."""
    try:
        body.decode("utf-8")  # the decoder does not look inside fields it skips
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise bad_request(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    except msgspec.ValidationError as error:
        text = str(error)
        found = _PATH_IN_MESSAGE.search(text)
        missing = re.search(r"missing required field `(\w+)`", text)
        param = found.group(2) if found else ""
        if missing:
            param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        raise bad_request(f"{text}.", param or None) from error
    except msgspec.DecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise bad_request("The body is nested too deeply.") from error
