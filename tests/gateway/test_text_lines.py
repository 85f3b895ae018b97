"""Lines that give text only: answered whole and streamed, asked again before the first word, never after in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.gateway.several import MODEL, PATIENCE, Several, events, plain, several
from tests.gateway.test_tools import folder_of
from tests.lines.text_double import TextDouble, Words

from twinline.gateway.order import text_source
from twinline.gateway.supply import Bounds
from twinline.lines.line import Line, VerificationFailed
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

SAID = "The sky is blue."


def remote(name: str, **fields: Any) -> LineSpec:
    told: dict[str, Any] = {"model": MODEL, "engine": "openai", "upstream": "big", "url": "http://127.0.0.1:1/v1"}
    return LineSpec(name=name, **(told | fields))


def run(
    folder: Path,
    specs: Sequence[LineSpec],
    test: Callable[[Several, dict[str, TextDouble]], Awaitable[None]],
    bounds: Bounds | None = None,
) -> None:
    async def main() -> None:
        remotes = {spec.name: TextDouble() for spec in specs if spec.engine == "openai"}
        urls = {name: await double.start() for name, double in remotes.items()}
        try:
            async with several(folder, specs, urls=urls, patience=PATIENCE, bounds=bounds) as made:
                await test(made, remotes)
        finally:
            for double in remotes.values():
                await double.stop()

    uvloop.run(main())


def content(found: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in found[:-1] for choice in chunk.get("choices", ()))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_in_text(tiny_folder: Path, stream: bool) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(thoughts=["It is ", "easy."])
        fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        response = await made.chat(temperature=0.3, user="u", **fields)
        path, asked = remotes["far"].requests[-1]
        assert path == "/v1/chat/completions" and asked["model"] == "big" and asked["temperature"] == 0.3
        assert asked["messages"] == [{"role": "user", "content": "hi"}]
        if stream:
            found = events(response)
            assert content(found) == SAID and found[-1] == "[DONE]"
            reasoning = "".join(
                choice["delta"].get("reasoning_content") or "" for chunk in found[:-1] for choice in chunk["choices"]
            )
            assert reasoning == "It is easy."
            usage = found[-2]["usage"]
        else:
            answer = response.json()
            message = answer["choices"][0]["message"]
            assert (message["content"], message["reasoning_content"]) == (SAID, "It is easy.")
            assert answer["choices"][0]["finish_reason"] == "stop"
            usage = answer["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 7)  # as the remote counts them

    run(tiny_folder, [remote("far")], test)


def test_messages_that_only_a_stand_ins_template_refuses_are_the_remotes_to_render(tiny_folder: Path) -> None:
    """An agent's second turn at a remote, whose fleet lends the embedded model's tokenizer."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
    ]

    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        response = await made.chat(messages=turns)
        assert response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == SAID
        asked = remotes["far"].requests[-1][1]["messages"]
        assert [message["role"] for message in asked] == ["user", "assistant", "tool"]

    async def beside_tokens(made: Several, remotes: dict[str, TextDouble]) -> None:
        assert (await made.chat(messages=turns)).status_code == 400

    run(tiny_folder, [remote("far")], test)
    run(tiny_folder, [remote("far"), plain("near")], beside_tokens)


@pytest.mark.parametrize(
    "told",
    [
        "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens.",  # vLLM
        "the request exceeds the available context size, try increasing it",  # llama.cpp
    ],
)
@pytest.mark.parametrize("in_stream", [False, True])
def test_a_prompt_that_is_too_long_for_a_remote_is_so_at_every_door(
    tiny_folder: Path, told: str, in_stream: bool
) -> None:
    """Clients know the case by OpenAI's code or Anthropic's words, and shorten the conversation."""

    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        error = {"message": told, "code": 400}
        remotes["far"].words = Words(told=error) if in_stream else Words(status=400, error=error)
        given = (await made.chat()).json()["error"]
        assert (given["message"], given["code"]) == (told, "context_length_exceeded")
        body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        given = (await made.client.post("/v1/messages", json=body)).json()["error"]
        assert (given["type"], given["message"]) == ("invalid_request_error", f"prompt is too long: {told}")

    run(tiny_folder, [remote("far")], test)


def test_a_request_waits_for_a_remote_that_says_in_its_stream_that_it_is_full(tiny_folder: Path) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(told={"message": "rate limited", "code": 429})
        asked = asyncio.create_task(made.chat())
        await made.until(lambda: remotes["far"].requests)
        await asyncio.sleep(0.2)
        assert len(remotes["far"].requests) == 1
        remotes["far"].words = Words()
        assert (await asked).status_code == 200

    run(tiny_folder, [remote("far")], test)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_a_remotes_filter_cuts_is_not_a_whole_one(tiny_folder: Path, stream: bool) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(finish="content_filter")
        asked = {"model": MODEL, "stream": stream}
        given = await made.client.post("/v1/responses", json={**asked, "input": "hi"})
        response = events(given)[-1]["response"] if stream else given.json()
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
        assert [item["status"] for item in response["output"]] == ["incomplete"]
        body = {**asked, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        given = await made.client.post("/v1/messages", json=body)
        reason = events(given)[-2]["delta"]["stop_reason"] if stream else given.json()["stop_reason"]
        assert reason == "refusal"

    run(tiny_folder, [remote("far")], test)


def test_a_completion_in_text(tiny_folder: Path) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        response = await made.complete(prompt="Why", max_tokens=30)
        assert response.json()["choices"][0]["text"] == SAID
        path, asked = remotes["far"].requests[-1]
        assert path == "/v1/completions" and asked["prompt"] == "Why"

    run(tiny_folder, [remote("far")], test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("words", [Words(status=500), Words(status=503), Words(status=429), Words(breaks_after=0)])
def test_what_breaks_before_its_first_word_is_asked_again_elsewhere(
    tiny_folder: Path, stream: bool, words: Words
) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = words
        response = await made.chat(stream=stream)
        said = content(events(response)) if stream else response.json()["choices"][0]["message"]["content"]
        assert said == SAID and len(remotes["other"].requests) == 1

    run(tiny_folder, [remote("far"), remote("other")], test)


def test_a_field_that_is_passed_over_and_cannot_be_passed_on() -> None:
    """The door reads only the fields that it knows: what stands in others is met when a line is to be given it."""
    assert text_source(b'{"prompt": "a"}', False).body == {"prompt": "a"}
    with pytest.raises(ValueError, match="cannot be passed on"):
        text_source(b'{"prompt": "a", "else": 1e999}', False)


@pytest.mark.parametrize("words", [Words(breaks_after=0), Words(["\n\n"], breaks_after=1)])
def test_what_breaks_before_its_first_word_may_go_to_a_line_of_tokens(tiny_folder: Path, words: Words) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        made.says("so.\n</think>\n\nIt is.", "near")
        remotes["far"].words = words
        assert content(events(await made.chat(stream=True))) == "It is."
        assert remotes["far"].requests and made.asked("near")

    run(tiny_folder, [remote("far"), plain("near")], test)


def test_what_breaks_after_a_word_ends_in_a_typed_error(tiny_folder: Path) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        made.says("so.\n</think>\n\nIt is.", "near")
        remotes["far"].words = Words(breaks_after=2)
        found = events(await made.chat(stream=True))
        assert found[-1]["error"]["code"] == "cannot_continue" and "[DONE]" not in found
        assert not any(choice["finish_reason"] for chunk in found[:-1] for choice in chunk["choices"])
        assert SAID.startswith(content(found))
        whole = await made.chat()
        assert whole.status_code == 502 and whole.json()["error"]["code"] == "cannot_continue"
        assert not remotes["other"].requests and not made.asked("near")

    run(tiny_folder, [remote("far"), remote("other"), plain("near")], test)


def test_a_stream_of_tokens_never_goes_on_at_a_line_of_text(tiny_folder: Path) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        tokens = made.says("so.\n</think>\n\nIt is.")
        from tests.lines.line_double import Script

        made.doubles["near"].script = lambda request: Script(tokens, fault="reset", fault_after=5)
        found = events(await made.chat(stream=True))
        assert found[-1]["error"]["code"] == "cannot_continue"
        assert not remotes["far"].requests

    run(tiny_folder, [plain("near"), remote("far")], test, bounds=Bounds(moves=1, resume_seconds=0.3))


def test_tools_go_to_the_line_that_has_them(tiny_folder: Path) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        made.says("so.\n</think>\n\nIt is.", "near")
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        assert (await made.chat(tools=tools)).json()["choices"][0]["message"]["content"] == SAID
        assert remotes["far"].requests[-1][1]["tools"] == tools and not made.asked("near")
        # And what needs token ids to the other.
        assert (await made.chat(logprobs=True)).json()["choices"][0]["message"]["content"] == "It is."

    run(tiny_folder, [plain("near"), remote("far")], test)


def test_a_call_that_must_be_made_goes_to_the_line_that_can_make_one(tiny_folder: Path, tmp_path: Path) -> None:
    """Calls of tokens are read by the gateway, so any line may be asked for those that the model makes by itself."""

    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        made.says("It is.", "near")
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        for choice in ("required", {"type": "function", "function": {"name": "f"}}):
            assert (await made.chat(tools=tools, tool_choice=choice)).status_code == 200
            assert remotes["far"].requests[-1][1]["tool_choice"] == choice and not made.asked("near")
        made.line("far").life.to(LineState.DRAINING, "a test")
        answer = await made.chat(tools=tools)
        assert answer.json()["choices"][0]["message"]["content"] == "It is." and made.asked("near")

    folder = folder_of("v31", tiny_folder, tmp_path / "v31")
    run(folder, [replace(plain("near"), context=4096, lacks=frozenset({"patterns"})), remote("far")], test)


def test_a_request_that_one_remote_forbids_goes_to_another_and_costs_nobody_a_line(tiny_folder: Path) -> None:
    """Remotes that look at prompts say 403 of some; a key that may do nothing gets the same from them."""

    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(status=403)
        for _ in range(12):
            assert (await made.chat()).status_code == 200
        assert made.supply.circuits["far"].closed and len(remotes["far"].requests) == 12
        remotes["other"].words = Words(status=403)
        refused = await made.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "line_refuses")
        assert "the remote is not well" not in refused.text

    run(tiny_folder, [remote("far"), remote("other")], test)


@pytest.mark.parametrize("status", [401, 402, 407, 408])
def test_a_remote_that_refuses_our_key_is_at_fault_and_not_the_client(tiny_folder: Path, status: int) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(status=status)
        for _ in range(12):
            assert (await made.chat()).status_code == 200
        assert not made.supply.circuits["far"].closed and len(remotes["far"].requests) < 12
        remotes["other"].words = Words(status=status)
        alone = await made.chat()
        assert alone.status_code == 503
        if status < 408:
            assert "the remote is not well" not in alone.text, "it may quote a part of our key"
        for stream in (False, True):  # all are out now, and the reason is told
            out = await made.chat(stream=stream)
            assert out.status_code == 503
            assert status == 408 or ("key or account" in out.text and "the remote is not well" not in out.text)

    run(tiny_folder, [remote("far"), remote("other")], test)


class Calling(TextDouble):
    """Its answer is one call whose arguments take long to write."""

    async def _answer(self, writer: asyncio.StreamWriter, path: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        function = {"name": "f", "arguments": ""}
        self._delta(writer, {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]})
        for _ in range(30):
            await asyncio.sleep(0.1)
            self._delta(writer, {"tool_calls": [{"index": 0, "function": {"arguments": "x"}}]})
        self._delta(writer, {}, "tool_calls")
        self._event(writer, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 32}})
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()

    def _delta(self, writer: asyncio.StreamWriter, delta: dict[str, Any], finish: str | None = None) -> None:
        self._event(writer, {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def test_a_call_that_is_being_written_is_no_silence(tiny_folder: Path) -> None:
    async def main() -> None:
        double = Calling()
        urls = {"far": await double.start()}
        tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        try:
            async with several(tiny_folder, [remote("far")], urls=urls, patience=replace(PATIENCE, blind=1.5)) as made:
                found = events(await made.chat(tools=tools, stream=True))
                deltas = [choice["delta"] for chunk in found[:-1] for choice in chunk.get("choices", ())]
                called = [call for delta in deltas for call in delta.get("tool_calls") or ()]
                assert "".join(call["function"].get("arguments") or "" for call in called) == "x" * 30
                assert made.supply.circuits["far"].closed
        finally:
            await double.stop()

    uvloop.run(main())


def test_a_line_of_its_class_that_has_no_address_hinders_no_other(tiny_folder: Path) -> None:
    """Whether it could go on with a text is known without one; an exception there would leave the client waiting."""

    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(breaks_after=2)
        made.line("gone").at(None)
        made.to("gone", LineState.STOPPED)
        async with asyncio.timeout(10):
            found = events(await made.chat(stream=True))
        assert found[-1]["error"]["code"] == "cannot_continue"
        assert len(remotes["far"].requests) > 1

    lines = [remote(name, options={"continuation": "prefill"}) for name in ("gone", "far")]
    run(tiny_folder, lines, test)


def test_what_a_remote_does_not_count_is_counted_here(tiny_folder: Path) -> None:
    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(usage={"prompt_tokens": 0, "completion_tokens": 0})
        usage = (await made.chat()).json()["usage"]
        assert usage["prompt_tokens"] == 7 and usage["completion_tokens"] >= 4

    run(tiny_folder, [remote("far")], test)


def test_a_prompt_counts_once_where_another_remote_goes_on(tiny_folder: Path) -> None:
    """The second is given what was said so far, too, and counts that as prompt."""

    async def test(made: Several, remotes: dict[str, TextDouble]) -> None:
        remotes["far"].words = Words(breaks_after=2)
        remotes["near"].words = Words(["blue."], usage={"prompt_tokens": 500, "completion_tokens": 1})
        found = events(await made.chat(stream=True, stream_options={"include_usage": True}))
        assert found[-2]["usage"]["prompt_tokens"] < 20 and found[-2]["usage"]["completion_tokens"] == 3

    run(tiny_folder, [remote(name, options={"continuation": "prefill"}) for name in ("far", "near")], test)


@pytest.mark.parametrize("lacks", [None, "max_tokens", "temperature", "messages"])
def test_a_remote_that_refuses_limits_is_tested_without(lacks: str | None) -> None:
    """OpenAI's models that reason take no `max_tokens`, and no temperature but theirs."""

    async def main() -> list[str]:
        double = TextDouble(Words(lacks=lacks))
        spec = remote("far", url=await double.start())
        line = Line("far", spec)
        try:
            if lacks == "messages":
                with pytest.raises(VerificationFailed, match="Unsupported parameter"):
                    await line.verify()
            else:
                await line.verify()
        finally:
            await double.stop()
        assert line.state is (LineState.QUARANTINED if lacks == "messages" else LineState.SERVING)
        return [" ".join(sorted(asked)) for _, asked in double.requests]

    asked = uvloop.run(main())
    bare = "messages model stream stream_options"
    limited = f"max_tokens {bare} temperature"
    assert asked == ([limited] if lacks is None else [limited, bare])
