"""Busy is told from dead: lines that fall silent, streams that do, and lines that come back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.looped import looped
from tests.gateway.processes import simulated
from tests.lines.line_double import LineDouble, Script

from twinline.gateway.choice import Choice
from twinline.gateway.errors import ApiError
from twinline.gateway.meters import Meters, ModelMeter
from twinline.gateway.routing import Ask, Policy
from twinline.gateway.segment import Claim
from twinline.gateway.supply import Bounds, Supply
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.transcript import Piece, TextRules, Transcript
from twinline.gateway.watch import Patience, watching
from twinline.lines import circuit
from twinline.lines.drivers.vectors import IdVectors
from twinline.lines.line import Line
from twinline.lines.protocol import TextSource, TokenRequest, VectorRequest
from twinline.lines.spec import LineSpec

TOKENS = list(range(10, 30))
NEVER = 1000.0
SHORT = Patience(tick=0.02, quiet=0.2, longest=0.2, stream=NEVER, first=NEVER, ask=1.0, idle=NEVER, probe=1.0)


@dataclass
class Heard:
    """A choice's listener."""

    tokens: list[int] = field(default_factory=list)
    error: ApiError | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def piece(self, choice: Choice, piece: Piece) -> None:
        self.tokens += piece.tokens

    def over(self, choice: Choice) -> None:
        self.done.set()

    def failed(self, choice: Choice, error: ApiError) -> None:
        self.error = error
        self.done.set()


class Place:
    """A supply of lines at doubles, which is watched."""

    def __init__(self, supply: Supply, doubles: Sequence[LineDouble], tokenizer: Tokenizer) -> None:
        self.supply, self.doubles, self.tokenizer = supply, doubles, tokenizer
        self._numbers = count(1)

    def ask(self, line: str | None = None, tokens: int = len(TOKENS)) -> tuple[Choice, Heard]:
        request = TokenRequest(model="m", prompt=[5, 6, 7], request_id=f"r{next(self._numbers)}", max_tokens=tokens,
                               temperature=0.0, ignore_eos=True)  # fmt: skip
        heard = Heard()
        transcript = Transcript(self.tokenizer, TextRules(), None)
        ask = Ask(prompt_tokens=3, keys=(), output_tokens=tokens, needs=frozenset(), context=3 + tokens, key="")
        choice = Choice(self.supply, request, transcript, ask, heard, 0, Claim(), lambda: TextSource({}, False), line)
        choice.start()
        choice.pinned = None  # it began there, and may go on anywhere
        return choice, heard

    def closed(self, *names: str) -> bool:
        return all(self.supply.circuits[name].closed for name in names)


async def until(what: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.01)


def names(choice: Choice) -> list[str]:
    return [segment.line.name for segment in choice.segments]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer.load(tiny_folder)


def line_at(name: str, url: str, **options: Any) -> Line:
    line = Line(name, LineSpec(name=name, model="tiny", upstream="m", engine="native", url=url, **options))
    line.facts = {"max_model_len": 512}
    return line


@asynccontextmanager
async def place(tokenizer: Tokenizer, lines: int = 2, patience: Patience = SHORT) -> AsyncIterator[Place]:
    doubles = [LineDouble() for _ in range(lines)]
    meters = Meters()
    supply = Supply("tiny", Policy("fastest"), ModelMeter(meters, "tiny"), Bounds(queue_seconds=5.0))
    for name, double in zip("abcdefgh", doubles, strict=False):
        line = line_at(name, await double.start())
        await line.verify()
        supply.add(line)
        double.script = lambda request: Script(TOKENS)
    async with watching(supply, patience):
        yield Place(supply, doubles, tokenizer)
    for name in list(supply.lines):
        supply.remove(name)
    for double in doubles:
        with contextlib.suppress(Exception):
            await double.stop()


@looped
async def test_a_line_that_computes_is_left_alone_however_silent(tokenizer: Tokenizer) -> None:
    steps = count(1)
    async with place(tokenizer, patience=replace(SHORT, idle=0.5)) as at:
        at.doubles[0].script = lambda request: Script(TOKENS[:4], delay=1.0)  # five times what is bearable
        at.doubles[0].health = lambda: {"status": "ok", "steps": next(steps)}
        choice, heard = at.ask("a", 4)
        await heard.done.wait()
        assert heard.error is None and heard.tokens == TOKENS[:4]
        assert names(choice) == ["a"] and at.closed("a", "b")
        assert next(steps) > 4  # it was asked


@looped
async def test_a_line_that_does_not_answer_is_dead(tokenizer: Tokenizer) -> None:
    async with place(tokenizer) as at:
        at.doubles[0].script = lambda request: Script(TOKENS, fault="hang", fault_after=6)
        at.doubles[0].health = lambda: None
        asked = [at.ask("a") for _ in range(3)]
        for choice, heard in asked:
            await heard.done.wait()
            assert heard.error is None and heard.tokens == TOKENS and names(choice) == ["a", "b"]
            assert choice.segments[0].left == "stalled"
        assert not at.closed("a") and at.closed("b")
        assert "it does not answer" in at.supply.circuits["a"].reason


@looped
async def test_a_line_that_answers_but_computes_nothing_is_dead_in_the_end(tokenizer: Tokenizer) -> None:
    asked = count()
    async with place(tokenizer, patience=Patience(tick=0.02, quiet=0.1, longest=0.1, stream=NEVER, first=NEVER, ask=1,
                                                  idle=1.0)) as at:  # fmt: skip

        def health() -> dict[str, Any]:
            next(asked)
            return {"status": "ok", "steps": 5}

        at.doubles[0].health = health
        at.doubles[0].script = lambda request: Script(TOKENS, fault="hang", fault_after=6)
        choice, heard = at.ask("a")
        await heard.done.wait()
        assert heard.tokens == TOKENS and names(choice) == ["a", "b"]
        assert "computed nothing" in at.supply.circuits["a"].reason
        assert next(asked) > 2  # not the first silence


@looped
async def test_a_gateway_that_keeps_standing_still_finds_a_dead_line_all_the_same(tokenizer: Tokenizer) -> None:
    patience = Patience(tick=0.02, quiet=0.1, longest=0.1, stream=NEVER, first=NEVER, ask=2, idle=0.5)
    async with place(tokenizer, patience=patience) as at:

        async def stand() -> None:
            while True:
                time.sleep(0.3)
                await asyncio.sleep(0.1)

        at.doubles[0].script = lambda request: Script(TOKENS, fault="hang", fault_after=6)
        standing = asyncio.create_task(stand())
        choice, heard = at.ask("a")
        await asyncio.wait_for(heard.done.wait(), 60)
        standing.cancel()
        assert heard.tokens == TOKENS and names(choice) == ["a", "b"]
        assert "computed nothing" in at.supply.circuits["a"].reason


@looped
async def test_one_silent_stream_moves_from_a_lively_line(tokenizer: Tokenizer) -> None:
    patience = Patience(tick=0.02, quiet=0.2, longest=0.2, stream=2.0, first=NEVER, ask=1)
    async with place(tokenizer, patience=patience) as at:
        at.doubles[0].script = lambda request: (
            Script(TOKENS, fault="hang", fault_after=6)
            if request["request_id"] == "r1"
            else Script(TOKENS * 4, delay=0.02)
        )
        silent, first = at.ask("a")
        lively, second = at.ask("a", 80)
        await first.done.wait()
        await second.done.wait()
        assert first.tokens == TOKENS and names(silent) == ["a", "b"]
        assert second.tokens == TOKENS * 4 and names(lively) == ["a"]
        assert at.closed("a", "b")


@looped
async def test_a_silent_stream_stays_where_there_is_no_other_line(tokenizer: Tokenizer) -> None:
    patience = Patience(tick=0.02, quiet=0.1, longest=0.1, stream=1.0, first=0.1, ask=1)
    async with place(tokenizer, lines=1, patience=patience) as at:
        steps = count()
        at.doubles[0].health = lambda: {"status": "ok", "steps": next(steps)}
        at.doubles[0].script = lambda request: (
            Script(TOKENS[:3], delay=0.5) if request["request_id"] == "r1" else Script(TOKENS * 4, delay=0.02)
        )
        slow, heard = at.ask("a", 3)
        _, other = at.ask("a", 80)
        await heard.done.wait()
        assert heard.tokens == TOKENS[:3] and names(slow) == ["a"]
        await other.done.wait()


@looped
async def test_a_gateway_that_was_stopped_itself_blames_no_line(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own loop stood still: all lines look silent at once, and none is, though none sends at once thereafter."""
    patience = Patience(tick=0.02, quiet=1.0, longest=1.0, stream=2.0, first=NEVER, ask=2)
    async with place(tokenizer, lines=3, patience=patience) as at:
        go = asyncio.Event()
        for double in at.doubles:
            steps = count()
            double.health = lambda steps=steps: {"status": "ok", "steps": next(steps)}
            double.script = lambda request: Script(TOKENS, hold=go, hold_after=4)
        asked = [at.ask(name) for name in "aabbcc"]
        await until(lambda: all(len(heard.tokens) == 4 for _, heard in asked))
        time.sleep(2.5)  # the doubles stand still with it, as behind a stopped machine
        await asyncio.sleep(0.2)  # ten looks
        go.set()
        for choice, heard in asked:
            await heard.done.wait()
            assert heard.tokens == TOKENS and len(choice.segments) == 1
        assert at.closed("a", "b", "c")
    stood = [each.args for each in caplog.records if "stood still for" in each.message]
    assert any(float(seconds) >= 2.4 for (seconds,) in stood)  # type: ignore[arg-type, misc]


@looped
async def test_a_question_that_ran_out_while_the_gateway_was_stopped_is_asked_again(tokenizer: Tokenizer) -> None:
    patience = replace(SHORT, ask=0.5)
    async with place(tokenizer, patience=patience) as at:
        go, asked = asyncio.Event(), count()

        def health() -> dict[str, Any] | None:
            go.set()
            steps = next(asked)
            return {"status": "ok", "steps": steps} if steps else None  # to the first one there is no answer

        at.doubles[0].health = health
        at.doubles[0].script = lambda request: Script(TOKENS[:4], delay=0.6)
        choice, heard = at.ask("a", 4)
        await go.wait()
        time.sleep(1.0)
        await heard.done.wait()
        assert heard.tokens == TOKENS[:4] and names(choice) == ["a"] and at.closed("a", "b")


@looped
async def test_a_probe_that_ran_out_while_the_gateway_stood_still_is_sent_again(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "FIRST_WAIT_SECONDS", 0.1)
    async with place(tokenizer) as at:
        probes = count()

        def script(request: dict[str, Any]) -> Script:
            if next(probes) == 0:
                time.sleep(1.5)  # the gateway's loop, too; half as long again as a probe may take
            return Script(TOKENS)

        at.doubles[0].script = script
        at.supply.trip(at.supply.lines["a"], "it hung")
        await until(lambda: at.closed("a"))
        assert at.supply.circuits["a"].trips == 1 and next(probes) >= 2


@looped
async def test_slow_lines_are_never_ejected_together(tokenizer: Tokenizer) -> None:
    """What all lines have is not theirs: at most half of them is taken out, by faults that they answer with."""
    async with place(tokenizer, lines=4) as at:
        for double in at.doubles:
            double.script = lambda request: Script(fault="refuse", status=500, error={"message": "no"})
        for _ in range(30):
            _, heard = at.ask()
            await heard.done.wait()
            assert heard.error is not None
        out = [name for name in "abcd" if not at.closed(name)]
        assert len(out) == 2
        for double in at.doubles:
            double.script = lambda request: Script(TOKENS)
        _, heard = at.ask()
        await heard.done.wait()
        assert heard.error is None


@looped
async def test_a_probe_brings_a_line_back(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "FIRST_WAIT_SECONDS", 0.2)
    async with place(tokenizer) as at:
        at.doubles[0].script = lambda request: Script(fault="refuse", status=500, error={"message": "still ill"})
        at.doubles[0].requests.clear()
        at.supply.trip(at.supply.lines["a"], "it hung")
        assert list(at.supply.ready) == ["b"]
        # Half-open: only the probe asks, it fails, and the wait is longer.
        await until(lambda: at.supply.circuits["a"].trips >= 2)
        assert not at.closed("a")
        assert "still ill" in at.supply.circuits["a"].reason and list(at.supply.ready) == ["b"]
        for _ in range(5):
            choice, heard = at.ask()
            await heard.done.wait()
            assert names(choice) == ["b"]
        assert all(request["request_id"].startswith("verify-") for request in at.doubles[0].requests)
        at.doubles[0].script = lambda request: Script(TOKENS)
        await until(lambda: at.closed("a"))
        assert sorted(at.supply.ready) == ["a", "b"]


@looped
async def test_a_probe_that_gets_no_answer_ends(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "FIRST_WAIT_SECONDS", 0.1)
    patience = Patience(tick=0.02, quiet=0.2, ask=0.3, probe=0.3)
    async with place(tokenizer, patience=patience) as at:
        at.doubles[0].script = lambda request: Script(TOKENS, fault="hang")
        at.supply.trip(at.supply.lines["a"], "it hung")
        await until(lambda: at.supply.circuits["a"].trips >= 2)
        assert "no answer within 0.3 s" in at.supply.circuits["a"].reason


class Unspeakable(IdVectors):
    """A dialect that cannot say what is asked."""

    def encode(self, request: VectorRequest) -> tuple[str, bytes]:
        raise ValueError("it takes no token ids")


@looped
async def test_a_probe_that_cannot_be_asked_ends(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circuit, "FIRST_WAIT_SECONDS", 0.1)
    async with place(tokenizer) as at:
        at.supply.lines["a"].vectors = Unspeakable()
        at.supply.trip(at.supply.lines["a"], "it hung")
        await until(lambda: at.supply.circuits["a"].trips >= 2)
        assert "it cannot be asked: it takes no token ids" in at.supply.circuits["a"].reason


def test_a_hang_is_found_within_five_seconds_by_the_defaults() -> None:
    usual = Patience()
    assert usual.quiet + usual.ask + 2 * usual.tick < 5


@looped
async def test_a_stopped_engine_is_found_dead_and_lives_again(tiny_folder: Path, tokenizer: Tokenizer) -> None:
    """A real process under SIGSTOP: its port is open, its kernel takes connections, and nothing computes."""
    speed = ("--decode-tokens-per-second", "100", "--prefill-tokens-per-second", "1e6")
    with simulated(tiny_folder, *speed) as (process, first), simulated(tiny_folder, *speed) as (_, second):
        supply = Supply("tiny", Policy("fastest"), ModelMeter(Meters(), "tiny"))
        for name, url in (("a", first), ("b", second)):
            line = line_at(name, url)
            await line.verify()
            supply.add(line)
        at = Place(supply, [], tokenizer)
        async with watching(supply):  # with the patience that is served with
            _, whole = at.ask("b", 450)
            await whole.done.wait()
            asked = [at.ask("a", 450) for _ in range(4)]
            await until(lambda: all(len(heard.tokens) > 20 for _, heard in asked))
            process.send_signal(signal.SIGSTOP)
            await until(lambda: not at.closed("a"))
            for choice, heard in asked:
                await heard.done.wait()
                assert heard.error is None and heard.tokens == whole.tokens and names(choice) == ["a", "b"]
            process.send_signal(signal.SIGCONT)
            await until(lambda: at.closed("a"))
        for name in ("a", "b"):
            supply.remove(name)


@looped
async def test_a_line_that_tells_nothing_of_its_work_is_given_more_time(tokenizer: Tokenizer) -> None:
    """A remote may think for minutes before its first word."""
    patience = Patience(tick=0.02, quiet=0.1, longest=0.1, stream=NEVER, first=0.3, ask=1, idle=0.5, blind=1.5)
    async with place(tokenizer, 1, patience=patience) as at:
        at.doubles[0].health = lambda: {"status": "ok"}
        at.doubles[0].script = lambda request: Script(TOKENS, hold=going)
        going = asyncio.Event()
        choice, heard = at.ask("a")
        await asyncio.sleep(1.0)
        assert len(choice.segments) == 1 and not heard.done.is_set()
        going.set()
        await heard.done.wait()
        assert heard.tokens == TOKENS and at.closed("a")
        at.doubles[0].script = lambda request: Script(TOKENS, fault="hang")
        _, heard = at.ask("a")
        await heard.done.wait()
        assert "computed nothing" in at.supply.circuits["a"].reason


@looped
async def test_a_request_over_which_every_line_is_silent_is_waited_for_longer_each_time(tokenizer: Tokenizer) -> None:
    async with place(tokenizer, patience=Patience(tick=0.02, quiet=0.1, longest=0.1, first=0.2, ask=1)) as at:
        for double in at.doubles:
            double.script = lambda request: Script(TOKENS, delay=0.0, hold=asyncio.Event())
        steps = count()
        for double in at.doubles:
            double.health = lambda: {"status": "ok", "steps": next(steps)}
        choice, _ = at.ask("a")
        await until(lambda: len(choice.segments) == 3)
        first, second, _ = choice.segments
        assert second.seconds > 3 * first.seconds
        choice.abort()
