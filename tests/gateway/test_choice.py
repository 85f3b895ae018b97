"""A choice that breaks goes on elsewhere: nothing lost, nothing doubled, and never where it must not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.several import Several, events, plain, run
from tests.lines.line_double import Script, logprob

from twinline.gateway.supply import Bounds
from twinline.gateway.watch import Patience
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

TEXT = "It is easy: 你好.\n</think>\n\nThe answer is 👋 4, 数字二十."
REASONING, CONTENT = "It is easy: 你好.", "The answer is 👋 4, 数字二十."
FAULTS = ("reset", "end", "bad_json", "in_band")


def breaking(made: Several, name: str, tokens: list[int], fault: str, after: int, **script: Any) -> None:
    made.doubles[name].script = lambda request: Script(tokens, fault=fault, fault_after=after, **script)


def told(found: list[Any], index: int = 0) -> tuple[str, str, str | None]:
    """Reasoning, content and finish reason of one choice, after all that holds for every stream."""
    *chunks, done = found
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    assert sum("role" in choice["delta"] for choice in mine) == 1 and "role" in mine[0]["delta"]
    finishes = [choice["finish_reason"] for choice in mine if choice["finish_reason"]]
    assert len(finishes) == 1 and mine[-1]["finish_reason"]
    reasoning = "".join(choice["delta"].get("reasoning_content") or "" for choice in mine)
    return reasoning, "".join(choice["delta"].get("content") or "" for choice in mine), finishes[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_break_after_any_token_is_not_seen(tiny_folder: Path, fault: str) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b")
        for after in range(0, len(tokens), 3):
            made.supply.restarted(made.line("a"))
            made.doubles["b"].requests.clear()
            breaking(made, "a", tokens, fault, after)
            response = await made.chat(stream=True, stream_options={"include_usage": True})
            found = events(response)
            assert told(found) == (REASONING, CONTENT, "stop"), after
            usage = found[-2]["usage"]
            assert usage["completion_tokens"] == len(tokens)
            prefix = made.asked("b")[-1]["output_prefix_ids"]
            assert prefix == tokens[: len(prefix)] and after - 3 < len(prefix) <= after

    run(tiny_folder, ["a", "b"], test)


def test_the_same_where_the_answer_is_not_streamed(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b")
        breaking(made, "a", tokens, "reset", 9)
        answer = (await made.chat()).json()
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (REASONING, CONTENT)
        assert answer["usage"]["completion_tokens"] == len(tokens)

    run(tiny_folder, ["a", "b"], test)


def test_it_never_goes_on_in_another_class_of_weights(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b", "c")
        breaking(made, "a", tokens, "reset", 5)
        assert told(events(await made.chat(stream=True)))[:2] == (REASONING, CONTENT)
        assert not made.asked("b") and made.asked("c")
        made.doubles["c"].script = lambda request: Script(fault="refuse", status=500)
        made.supply.restarted(made.line("a"))
        made.to("c", LineState.QUARANTINED)
        found = events(await made.chat(stream=True))
        assert found[-1]["error"]["code"] == "cannot_continue" and not made.asked("b")
        # Of a stream that has not begun, nothing is out yet: any class may answer it.
        breaking(made, "a", tokens, "reset", 0)
        assert told(events(await made.chat(stream=True)))[:2] == (REASONING, CONTENT)
        assert made.asked("b")

    lines = [plain("a", weights_class="int8"), plain("b", weights_class="bf16"), plain("c", weights_class="int8")]
    run(tiny_folder, lines, test, bounds=Bounds(resume_seconds=0.4))


def test_what_one_line_has_begun_another_may_refuse_and_a_third_finish(tiny_folder: Path) -> None:
    """A 400 says that the request is wrong; of one that a line took it says something of the other line."""

    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "c")
        breaking(made, "a", tokens, "reset", 5)
        refusal = {"message": "logit_bias is not supported"}
        made.doubles["b"].script = lambda request: Script(fault="refuse", status=400, error=refusal)
        assert told(events(await made.chat(stream=True)))[:2] == (REASONING, CONTENT)
        assert made.asked("b") and made.asked("c")

    run(tiny_folder, ["a", "b", "c"], test)


def test_a_request_that_cannot_be_put_to_a_line_leaves_nothing_in_its_books(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT)

        def broken(*arguments: object) -> None:
            raise TypeError("nobody thought of that")

        monkeypatch.setattr(made.line("a"), "call", broken)
        for _ in range(3):
            assert told(events(await made.chat(stream=True)))[:2] == (REASONING, CONTENT)
        assert len(made.asked("b")) == 3 and not made.asked("a")
        books = made.supply.router.station("a")
        assert (books.inflight, books.queue, books.waiting) == (0, 0.0, False)
        monkeypatch.setattr(made.line("b"), "call", broken)
        answer = await made.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")

    run(tiny_folder, ["a", "b"], test)


def test_moves_have_a_budget_and_the_end_is_an_error_and_not_clean(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.tokens(TEXT)
        for name in made.doubles:
            breaking(made, name, tokens, "reset", 1)
        found = events(await made.chat(stream=True))
        assert found[-1]["error"]["code"] == "cannot_continue" and "broke 3 times" in found[-1]["error"]["message"]
        assert not any(choice["finish_reason"] for chunk in found[:-1] for choice in chunk["choices"])
        assert sum(len(made.asked(name)) for name in made.doubles) == 3  # the first, and two moves

    run(tiny_folder, ["a", "b", "c", "d"], test, bounds=Bounds(moves=2))


def test_a_drain_moves_every_stream_and_costs_no_move(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, delay=0.05)  # they must outlast five moves, on a busy machine too
        streams = [asyncio.create_task(made.chat(stream=True)) for _ in range(12)]
        await made.until(lambda: len(made.asked("a")) == 12)
        for name in ("a", "b", "a", "b", "a"):
            await made.given(12, "a", "b")
            made.to(name, LineState.DRAINING)
            await made.until(lambda name=name: not made.line(name).calls)  # type: ignore[misc]
            made.to(name, LineState.SERVING)
        for response in await asyncio.gather(*streams):
            assert told(events(response)) == (REASONING, CONTENT, "stop")
        assert len(made.asked("a")) + len(made.asked("b")) >= 12 * 4  # each moved more often than breaks may be
        asked = [each for name in "ab" for each in made.asked(name)]
        assert all(each["output_prefix_ids"] == tokens[: len(each["output_prefix_ids"])] for each in asked)

    run(tiny_folder, ["a", "b"], test, bounds=Bounds(moves=1))


def test_a_drained_line_keeps_what_nobody_else_can_take(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.02)
        stream = asyncio.create_task(made.chat(stream=True))
        await made.given(1, "a")
        made.to("a", LineState.DRAINING)
        assert told(events(await stream)) == (REASONING, CONTENT, "stop")
        assert not made.asked("b")

    run(tiny_folder, [plain("a"), plain("b", weights_class="other")], test)


def test_it_waits_for_lines_that_are_all_down_for_two_seconds(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.02)
        streams = [asyncio.create_task(made.chat(stream=True)) for _ in range(5)]
        await made.given(5, "a", "b")
        made.to("b", LineState.STOPPED)
        made.to("a", LineState.STOPPED)
        refused = await made.chat()  # a new request is told so at once
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_line"
        await asyncio.sleep(2.0)
        assert not any(stream.done() for stream in streams)
        made.to("a", LineState.SERVING)
        for response in await asyncio.gather(*streams):
            assert told(events(response)) == (REASONING, CONTENT, "stop")

    run(tiny_folder, ["a", "b"], test)


def test_log_probabilities_are_there_once_for_each_token(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b")
        for after in (1, 4, 11):
            made.supply.restarted(made.line("a"))
            breaking(made, "a", tokens, "reset", after)
            found = events(await made.chat(stream=True, logprobs=True, top_logprobs=1))
            entries = [
                entry
                for chunk in found[:-1]
                for choice in chunk["choices"]
                for entry in (choice["logprobs"] or {}).get("content", ())
            ]
            assert [entry["logprob"] for entry in entries] == pytest.approx([logprob(token) for token in tokens])

    run(tiny_folder, ["a", "b"], test)


def test_a_stop_string_that_a_move_cuts_in_two_is_found(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says("abc the end of it, and more", "b")
        for after in range(1, 12):
            made.supply.restarted(made.line("a"))
            breaking(made, "a", tokens, "reset", after)
            response = await made.complete(stop=["the end"], max_tokens=60)
            choice = response.json()["choices"][0]
            assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("abc ", "stop", "the end")

    run(tiny_folder, ["a", "b"], test)


def test_limits_of_tokens_count_over_a_move(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.tokens("one two three four five six seven eight", end=False)
        made.doubles["b"].script = lambda request: Script(tokens)
        breaking(made, "a", tokens, "reset", 4)
        response = await made.complete(max_tokens=9, min_tokens=6)
        asked = made.asked("b")[-1]
        assert (asked["max_tokens"], asked["min_tokens"], asked["output_prefix_ids"]) == (9, 6, tokens[:4])
        assert asked["seed"] == made.asked("a")[-1]["seed"]
        answer = response.json()
        assert answer["choices"][0]["text"] == made.tokenizer.decode(tokens[:9])
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 9)

    run(tiny_folder, ["a", "b"], test)


def test_what_broke_behind_its_last_token_ends_without_another_line(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.tokens("some words", end=False)
        made.doubles["a"].script = lambda request: Script([*tokens, 9, 9], fault="reset", fault_after=len(tokens))
        response = await made.complete(max_tokens=len(tokens))
        assert response.json()["choices"][0]["finish_reason"] == "length"
        assert response.json()["choices"][0]["text"] == "some words" and not made.asked("b")

    run(tiny_folder, ["a", "b"], test)


def test_four_choices_of_which_some_lose_their_line(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        answers = [made.tokens(f"Thinking {i}.\n</think>\n\n答案 {i} 👋") for i in range(4)]

        def script(request: dict[str, Any]) -> Script:
            index = int(request["request_id"].split("-")[-1 if not request["output_prefix_ids"] else -2])
            dies = not request["output_prefix_ids"] and request["model"] == "m-a"
            return Script(answers[index], fault="reset" if dies else None, fault_after=2 + index, delay=0.005)

        for double in made.doubles.values():
            double.script = script
        found = events(await made.chat(stream=True, n=4, stream_options={"include_usage": True}))
        for index in range(4):
            assert told(found, index) == (f"Thinking {index}.", f"答案 {index} 👋", "stop")
        assert found[-2]["usage"]["completion_tokens"] == sum(map(len, answers))
        assert len(made.asked("b")) == 4

    run(tiny_folder, [plain("a", upstream="m-a"), "b"], test)


def test_the_deadline_counts_over_a_move(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b", delay=0.01)
        breaking(made, "a", tokens, "reset", 4, delay=0.1)
        assert (await made.chat(timeout_s=600)).status_code == 200
        left = made.asked("b")[-1]["timeout_s"]
        assert 500 < left < 599.7  # the first line had its half second

    run(tiny_folder, ["a", "b"], test)


def test_the_deadline_holds_while_it_waits_for_a_line_to_come_up(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.1)
        began = time.monotonic()
        stream = asyncio.create_task(made.chat(stream=True, timeout_s=2.0))
        await made.given(1, "a")
        made.to("a", LineState.STOPPED)
        found = events(await stream)
        assert found[-1]["error"]["code"] == "deadline_exceeded", found[-1]
        assert 1.9 < time.monotonic() - began < Bounds().resume_seconds - 2  # else it was that wait which ended

    run(tiny_folder, ["a"], test)


def test_a_stream_that_waits_to_go_on_is_told_when_its_model_is_taken_away(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.1)
        stream = asyncio.create_task(made.chat(stream=True))
        await made.given(1, "a")
        made.to("a", LineState.STOPPED)
        await made.until(lambda: made.supply.waiting == 1)
        made.supply.close()
        async with asyncio.timeout(Bounds().resume_seconds / 2):
            found = events(await stream)
        assert found[-1]["error"]["code"] == "cannot_continue" and "taken away" in found[-1]["error"]["message"]

    run(tiny_folder, ["a"], test)


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_engine_that_gives_up_in_good_form_has_broken_off(tiny_folder: Path, finish: str) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b", delay=0.01)
        made.doubles["a"].script = lambda request: Script(tokens[:7], finish=finish, per_chunk=7)
        assert told(events(await made.chat(stream=True))) == (REASONING, CONTENT, "stop")
        made.doubles["a"].script = lambda request: Script(tokens[:7], finish=finish)
        found = events(await made.chat(stream=True, stream_options={"include_usage": True}))
        assert told(found) == (REASONING, CONTENT, "stop")
        assert found[-2]["usage"]["completion_tokens"] == len(tokens)

    run(tiny_folder, ["a", "b"], test)


def test_a_line_whose_context_the_answer_has_outgrown_is_not_asked_to_go_on(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        words = "one two three four five six seven eight nine ten" * 4
        tokens = made.says(words, "b", "c")
        breaking(made, "a", tokens, "reset", len(tokens) - 4)
        response = await made.chat()
        assert response.json()["choices"][0]["message"]["reasoning_content"] == words, response.text
        assert not made.asked("b") and len(made.asked("c")) == 1

    run(tiny_folder, [plain("a"), plain("b", context=40), plain("c")], test)


def test_a_line_that_came_back_is_asked_again_where_the_others_cannot_take_it(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.tokens(TEXT)
        fresh = [True]

        def script(request: dict[str, Any]) -> Script:
            first, fresh[0] = fresh[0], False
            return Script(tokens, fault="reset" if first else None, fault_after=6)

        made.doubles["a"].script = script
        found = events(await made.chat(stream=True, logprobs=True))
        assert told(found)[:2] == (REASONING, CONTENT)
        assert not made.asked("b") and len(made.asked("a")) == 2

    run(tiny_folder, [plain("a"), plain("b", lacks=frozenset({"logprobs"}))], test, bounds=Bounds(resume_seconds=3))


def test_a_silent_stream_moves_and_its_late_words_are_not_heard(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.says(TEXT, "b")
        made.doubles["a"].health = lambda: None
        breaking(made, "a", tokens, "hang", 5)
        assert told(events(await made.chat(stream=True))) == (REASONING, CONTENT, "stop")
        await made.until(lambda: made.doubles["a"].aborted)  # the call was closed: what it says later goes nowhere

    run(tiny_folder, ["a", "b"], test)


def test_a_client_that_leaves_while_it_waits_for_a_line_is_forgotten(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.02)
        stream = asyncio.create_task(made.chat(stream=True))
        await made.given(1, "a")
        made.to("a", LineState.STOPPED)
        await made.until(lambda: made.supply.waiting)
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        await asyncio.sleep(0.1)
        made.to("a", LineState.SERVING)
        await made.until(lambda: not made.supply.waiting)
        await asyncio.sleep(0.1)
        assert len(made.asked("a")) == 1

    run(tiny_folder, ["a"], test)


@pytest.mark.parametrize(
    "other", [plain("b", context=100), plain("b", lacks=frozenset({"exact"}))], ids=["context", "grammar"]
)
def test_a_drained_line_keeps_what_another_of_its_class_cannot_go_on_with(tiny_folder: Path, other: LineSpec) -> None:
    """A line that lacks room for it, or that would begin a grammar anew, is no line to move to."""

    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.02)
        asked = {"max_tokens": 300} if other.context == 100 else {"response_format": {"type": "json_object"}}
        stream = asyncio.create_task(made.chat(stream=True, **asked))
        await made.given(1, "a")
        made.to("a", LineState.DRAINING)
        assert told(events(await stream)) == (REASONING, CONTENT, "stop")
        assert not made.asked("b")

    run(tiny_folder, [plain("a"), other], test, bounds=Bounds(resume_seconds=0.5))


def test_a_silent_stream_stays_where_no_other_line_can_go_on_with_it(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        tokens = made.tokens(TEXT)
        going = asyncio.Event()
        made.doubles["a"].script = lambda request: Script(tokens, hold=going, hold_after=5)
        stream = asyncio.create_task(made.chat(stream=True))
        await made.given(1, "a")
        made.says(TEXT, "a", delay=0.03)  # it is not silent as a whole
        others = [asyncio.create_task(made.chat(stream=True)) for _ in range(3)]
        await asyncio.gather(*others)
        going.set()
        assert told(events(await stream)) == (REASONING, CONTENT, "stop")
        assert len(made.asked("a")) == 4

    patience = Patience(tick=0.02, quiet=0.1, longest=0.1, first=0.3, stream=1.0)
    run(tiny_folder, [plain("a"), plain("b", weights_class="other")], test, patience=patience)


def test_one_that_is_refused_everywhere_ends_within_the_time_for_broken_streams(tiny_folder: Path) -> None:
    """Each refusal would let it wait anew."""

    async def test(made: Several) -> None:
        made.says(TEXT, delay=0.02)
        made.doubles["b"].script = lambda request: Script(fault="refuse", headers={"retry-after": "0"})
        stream = asyncio.create_task(made.chat(stream=True))
        await made.given(1, "a")
        began = time.monotonic()
        made.to("a", LineState.STOPPED)
        found = events(await stream)
        assert found[-1]["error"]["code"] == "cannot_continue"
        assert 0.9 < time.monotonic() - began < 5 and len(made.asked("b")) > 1

    run(tiny_folder, ["a", "b"], test, bounds=Bounds(resume_seconds=1.0))


def test_cached_tokens_are_told_of_the_line_that_answered(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says(TEXT, "b")
        made.doubles["a"].script = lambda request: Script(fault="refuse", status=503)
        usage = (await made.chat()).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 3

    run(tiny_folder, ["a", "b"], test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["meter", "books", "break"])
def test_what_the_gateway_fails_at_in_the_end_of_a_choice_ends_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, stream: bool
) -> None:
    """Who asked is told at once, and the next request is answered as ever."""

    async def test(made: Several) -> None:
        tokens = made.says(TEXT)
        if where == "break":
            breaking(made, "a", tokens, "reset", 5)

        def broken(*arguments: object, **named: object) -> None:
            raise KeyError("nobody thought of that")

        with monkeypatch.context() as patched:
            if where == "books":
                patched.setattr("twinline.gateway.access.Access.book", broken)
            else:
                patched.setattr(made.supply, "ended", broken)
            async with asyncio.timeout(5):
                response = await made.chat(stream=stream)
        told_it = events(response)[-1] if stream else response.json()
        assert told_it["error"]["code"] == "internal_error" and (stream or response.status_code == 500)
        made.says(TEXT)
        assert told(events(await made.chat(stream=True))) == (REASONING, CONTENT, "stop")
        assert not any(line.calls for line in made.supply.lines.values())

    run(tiny_folder, ["a"], test)
