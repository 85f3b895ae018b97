"""Work on long texts in threads of their own, few at a time, so that other streams do not wait for it.

Owns from when and how many. Must not know what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LONG_BODY_BYTES = 16_384
# A pool, not a semaphore around `to_thread`: work whose client left goes on in its thread, and still counts.
_threads = ThreadPoolExecutor(2, "long-text")


async def made(make: Callable[[], T], body_bytes: int) -> T:
    """What `make` returns; aside if it works on a request's body of that many bytes and that is long."""
    if body_bytes < LONG_BODY_BYTES:
        return make()
    return await asyncio.get_running_loop().run_in_executor(_threads, make)
