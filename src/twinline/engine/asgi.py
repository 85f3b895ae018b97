"""The worker's end of HTTP: bodies, whole answers, and clients that leave.

Owns these few steps over ASGI. Must not know what is asked or answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from twinline.engine import wire

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON_TYPE = (b"content-type", b"application/json")
BODY_LIMIT = 64 * 2**20


async def body_of(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise wire.BadRequest("the client went away")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_LIMIT:
            raise wire.BadRequest(f"the body is larger than {BODY_LIMIT} bytes", status=413)
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Does `work`, or cancels it and returns false when the client goes away first."""
    gone, task = asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        gone.cancel()
        task.cancel()


async def reply(send: Send, status: int, body: bytes, *extra: tuple[bytes, bytes], content=JSON_TYPE) -> None:
    headers = [content, (b"content-length", str(len(body)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
