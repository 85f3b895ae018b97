"""A line's states: what may follow what, and that only a verified line takes requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.lines.line_double import LineDouble, Script
from tests.lines.vector_double import VectorDouble

from twinline.lines.drivers.vectors import IdVectors
from twinline.lines.line import Line, VerificationFailed
from twinline.lines.protocol import LineRefused, TokenRequest, VectorRequest
from twinline.lines.spec import LineSpec
from twinline.lines.state import NEXT, IllegalTransition, Life, LineState

SPEC = LineSpec(name="a", model="m", engine="native", weights="somewhere")


def test_a_line_that_stops_over_its_test_says_why_it_stopped() -> None:
    async def test() -> None:
        double = LineDouble()
        double.script = lambda request: Script(delay=0.05, fault="reset", fault_after=1)
        line = Line("a", SPEC, await double.start())
        verifying = asyncio.ensure_future(line.verify())
        while not double.active:
            await asyncio.sleep(0.005)
        line.life.to(LineState.STOPPED, "its process ended with code -9")
        with pytest.raises(VerificationFailed, match=r"line a is stopped .*its process ended with code -9"):
            await verifying
        assert line.state is LineState.STOPPED

    asyncio.run(test())


@pytest.mark.parametrize(("says", "double"), [(True, LineDouble), (False, VectorDouble)])
def test_a_line_whose_engine_gives_the_other_is_not_taken_into_service(says: bool, double: type) -> None:
    """A fleet is checked by what its file says: two kinds, or two weights of vectors, may not stand under one name."""

    async def test() -> None:
        engine = double()
        line = Line("a", replace(SPEC, embeds=not says), await engine.start())
        line.facts = {"embeds": says}
        assert (line.vectors is not None) is not says
        with pytest.raises(VerificationFailed, match=f"say embeds: {str(says).lower()} of this line in the fleet file"):
            await line.verify()
        assert line.state is LineState.QUARANTINED and not engine.requests
        await engine.stop()

    asyncio.run(test())


class Unspeakable(IdVectors):
    """A dialect that cannot say what is asked."""

    def encode(self, request: VectorRequest) -> tuple[str, bytes]:
        raise ValueError("it takes no token ids")


def test_a_line_that_cannot_be_asked_is_quarantined() -> None:
    async def test() -> None:
        line = Line("a", replace(SPEC, embeds=True), "http://127.0.0.1:9")
        line.vectors = Unspeakable()
        with pytest.raises(VerificationFailed, match="cannot be asked: it takes no token ids"):
            await line.verify()
        assert line.state is LineState.QUARANTINED and "takes no token ids" in line.life.reason

    asyncio.run(test())


def test_every_step_is_either_legal_or_refused() -> None:
    for before in LineState:
        for after in LineState:
            life = Life("x")
            life.state = before
            if after in NEXT[before]:
                life.to(after, "a reason")
                assert (life.state, life.reason) == (after, "a reason")
            else:
                with pytest.raises(IllegalTransition, match=f"from {before} to {after}"):
                    life.to(after, "a reason")


def test_nothing_serves_before_it_is_verified() -> None:
    async def test() -> None:
        double = LineDouble()
        line = Line("a", SPEC, await double.start())
        request = TokenRequest(model="m", prompt=[1], request_id="r")
        with pytest.raises(LineRefused, match="line a is starting") as caught:
            line.stream(request)
        assert caught.value.status == 503
        await line.verify()
        assert line.state is LineState.SERVING
        assert [double.requests[0][k] for k in ("max_tokens", "temperature")] == [1, 0.0]
        assert [delta.tokens async for delta in line.stream(request)]

    asyncio.run(test())


@pytest.mark.parametrize("script", [Script(fault="in_band"), Script(tokens=[]), Script(finish="error")])
def test_what_fails_its_test_is_quarantined_and_may_try_again(script: Script) -> None:
    async def test() -> None:
        double = LineDouble()
        double.script = lambda request: script
        line = Line("a", SPEC, await double.start())
        with pytest.raises(VerificationFailed, match="line a failed its test request"):
            await line.verify()
        assert line.state is LineState.QUARANTINED
        double.script = lambda request: Script()
        await line.verify()
        assert line.state is LineState.SERVING

    asyncio.run(test())
