"""What the control side's looks at a line make of an engine whose count stands still."""

from __future__ import annotations

import asyncio

import pytest
from tests.lines.vector_double import VectorDouble

from twinline.lines.fleet.health import Watch
from twinline.lines.fleet.pace import Pace
from twinline.lines.line import Line
from twinline.lines.spec import LineSpec

STILL = b"llamacpp:requests_processing 1\nllamacpp:n_decode_total 5\n"


@pytest.mark.parametrize("embeds", [False, True])
def test_a_count_that_stands_still_is_a_hang_only_where_it_would_move(embeds: bool) -> None:
    """llama.cpp counts nothing while it computes the vectors of a whole batch."""

    async def test() -> None:
        double = VectorDouble()
        double.count = STILL
        spec = LineSpec(name="a", model="m", engine="llamacpp", weights="nowhere", embeds=embeds)
        watch = Watch(Line("a", spec, await double.start()), Pace(stalled=0.0))
        looks = [await watch.look() for _ in range(3)]
        assert (looks[-1] is None) is embeds, looks
        await double.stop()

    asyncio.run(test())
