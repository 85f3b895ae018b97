"""Who waits, in which order, how long, and who is sent away; which line is asked at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from tests.gateway.several import MODEL, Several, events, plain, run
from tests.lines.line_double import LineDouble, Script

from twinline.gateway.routing import Policy
from twinline.gateway.supply import Bounds
from twinline.lines.state import LineState


class Slots:
    """A line with room for so many; more are refused with 429. `let` ends those that run."""

    def __init__(self, double: LineDouble, tokens: list[int], room: int) -> None:
        self.double, self.room = double, room
        self.going = asyncio.Event()
        double.script = self.script
        self._tokens = tokens
        self.served: list[dict[str, Any]] = []

    def script(self, request: dict[str, Any]) -> Script:
        if self.double.active >= self.room:
            return Script(fault="refuse", status=429, headers={"retry-after": "5"})
        self.served.append(request)
        return Script(self._tokens, delay=0.0 if self.going.is_set() else 0.03)


def order_of(slots: Slots, made: Several) -> list[str]:
    """The prompts' last words, as they were served."""
    return [made.tokenizer.decode(each["prompt"]).split()[-1] for each in slots.served]


async def asks(made: Several, *words: str, **fields: Any) -> list[asyncio.Task[httpx.Response]]:
    """One request for each word, so far apart that they come in this order."""
    tasks = []
    for word in words:
        tasks.append(asyncio.create_task(made.complete(prompt=f"say {word}", max_tokens=20, **fields)))
        await asyncio.sleep(0.02)
    return tasks


def test_what_a_full_line_refuses_waits_and_is_served_in_order(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        slots = Slots(made.doubles["a"], made.tokens("some words of it"), 1)
        tasks = await asks(made, *"abcdef")
        await made.until(lambda: made.supply.waiting >= 4)
        for response in await asyncio.gather(*tasks):
            assert response.status_code == 200
        assert order_of(slots, made) == list("abcdef")
        refused = len(made.asked("a")) - 6
        assert refused <= 7, "a line that said it is full was asked over and over"

    run(tiny_folder, ["a"], test)


def test_the_queue_is_bounded_and_says_when_to_come_back(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        Slots(made.doubles["a"], made.tokens("some words of it, and some more of them"), 1)
        tasks = await asks(made, *"abcdefg")
        answers = await asyncio.gather(*tasks)
        sent_away = [each for each in answers if each.status_code == 429]
        assert len(sent_away) >= 2 and [each.status_code for each in answers].count(200) >= 3
        for each in sent_away:
            assert int(each.headers["retry-after"]) >= 1
            error = each.json()["error"]
            assert error["type"] == "rate_limit_error" and "queue is full" in error["message"]

    run(tiny_folder, ["a"], test, bounds=Bounds(queue_requests=3))


def test_nobody_waits_longer_than_the_bound(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        slots = Slots(made.doubles["a"], made.tokens("a long answer " * 12), 1)
        first, second, third = await asks(made, "a", "b", "c")
        told = (await second).json()["error"]  # the line had refused it itself
        assert (told["code"], told["type"]) == ("queue_full", "rate_limit_error")
        waited = await third
        assert waited.status_code == 429 and "0.3 s" in waited.json()["error"]["message"]
        slots.going.set()
        first.cancel()

    run(tiny_folder, ["a"], test, bounds=Bounds(queue_seconds=0.3))


def test_the_deadline_holds_in_the_queue(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        Slots(made.doubles["a"], made.tokens("a long answer " * 12), 1)
        first, second = await asks(made, "a", "b", timeout_s=0.4)
        assert (await second).json()["error"]["code"] == "deadline_exceeded"
        first.cancel()
        await made.until(lambda: not made.supply.waiting)

    run(tiny_folder, ["a"], test)


def test_what_waited_has_less_time_left_at_the_line(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        slots = Slots(made.doubles["a"], made.tokens("a long answer " * 4), 1)
        await asyncio.gather(*await asks(made, "a", "b", timeout_s=20))
        assert slots.served[0]["timeout_s"] == 20 and slots.served[1]["timeout_s"] < 19.9

    run(tiny_folder, ["a"], test)


def test_a_smaller_priority_is_served_first(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        slots = Slots(made.doubles["a"], made.tokens("some words of it"), 1)
        tasks = await asks(made, "a", "b")  # one runs, one is next
        tasks += await asks(made, "c", "d", priority=5)
        tasks += await asks(made, "e", "f", priority=-5)
        await asyncio.gather(*tasks)
        served = order_of(slots, made)
        assert served[0] == "a" and served[4:] == ["c", "d"] and served.index("e") < served.index("f")

    run(tiny_folder, ["a"], test)


def test_a_named_line_is_the_only_one_that_is_asked(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words")
        for _ in range(3):
            assert (await made.complete(model=f"{MODEL}@b")).status_code == 200
        assert not made.asked("a") and len(made.asked("b")) == 3
        unknown = await made.complete(model=f"{MODEL}@z")
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "line_not_found"
        made.to("b", LineState.QUARANTINED, "it computes nonsense")
        down = await made.complete(model=f"{MODEL}@b")
        assert down.status_code == 503 and "it computes nonsense" in down.json()["error"]["message"]

    run(tiny_folder, ["a", "b"], test)


def test_a_replicas_line_name_means_all_its_replicas(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words")
        assert (await made.complete(model=f"{MODEL}@b#2")).status_code == 200
        assert len(made.asked("b#2")) == 1
        made.to("b#2", LineState.STOPPED)
        assert (await made.complete(model=f"{MODEL}@b")).status_code == 200
        assert len(made.asked("b")) == 1 and not made.asked("a")

    run(tiny_folder, ["a", "b", "b#2"], test)


def test_a_line_without_weight_is_asked_by_those_who_name_it_and_nobody_else(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words")
        assert (await made.complete(model=f"{MODEL}@b")).status_code == 200
        assert len(made.asked("b")) == 1
        assert (await made.complete()).status_code == 200
        assert len(made.asked("a")) == len(made.asked("b")) == 1

    run(tiny_folder, ["a", "b"], test, policy=Policy("weighted", weights={"b": 0}))


def test_one_that_waits_for_its_line_does_not_keep_others_from_theirs(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        slots = Slots(made.doubles["b"], made.tokens("a long answer " * 8), 1)
        made.says("words", "a")
        pinned = await asks(made, "a", "b", "c", model=f"{MODEL}@b")
        await made.until(lambda: made.supply.waiting == 2)
        others = await asks(made, *"defg")
        done, _ = await asyncio.wait(others, timeout=20)
        assert len(done) == 4 and len(made.asked("a")) == 4 and not any(task.done() for task in pinned[1:])
        slots.going.set()
        assert [(await task).status_code for task in pinned] == [200] * 3
        assert order_of(slots, made) == list("abc")

    run(tiny_folder, ["a", "b"], test)


def test_a_line_that_lacks_a_feature_is_not_asked_for_it(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words")
        assert (await made.complete(logprobs=1)).status_code == 200
        assert not made.asked("a") and len(made.asked("b")) == 1
        assert (await made.complete()).status_code == 200
        assert len(made.asked("a")) == 1
        biased = await made.complete(logit_bias={"5": 1})
        error = biased.json()["error"]
        assert (biased.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "logit_bias")
        assert "line a lacks logit_bias, logprobs" not in error["message"] and "line b lacks" in error["message"]
        # One that could is down: that is no fault of the request.
        made.to("b", LineState.STOPPED, "it is being moved")
        down = await made.complete(logprobs=1)
        assert down.status_code == 503 and "it is being moved" in down.json()["error"]["message"]

    lines = [plain("a", lacks=frozenset({"logprobs", "logit_bias"})), plain("b", lacks=frozenset({"logit_bias"}))]
    run(tiny_folder, lines, test)


def test_the_context_says_who_is_asked(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words")
        prompt = "one two three four " * 8
        assert (await made.complete(prompt=prompt, max_tokens=200)).status_code == 200
        assert not made.asked("a") and len(made.asked("b")) == 1
        assert (await made.complete(max_tokens=20)).status_code == 200
        assert len(made.asked("a")) == 1
        assert (await made.complete(prompt=prompt, max_tokens=2000)).status_code == 400
        made.to("b", LineState.STOPPED, "it is being moved")
        down = await made.complete(prompt=prompt, max_tokens=200)
        assert down.status_code == 503, down.text

    run(tiny_folder, [plain("a", context=64), plain("b", context=512)], test)


def test_a_full_line_is_waited_for_where_the_others_cannot_take_it(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words", "a")
        Slots(made.doubles["b"], made.tokens("some words of it"), 1)
        tasks = await asks(made, "a", "b", "c", logprobs=1)
        assert [(await task).status_code for task in tasks] == [200] * 3
        assert not made.asked("a")

    run(tiny_folder, [plain("a", lacks=frozenset({"logprobs"})), plain("b")], test)


def test_a_refusal_by_one_line_is_not_the_clients_if_another_takes_it(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("words", "b")
        for status in (500, 503, 404):
            made.supply.restarted(made.line("a"))
            made.doubles["a"].script = lambda request, status=status: Script(fault="refuse", status=status)
            assert (await made.complete()).status_code == 200
        made.doubles["a"].script = lambda request: Script(fault="refuse", status=400)
        assert (await made.complete()).status_code == 400

    run(tiny_folder, ["a", "b"], test)


def test_a_storm_is_resumed_by_priority(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("It goes on and on, for long.\n</think>\n\nSo it is.", delay=0.03)
        low = [asyncio.create_task(made.chat(stream=True, priority=3)) for _ in range(4)]
        await made.until(lambda: len(made.asked("a")) == 4)
        high = [asyncio.create_task(made.chat(stream=True, priority=-3)) for _ in range(4)]
        await made.given(8, "a")
        made.to("a", LineState.STOPPED)
        await made.until(lambda: made.supply.waiting == 8)
        made.to("b", LineState.SERVING)
        for response in await asyncio.gather(*low, *high):
            assert events(response)[-1] == "[DONE]"
        assert [each["priority"] for each in made.asked("b")] == [-3] * 4 + [3] * 4

    async def start(made: Several) -> None:
        made.to("b", LineState.STOPPED)
        await test(made)

    run(tiny_folder, ["a", "b"], start)


def test_a_broken_stream_whose_lines_are_all_down_keeps_no_other_waiting(tiny_folder: Path) -> None:
    async def test(made: Several) -> None:
        made.says("It goes on and on, for long.\n</think>\n\nSo it is.", delay=0.03)
        stuck = asyncio.create_task(made.chat(model=f"{MODEL}@a", stream=True, priority=-9))
        other = asyncio.create_task(made.chat(model=f"{MODEL}@b", stream=True))
        await made.given(2, "a", "b")
        made.to("a", LineState.STOPPED)
        await made.until(lambda: made.supply.waiting == 1)
        made.to("b", LineState.STOPPED)
        await made.until(lambda: made.supply.waiting == 2)
        made.to("b", LineState.SERVING)
        assert events(await asyncio.wait_for(other, 15))[-1] == "[DONE]"
        assert not stuck.done()
        made.to("a", LineState.SERVING)
        assert events(await stuck)[-1] == "[DONE]"

    run(tiny_folder, [plain("a", weights_class="one"), plain("b", weights_class="two")], test)
