"""Answers that are text: held white space, and a move from one remote to another where the fleet says how."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.harness import served
from tests.gateway.test_door import NoSocket

from twinline.gateway.app import App
from twinline.gateway.door import Door
from twinline.gateway.heads import CONNECTION, CYCLE
from twinline.gateway.meters import Meters
from twinline.gateway.served import ModelText
from twinline.gateway.spoken import Spoken
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState
from twinline.lines.wire import Delta

WORDS = ["The", " sky", " is", " blue", ".\n", "\n", "So", " is", " the", " sea."]


def test_white_space_waits_for_what_follows_it() -> None:
    spoken = Spoken()
    shown = [spoken.push(Delta(text=word)) for word in WORDS]
    assert shown[4:7] == [[("content", ".")], [], [("content", "\n\nSo")]]
    assert spoken.content == "".join(WORDS)
    spoken.push(Delta(text=" \n"))
    spoken.cut()
    assert spoken.content == "".join(WORDS) and spoken.resumable
    assert Spoken().push(Delta(text="end \n", finish_reason="stop")) == [("content", "end \n")]


def test_reasoning_alone_or_a_tool_call_cannot_be_continued() -> None:
    spoken = Spoken()
    assert spoken.push(Delta(reasoning="hm ")) == [("reasoning", "hm ")]
    assert not spoken.resumable
    spoken.push(Delta(text="So"))
    assert spoken.resumable
    spoken.push(Delta(tool_calls=[{"index": 0}]))
    assert not spoken.resumable


def test_white_space_before_a_tool_call_does_not_come_after_it() -> None:
    spoken = Spoken()
    assert spoken.push(Delta(text="So.")) == [("content", "So.")] and spoken.push(Delta(text="\n\n")) == []
    assert spoken.push(Delta(tool_calls=[{"index": 0}])) == [("content", "\n\n")]
    assert spoken.push(Delta(finish_reason="tool_calls")) == []


class Remote:
    """An OpenAI endpoint that goes on after an assistant's last message, and breaks off an answer of its own."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.split("content-length: ")[1].split("\r\n")[0])
        asked = json.loads(await reader.readexactly(size))
        self.asked.append(asked)
        last = asked["messages"][-1]
        said = last["content"] if last["role"] == "assistant" else ""
        rest = "".join(WORDS).removeprefix(said)
        words = rest.replace(" ", "\0 ").split("\0")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for number, word in enumerate(words):
            if number == 4 and not said:
                writer.transport.abort()
                return
            last_word = number == len(words) - 1
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": "stop" if last_word else None}
            writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.005)
        writer.write(
            b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n\ndata: [DONE]\n\n'
        )
        writer.close()


@pytest.mark.parametrize("continuation", [None, "prefill"])
def test_an_answer_goes_from_one_remote_to_another_only_where_the_fleet_says_how(
    tiny_folder: Path, continuation: str | None
) -> None:
    async def test() -> None:
        first, second = Remote(), Remote()
        options = {} if continuation is None else {"continuation": continuation}
        lines = []
        for name, remote, price in (("first", first, 1.0), ("second", second, 2.0)):
            spec = LineSpec(
                name=name, model="m", engine="openai", url=await remote.start(), options=options, price_per_hour=price
            )
            line = Line(name, spec)
            line.life.told(LineState.SERVING, "a test")
            lines.append(line)
        app = App(Door([served("m", ModelText.load(tiny_folder), lines, Meters())]))
        body = {"model": "m", "messages": [{"role": "user", "content": "Why?"}], "stream": True}
        text, events = "", await exchange(app, body)
        for event in events[:-1]:
            text += event["choices"][0]["delta"].get("content", "") if event.get("choices") else ""
        if continuation is None:
            assert "could not be continued" in events[-1]["error"]["message"]
            assert text and "".join(WORDS).startswith(text) and not text[-1].isspace()
        else:
            assert text == "".join(WORDS)
            assert (len(first.asked), len(second.asked)) == (1, 1)

    async def exchange(app: App, body: dict[str, Any]) -> list[dict[str, Any]]:
        socket = NoSocket(json.dumps(body).encode())

        async def unused(message: Any = None) -> Any:
            raise AssertionError

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [],
            CONNECTION: socket,
            CYCLE: socket,
        }
        await asyncio.wait_for(app(scope, unused, unused), 10)
        events = re.findall(rb"^data: (.*)$", socket.written, re.MULTILINE)
        return [json.loads(event) for event in events if event != b"[DONE]"]

    asyncio.run(test())
