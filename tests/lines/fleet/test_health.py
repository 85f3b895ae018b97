"""What the control side's looks at a line make of an engine whose count stands still."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.gateway.hostile.hostile_line import HostileLine, bytes_of
from tests.lines.vector_double import VectorDouble

from twinline.lines.fleet.health import Watch, facts_of
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


@pytest.mark.parametrize("engine", ["native", "vllm", "llamacpp", "openai"])
@pytest.mark.parametrize(
    "body",
    [b'{"data": ["m"]}', b'{"data": {"m": 1}}', b'{"data": 5}', b'{"data": [{"meta": [1], "lacks": [{}]}]}',
     b'{"data": [{"meta": 5, "lacks": 5}]}', b'{"data": [[]]}', b'{"data": [null]}', b'{"data": ' + b"[" * 5000],
)  # fmt: skip
def test_what_a_line_tells_of_itself_in_no_known_shape_is_nothing(engine: str, body: bytes) -> None:
    """It is kept like others: its keeper does not stumble."""

    async def test() -> None:
        hostile = HostileLine()
        hostile.told["/v1/models"] = bytes_of(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        spec = LineSpec(name="a", model="m", engine=engine, url=await hostile.start(), upstream="m")
        line = Line("a", spec)
        features = line.features
        line.facts = await facts_of(line, 5.0)
        assert line.features == features and line.context is None
        await hostile.stop()

    asyncio.run(test())


def test_of_several_models_that_a_remote_lists_the_lines_own_counts() -> None:
    async def test() -> None:
        listed: list[dict[str, object]] = [
            {"id": "small", "max_model_len": 4096},
            {"id": "big", "max_model_len": 131072},
            {"id": "adapter", "parent": "big", "max_model_len": None},  # as vLLM lists one
        ]
        body = json.dumps({"data": listed}).encode()
        hostile = HostileLine()
        hostile.told["/v1/models"] = bytes_of(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        url = await hostile.start()
        for upstream, context in (("big", 131072), ("small", 4096), ("another", 4096), ("adapter", 131072)):
            line = Line("a", LineSpec(name="a", model="m", engine="openai", url=url, upstream=upstream))
            assert await facts_of(line, 5.0) == {"max_model_len": context}
        await hostile.stop()

    asyncio.run(test())
