"""A door that follows its roster: lines and models that come, change, break and go while answers are under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.looped import looped
from tests.gateway.processes import MODEL, entry
from tests.gateway.test_watch import Heard, Place, names, until
from tests.lines.line_double import LineDouble, Script

from twinline.gateway.door import Door
from twinline.gateway.errors import ApiError
from twinline.gateway.following import Following, hardened, policy_of
from twinline.gateway.supply import Bounds
from twinline.lines import roster
from twinline.lines.circuit import CircuitState
from twinline.lines.line import Line
from twinline.lines.roster import Entry, GatewaySpec, Goals, ModelSpec, Roster
from twinline.lines.state import LineState

TOKENS = list(range(10, 30))


class Followed:
    """A door and the roster that it follows."""

    def __init__(self, directory: Path, text: Path, doubles: list[LineDouble], urls: list[str]) -> None:
        self.directory, self.text, self.doubles, self.urls = directory, text, doubles, urls
        self.door = Door()
        self.tripped: list[tuple[str, str]] = []
        self.following = Following(directory, self.door, Bounds(queue_seconds=5.0), self._trip)
        self.entries: list[Entry] = []
        self.models: list[ModelSpec] = [ModelSpec(name=MODEL, text=str(text), policy="fastest")]
        self.generation = 0

    def _trip(self, line: Line, reason: str) -> None:
        self.tripped.append((line.name, reason))

    async def tell(self) -> None:
        self.generation += 1
        told = Roster(fleet="test", generation=self.generation, gateway=GatewaySpec(), models=tuple(self.models),
                      entries=tuple(self.entries))  # fmt: skip
        roster.write(self.directory, told)
        await self.following.look()
        assert self.following.generation == self.generation

    @property
    def place(self) -> Place:
        served = self.door.find(MODEL).served
        return Place(served.supply, self.doubles, served.tokenizer)

    def line(self, name: str) -> Line:
        return self.door.find(MODEL).served.supply.lines[name]

    async def running(self, line: str, tokens: int = len(TOKENS)) -> tuple[Any, Heard]:
        """An answer that has begun and is not over."""
        choice, heard = self.place.ask(line, tokens)
        await until(lambda: heard.tokens)
        return choice, heard


@asynccontextmanager
async def followed(tmp_path: Path, text: Path, lines: int = 2) -> AsyncIterator[Followed]:
    doubles = [LineDouble() for _ in range(lines)]
    urls = [await double.start() for double in doubles]
    for double in doubles:
        double.script = lambda request: Script(TOKENS, delay=0.02)
    made = Followed(tmp_path, text, doubles, urls)
    made.entries = [entry(name, url) for name, url in zip("abcd", urls, strict=False)]
    await made.tell()
    yield made
    made.models, made.entries = [], []
    await made.tell()
    for double in doubles:
        with contextlib.suppress(Exception):
            await double.stop()


@looped
async def test_models_and_lines_come_and_go(tmp_path: Path, tiny_folder: Path) -> None:
    async with followed(tmp_path, tiny_folder) as at:
        assert sorted(at.place.supply.ready) == ["a", "b"]
        assert at.line("a").context == 512
        at.models.append(ModelSpec(name="other", text=str(tiny_folder), label="a toy"))
        at.entries.append(entry("far", None, model="other", state=LineState.STARTING, reason="it loads"))
        await at.tell()
        other = at.door.find("other").served
        assert other.label == "a toy" and not other.supply.ready
        del at.models[0], at.entries[:2]
        await at.tell()
        with pytest.raises(ApiError, match="does not exist"):
            at.door.find(MODEL)
        assert at.door.find("other").served is other
        at.models.insert(0, ModelSpec(name=MODEL, text=str(tiny_folder)))


@looped
async def test_a_price_changes_under_an_answer_and_nothing_moves(tmp_path: Path, tiny_folder: Path) -> None:
    async with followed(tmp_path, tiny_folder) as at:
        before = at.line("a")
        choice, heard = await at.running("a")
        at.entries[0] = entry("a", at.urls[0], price_per_hour=7.0, lacks=frozenset({"logprobs"}), slots=3)
        at.models[0] = ModelSpec(name=MODEL, text=str(tiny_folder), policy="prefer", order=("b", "a"),
                                 goals=Goals(ttft_seconds=9.0))  # fmt: skip
        await at.tell()
        traits = at.place.supply.router.station("a").traits
        assert (traits.price_per_hour, traits.slots) == (7.0, 3) and "logprobs" not in at.line("a").features
        await heard.done.wait()
        assert at.line("a") is before and names(choice) == ["a"] and heard.tokens == TOKENS
        chosen = [at.place.ask() for _ in range(3)]
        for second, told in chosen:
            await told.done.wait()
            assert names(second) == ["b"]  # by the new policy


@looped
async def test_a_line_that_is_spoken_to_otherwise_is_another(tmp_path: Path, tiny_folder: Path) -> None:
    async with followed(tmp_path, tiny_folder) as at:
        before = at.line("a")
        choice, heard = await at.running("a")
        at.entries[0] = entry("a", at.urls[0], upstream="another-name")
        await at.tell()
        await heard.done.wait()
        assert at.line("a") is not before and at.line("a").model == "another-name"
        assert heard.error is None and heard.tokens == TOKENS and names(choice) == ["a", "b"]


@looped
async def test_a_line_that_is_taken_away_gives_up_its_streams(tmp_path: Path, tiny_folder: Path) -> None:
    async with followed(tmp_path, tiny_folder) as at:
        asked = [await at.running("a") for _ in range(3)]
        del at.entries[0]
        await at.tell()
        for choice, heard in asked:
            await heard.done.wait()
            assert heard.error is None and heard.tokens == TOKENS and names(choice) == ["a", "b"]
            assert choice.segments[0].left == "drained"
        assert list(at.place.supply.lines) == ["b"] and at.tripped == []


@looped
async def test_with_its_model_all_that_waits_ends(tmp_path: Path, tiny_folder: Path) -> None:
    """A stream that has begun, and a request that no line had room for."""
    async with followed(tmp_path, tiny_folder, lines=1) as at:
        at.doubles[0].script = lambda request: (
            Script(fault="refuse", status=429) if at.doubles[0].requests[1:] else Script(TOKENS, delay=0.2)
        )
        place = at.place
        begun, heard = await at.running("a")
        queued, never = place.ask("a", len(TOKENS))
        await until(lambda: place.supply.waiting == 1)
        at.models, at.entries = [], []
        await at.tell()
        for each in (heard, never):
            await asyncio.wait_for(each.done.wait(), 10)
        assert begun.over and queued.over and place.supply.waiting == 0
        assert heard.tokens and heard.error is not None and heard.error.status in (502, 503)
        assert never.error is not None


@pytest.mark.parametrize(
    ("state", "left"), [(LineState.DRAINING, "drained"), (LineState.QUARANTINED, "gone"), (LineState.STOPPED, "gone")]
)
def test_states_are_obeyed(tmp_path: Path, tiny_folder: Path, state: LineState, left: str) -> None:
    async def run() -> None:
        async with followed(tmp_path, tiny_folder) as at:
            choice, heard = await at.running("a")
            at.entries[0] = entry("a", at.urls[0], state=state, reason="it is told so")
            await at.tell()
            assert list(at.place.supply.ready) == ["b"] and at.line("a").life.reason == "it is told so"
            await heard.done.wait()
            assert heard.error is None and heard.tokens == TOKENS and names(choice) == ["a", "b"]
            assert choice.segments[0].left == left
            assert at.tripped == []  # what was told is no fault of the line
            at.entries[0] = entry("a", at.urls[0])
            await at.tell()
            assert sorted(at.place.supply.ready) == ["a", "b"]

    asyncio.run(run())


@looped
async def test_a_drain_with_nowhere_to_go_lets_the_answer_end(tmp_path: Path, tiny_folder: Path) -> None:
    async with followed(tmp_path, tiny_folder, lines=1) as at:
        choice, heard = await at.running("a")
        at.entries[0] = entry("a", at.urls[0], state=LineState.DRAINING, reason="it is drained by hand")
        await at.tell()
        _, refused = at.place.ask()
        await refused.done.wait()
        assert refused.error is not None and refused.error.status == 503
        assert "draining" in refused.error.message
        await heard.done.wait()
        assert heard.error is None and heard.tokens == TOKENS and names(choice) == ["a"]


@looped
async def test_another_engine_begins_with_a_clean_sheet(tmp_path: Path, tiny_folder: Path) -> None:
    async with followed(tmp_path, tiny_folder) as at:
        supply = at.place.supply
        supply.trip(at.line("a"), "it hung")
        assert at.tripped == [("a", "it hung")] and list(supply.ready) == ["b"]
        at.entries[0] = entry("a", at.urls[0], reason="the same engine, told again")
        await at.tell()
        assert supply.circuits["a"].state is CircuitState.OPEN
        at.entries[0] = entry("a", at.urls[1], born=2.0)
        await at.tell()
        assert supply.circuits["a"].closed and sorted(supply.ready) == ["a", "b"]
        at.doubles[0].requests.clear()
        _, heard = at.place.ask("a")
        await heard.done.wait()
        assert heard.tokens == TOKENS and not at.doubles[0].requests  # at its new address


@looped
async def test_a_secret_that_is_not_there_costs_its_line_alone(
    tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_NO_SECRET", raising=False)
    async with followed(tmp_path, tiny_folder) as at:
        at.entries.append(entry("far", at.urls[1], engine="openai", api_key_env="TEST_NO_SECRET"))
        await at.tell()
        assert sorted(at.place.supply.ready) == ["a", "b"]
        assert any("line far cannot be used" in message and "TEST_NO_SECRET" in message for message in caplog.messages)


@looped
async def test_a_text_that_cannot_be_read_leaves_the_old_one(
    tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with followed(tmp_path, tiny_folder) as at:
        served = at.door.find(MODEL).served
        at.models[0] = ModelSpec(name=MODEL, text=str(tmp_path / "nowhere"), policy="fastest")
        await at.tell()
        assert at.door.find(MODEL).served is served and sorted(at.place.supply.ready) == ["a", "b"]
        assert any(f"model {MODEL} cannot be served" in message for message in caplog.messages)
        at.models[0] = ModelSpec(name=MODEL, text=str(tiny_folder), policy="fastest", label="new")
        await at.tell()
        fresh = at.door.find(MODEL).served
        assert fresh is not served and fresh.label == "new" and fresh.supply is served.supply


@looped
async def test_a_roster_that_cannot_be_read_is_told_once_and_the_last_holds(
    tmp_path: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with followed(tmp_path, tiny_folder) as at:
        task = asyncio.create_task(at.following.run())

        def complaints() -> int:
            return sum("the roster cannot be read" in message for message in caplog.messages)

        async def after(change: Callable[[], object]) -> None:
            change()
            await asyncio.sleep(0.5)

        path = tmp_path / roster.ROSTER
        await after(lambda: path.write_text("{ no roster"))
        assert complaints() == 1 and sorted(at.place.supply.ready) == ["a", "b"]
        await after(path.unlink)
        assert complaints() == 1
        del at.entries[1]
        at.generation += 1
        told = Roster(fleet="test", generation=at.generation, gateway=GatewaySpec(), models=tuple(at.models),
                      entries=tuple(at.entries))  # fmt: skip
        roster.write(tmp_path, told)
        await until(lambda: list(at.place.supply.lines) == ["a"])  # by itself
        await after(lambda: path.write_text("no"))
        assert complaints() == 2
        task.cancel()


def test_a_lines_name_stands_for_its_replicas() -> None:
    spec = ModelSpec(name="m", text="t", policy="prefer", order=("b", "a"))
    assert policy_of(spec, ["a", "a#2", "b", "c"]).order == ("b", "a", "a#2")


def test_what_is_soft_changes_nothing_of_how_a_line_is_spoken_to() -> None:
    plain = entry("a", "http://h:1").spec
    assert hardened(entry("a", "http://h:1", price_per_hour=3.0, weight=2.0, chip="x").spec) == hardened(plain)
    assert hardened(entry("a", "http://h:1", upstream="n").spec) != hardened(plain)
