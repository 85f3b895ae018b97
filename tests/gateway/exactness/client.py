"""A client that believes nothing: it reads an answer byte by byte by the rules and says what is wrong with it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
from tests.gateway.exactness.cases import Case, Expected


@dataclass
class Reply:
    """What came over the connection. `whole`: the HTTP message ended as it should. `arrivals`: a time for each read."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    arrivals: list[float] = field(default_factory=list)
    after: bytes = b""  # bytes behind the end of the message

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.whole = True

    @property
    def longest_gap(self) -> float:
        """Seconds between two reads."""
        return max((then - at for at, then in zip(self.arrivals, self.arrivals[1:])), default=0.0)


async def ask(url: str, path: str, body: object, seconds: float = 120.0, headers: str = "") -> Reply:
    """One POST on a connection of its own. Raises TimeoutError, OSError."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    reply = Reply()
    parser = httptools.HttpResponseParser(reply)
    try:
        async with asyncio.timeout(seconds):
            while not reply.whole:
                read = await reader.read(1 << 16)
                if not read:
                    break
                reply.arrivals.append(time.monotonic())
                parser.feed_data(read)
    except ConnectionResetError:
        pass
    finally:
        writer.close()
    reply.status = parser.get_status_code()
    return reply


@dataclass
class Delivered:
    """What the events of an answer say, by choice. `error` is the in-band error's object."""

    content: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    reasoning: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    finish: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    faults: list[str] = field(default_factory=list)

    def blame(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)


def read(reply: Reply, case: Case) -> Delivered:
    """What was delivered, and every rule that was broken in doing so."""
    got = Delivered()
    if reply.status != 200:
        got.error = json.loads(reply.body)["error"] if reply.body else {}
        got.blame(reply.whole, "an error answer was cut")
        return got
    if not case.streamed:
        _whole(reply, case, got)
        return got
    got.blame(reply.headers.get("content-type", "").startswith("text/event-stream"), "not an event stream")
    shared: set[tuple[Any, ...]] = set()
    roles: dict[int, int] = defaultdict(int)
    try:
        text = reply.body.decode("utf-8")
    except UnicodeDecodeError as error:
        got.faults.append(f"not UTF-8 at byte {error.start}")
        return got
    *blocks, rest = text.split("\n\n")
    got.blame(rest == "", f"an event was cut: {rest[:60]!r}")
    for block in blocks:
        if block.startswith(":") and "\n" not in block:
            continue
        got.blame(not got.done, f"an event after [DONE]: {block[:60]!r}")
        got.blame(got.error is None, f"an event after an error: {block[:60]!r}")
        if not block.startswith("data: ") or "\n" in block:
            got.faults.append(f"not an event: {block[:60]!r}")
            continue
        data = block.removeprefix("data: ")
        if data == "[DONE]":
            got.done = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            got.faults.append(f"not JSON: {data[:60]!r}")
            continue
        if "error" in event:
            got.error = event["error"]
            continue
        shared.add((event["id"], event["created"], event["model"], event["object"]))
        _event(event, case, got, roles)
    got.blame(len(shared) <= 1, f"{len(shared)} of id, created, model and object: {sorted(shared)[:3]}")
    if case.chat:
        got.blame(all(count == 1 for count in roles.values()), f"roles sent {dict(roles)} times")
        got.blame(set(got.content) | set(got.reasoning) | set(got.finish) <= set(roles), "a choice without a role")
    if got.done:
        got.blame(reply.whole, "no proper end behind [DONE]")
    elif got.error is None:
        got.blame(not reply.whole, "a clean end without [DONE] and without an error")
        got.faults.append("cut without a word")
    return got


def _event(event: dict[str, Any], case: Case, got: Delivered, roles: dict[int, int]) -> None:
    got.blame(event["object"] == ("chat.completion.chunk" if case.chat else "text_completion"), "another object")
    if event.get("usage") is not None:
        got.blame(got.usage is None and not event["choices"], "usage twice, or beside choices")
        got.blame(len(got.finish) == case.choices, "usage before every choice ended")
        got.usage = event["usage"]
    for choice in event["choices"]:
        index = choice["index"]
        got.blame(index not in got.finish, f"choice {index} goes on after its finish_reason")
        if case.chat:
            delta = choice["delta"]
            if "role" in delta:
                roles[index] += 1
                got.blame(delta["role"] == "assistant", "another role")
            got.blame(roles[index] > 0, "text before the role")
            got.content[index] += delta.get("content") or ""
            got.reasoning[index] += delta.get("reasoning_content") or ""
            got.blame(not (delta.get("reasoning_content") and got.content[index]), "reasoning after content")
        else:
            got.content[index] += choice["text"]
        if choice.get("finish_reason") is not None:
            got.finish[index] = choice["finish_reason"]


def _whole(reply: Reply, case: Case, got: Delivered) -> None:
    got.blame(reply.whole, "the answer was cut")
    body = json.loads(reply.body)
    for choice in body["choices"]:
        index = choice["index"]
        message = choice["message"] if case.chat else choice
        got.content[index] = message["content" if case.chat else "text"] or ""
        got.reasoning[index] = message.get("reasoning_content") or ""
        got.finish[index] = choice["finish_reason"]
    got.usage = body["usage"]
    got.done = True


def verdict(reply: Reply, case: Case, expected: Expected) -> list[str]:
    """What differs from the undisturbed answer; nothing if the reply is right.

    A hopeless case must end in an error, and hold no more than a beginning of the right text; if it came to its end all
    the same, it is judged as any other.
    """
    got = read(reply, case)
    wrong = list(got.faults)
    if case.hopeless and got.error is not None:
        if got.done or (got.finish and len(got.finish) == case.choices):
            wrong.append("an error, and yet a finish_reason or [DONE]")
        for index, choice in enumerate(expected.choices):
            both = ((got.content[index], choice.content), (got.reasoning[index], choice.reasoning))
            if not all(wanted.startswith(came) for came, wanted in both):
                wrong.append(f"choice {index}: what came before the error is not a beginning of the answer")
        return wrong
    if got.error is not None:
        return [*wrong, f"an error: {reply.status} {got.error}"]
    if not got.done:
        return [*wrong, "no [DONE]"]
    for index, choice in enumerate(expected.choices):
        for kind, came, wanted in (
            ("content", got.content[index], choice.content),
            ("reasoning", got.reasoning[index], choice.reasoning),
            ("finish_reason", got.finish.get(index), choice.finish),
        ):
            if came != wanted:
                wrong.append(f"choice {index}: {kind} {_difference(came or '', wanted)}")
    usage = got.usage or {}
    counted = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if counted != (expected.prompt_tokens, expected.completion_tokens):
        wrong.append(f"usage {counted}, not {(expected.prompt_tokens, expected.completion_tokens)}")
    elif usage["total_tokens"] != sum(counted):  # type: ignore[arg-type]
        wrong.append(f"usage does not add up: {usage}")
    return wrong


def _difference(came: str, wanted: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(came, wanted)) if a != b), min(len(came), len(wanted)))
    start = max(0, at - 5)
    return f"differs at {at} of {len(wanted)}: {came[start : at + 25]!r}, not {wanted[start : at + 25]!r}"
