"""Upstream lines that answer as the teacher does, and whose answers break at any byte in any of seven ways.

Each speaks the line protocol over loopback. All doubles of one run share a `Script`: what each case meets, and what was
seen of it.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.exactness.cases import CHOICES, HOPELESS, Case, Oracle

MAX_MODEL_LEN = 2048
SILENCE_SECONDS = 120.0  # longer than any gateway may wait
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Script:
    """`attempts` counts requests by seed, `struck` the faults carried out, `wrong` what no line may be asked."""

    oracle: Oracle
    stall_seconds: float
    cases: dict[int, Case] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    carried: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # prefix lengths, by seed

    def take(self, asked: Mapping[str, Any]) -> tuple[Case, str | None, random.Random]:
        """The case that is asked for, what this attempt at it meets, and its lot."""
        seed, prompt, prefix = asked["seed"], asked["prompt"], asked.get("output_prefix_ids") or []
        case = self.cases[seed // CHOICES]
        attempt = self.attempts[seed]
        self.attempts[seed] += 1
        where = f"case {case.number}, seed {seed}, attempt {attempt}"
        if self.oracle.prompt(case) != prompt:
            self.wrong.append(f"{where}: not the prompt's token ids")
        tokens = self.oracle.answer(case.corpus, prompt, seed, case.max_tokens)
        if tokens[: len(prefix)] != prefix:
            self.wrong.append(f"{where}: carries {len(prefix)} tokens that are not the answer's first ones")
        if asked["max_tokens"] != case.max_tokens:
            self.wrong.append(f"{where}: max_tokens {asked['max_tokens']}, not {case.max_tokens}")
        self.carried[seed].append(len(prefix))
        fault = case.faults[attempt] if attempt < len(case.faults) else None
        return case, fault, case.lot(seed, attempt)


class Upstream:
    """One line. `start` gives its URL."""

    def __init__(self, script: Script, model: str) -> None:
        self._script = script
        self._model = model
        self._server: asyncio.Server | None = None
        self.busy = 0  # answers under way
        self._asked = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False if the connection ends with it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = [line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(int(length[0])) if length else b""
        if head.startswith("get "):
            self._asked += 1  # the engine computes: it is a stream of it that is silent
            told = {"status": "ok", "steps": self._asked, "object": "list",
                    "data": [{"id": self._model, "max_model_len": MAX_MODEL_LEN}]}  # fmt: skip
            answer = json.dumps(told).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
            return True
        asked = json.loads(body)
        if "seed" not in asked or asked["seed"] // CHOICES not in self._script.cases:
            writer.write(self._probe(asked))
            return True
        self.busy += 1
        try:
            return await self._answer(reader, writer, asked)
        finally:
            self.busy -= 1

    def _probe(self, asked: Mapping[str, Any]) -> bytes:
        """A test request that is none of the cases: the tokens that are wanted, at once."""
        choice = {"index": 0, "token_ids": [9] * asked["max_tokens"], "finish_reason": "length"}
        return HEAD + _chunk(_event({"choices": [choice]})) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[str, Any]) -> bool:
        case, fault, lot = self._script.take(asked)
        parts = [HEAD, *map(_chunk, self._events(case, asked, lot)), b"0\r\n\r\n"]
        whole = b"".join(parts)
        if fault is None:
            await _send(writer, whole, lot)
            return True
        self._script.struck[fault] += 1
        # One whose budget is to run out must not come to its end.
        cut = lot.randrange(len(whole) // 3 if len(case.faults) >= HOPELESS else len(whole))
        if fault in ("broken_json", "in_band"):
            await _send(writer, _spoilt(parts, cut, fault), lot)
            return False
        pings = fault == "stall" and lot.random() < 0.5
        if fault == "200_then_nothing":
            cut = len(HEAD)
        elif pings:  # comments can only stand between events
            boundary = whole.find(b"\n\n\r\n", max(cut, len(HEAD)))
            cut, pings = (boundary + 4, True) if boundary >= 0 else (cut, False)
        await _send(writer, whole[:cut], lot)
        if fault == "reset":
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif fault in ("stall", "200_then_nothing"):
            await self._silence(reader, writer, pings)
        elif fault == "late_wake":
            await asyncio.sleep(lot.uniform(0.3, 1.7) * self._script.stall_seconds)
            await _send(writer, whole[cut:], lot)
            return True
        return False

    async def _silence(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pings: bool) -> None:
        """Until the other side has had enough. A comment between events is no progress."""
        left = asyncio.ensure_future(reader.read(1))
        end = asyncio.get_running_loop().time() + SILENCE_SECONDS
        while not left.done() and asyncio.get_running_loop().time() < end:
            await asyncio.wait((left,), timeout=0.25)
            if pings and not left.done():
                writer.write(_chunk(b": ping\n\n"))
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)

    def _events(self, case: Case, asked: Mapping[str, Any], lot: random.Random) -> list[bytes]:
        """By hand, because it is most of what the doubles do."""
        prompt, seed, prefix = asked["prompt"], asked["seed"], asked.get("output_prefix_ids") or []
        tokens = self._script.oracle.answer(case.corpus, prompt, seed, case.max_tokens)
        ends = self._script.oracle.ends
        rest, events, at = tokens[len(prefix) :], [], 0
        most = lot.choice((1, 1, 2, 5))
        envelope = json.dumps(
            {"id": asked.get("request_id"), "object": "text_completion", "created": 1, "model": self._model}
        )
        head = b"data: " + envelope[:-1].encode()
        choice = b',"choices":[{"index":0,"text":"","token_ids":%b,"logprobs":null%b}]}\n\n'
        while at < len(rest):
            some = rest[at : at + lot.randint(1, most)]
            more = b',"prompt_token_ids":%b' % json.dumps(prompt).encode() if at == 0 else b""
            at += len(some)
            if at == len(rest):
                stopped = some[-1] in ends
                told = {"finish_reason": "stop" if stopped else "length", "stop_reason": some[-1] if stopped else None}
                more += b"," + json.dumps(told)[1:-1].encode()
            events.append(head + choice % (json.dumps(some).encode(), more))
        count = len(tokens)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count,
                 "prompt_tokens_details": {"cached_tokens": 0}}  # fmt: skip
        events.append(head + b',"choices":[],"usage":%b}\n\n' % json.dumps(usage).encode())
        return [*events, b"data: [DONE]\n\n"]


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _spoilt(parts: list[bytes], cut: int, fault: str) -> bytes:
    """The answer with the event at byte `cut` cut in the middle (the rest follows), or an error event in its place."""
    at, index = 0, 0
    while at + len(parts[index]) <= cut:
        at += len(parts[index])
        index += 1
    index = min(max(index, 1), len(parts) - 2)  # an event, not the head or the end
    if fault == "in_band":
        error = _event({"error": {"message": "the engine failed", "type": "server_error", "code": "line_failed"}})
        return b"".join(parts[:index]) + _chunk(error) + parts[-1]
    event = parts[index].split(b"\r\n", 1)[1].removesuffix(b"\r\n").removesuffix(b"\n\n")
    keep = min(max(cut - at, 7), len(event) - 1)
    return b"".join([*parts[:index], _chunk(event[:keep] + b"\n\n"), *parts[index + 1 :]])


async def _send(writer: asyncio.StreamWriter, data: bytes, lot: random.Random) -> None:
    """In pieces that fall anywhere."""
    pieces = lot.choice((1, 2, 4, 8))
    cuts = sorted(lot.randrange(len(data) + 1) for _ in range(pieces - 1))
    for start, end in zip([0, *cuts], [*cuts, len(data)]):
        if start < end:
            if writer.is_closing():
                raise ConnectionResetError("the other side has had enough")
            writer.write(data[start:end])
            await writer.drain()
            await asyncio.sleep(0)
