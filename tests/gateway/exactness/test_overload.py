"""Five times what the lines can do: requests wait or are told to come back, and no line that works is put out."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from tests.gateway.exactness.client import Reply, ask
from tests.gateway.exactness.under_test import MODEL, make_gateway

from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.faults import Fault
from twinline.lines.simulated.http import Connection
from twinline.lines.simulated.line import Line
from twinline.lines.simulated.texts import recited

SECONDS = 5.0
TOKENS = 20
CHIPS = (
    Chip(name="fast", decode_tokens_per_second=80, prefill_tokens_per_second=4000, slots=6, max_waiting=96),
    Chip(name="slow", decode_tokens_per_second=20, prefill_tokens_per_second=1000, slots=6, max_waiting=96),
)
CAPACITY = sum(chip.decode_tokens_per_second * chip.slots for chip in CHIPS) / TOKENS  # requests per second


async def health(url: str) -> dict[str, Any]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        data = await reader.read(-1)
    finally:
        writer.close()
    lines: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])["models"][MODEL]["lines"]
    return lines


def test_overload_ejects_no_line(tiny_folder: Path) -> None:
    body = {"model": MODEL, "max_tokens": TOKENS, "ignore_eos": True, "stream": True,
            "messages": [{"role": "user", "content": "why"}]}  # fmt: skip
    teacher, vocabulary = recited(tiny_folder)
    out: list[Any] = []

    async def watch(url: str) -> None:
        while True:
            out.extend(line for line in (await health(url)).values() if line["state"] != "serving")
            await asyncio.sleep(0.1)

    async def main() -> list[Reply]:
        async with AsyncExitStack() as stack:
            urls = []
            for chip in CHIPS:
                line, connections = Line(MODEL, chip, teacher, vocabulary, Fault("ok")), set[Connection]()

                def accept(line: Line = line, connections: set[Connection] = connections) -> Connection:
                    return Connection(line.handle, connections)

                server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, backlog=1024)
                stack.callback(server.close)
                urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            url = await stack.enter_async_context(make_gateway(urls, tiny_folder))
            watching = asyncio.create_task(watch(url))
            replies, began = [], time.monotonic()
            for number in range(int(5 * CAPACITY * SECONDS)):
                await asyncio.sleep(max(0.0, began + number / (5 * CAPACITY) - time.monotonic()))
                replies.append(asyncio.create_task(ask(url, "/v1/chat/completions", body)))
            await asyncio.sleep(1)
            told = [reply.result() for reply in replies if reply.done()]
            watching.cancel()
            for reply in replies:
                reply.cancel()  # those that still wait need not be waited for
            await asyncio.gather(*replies, watching, return_exceptions=True)
            return told

    told = uvloop.run(main())
    assert not out
    ends = Counter("finished" if b"data: [DONE]" in reply.body else str(reply.status) for reply in told)
    assert ends["finished"] > 0.3 * CAPACITY * SECONDS, ends
    assert ends.keys() <= {"finished", "429"}, ends
