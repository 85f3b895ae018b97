"""Answers that cross from our engine to llama.cpp and back: to the `openai` client one stream, whole and unbroken.

Runs where TWINLINE_LLAMA_SERVER names a server built by `scripts/build-llama-server TARGET --model`; the model's GGUF
lies beside it.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import pytest
import uvloop
from tests.gateway.mixed import exam, mixed, moved_about

from twinline.lines.spec import LineSpec

SERVER = Path(os.environ.get("TWINLINE_LLAMA_SERVER", ""))
GGUF = SERVER.parent / "tiny-r1.gguf"
TINY = Path(str(files("twinline") / "models" / "tiny-r1"))
pytestmark = pytest.mark.skipif(
    not (SERVER.is_file() and GGUF.is_file()),
    reason="TWINLINE_LLAMA_SERVER names no llama-server with tiny-r1.gguf beside it (see scripts/build-llama-server)",
)


@pytest.mark.timeout(600)  # engines are started again and again; nothing in it is a matter of time
def test_streams_cross_over_by_drain_and_by_kill_and_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        native = LineSpec(
            name="native", model="tiny-r1", engine="native", weights=str(TINY), weights_class="one", context=512,
            precision="float32", options={"threads": 1},
        )  # fmt: skip
        options = {"executable": str(SERVER.resolve()), "threads": 1}
        other = LineSpec(
            name="llamacpp", model="tiny-r1", engine="llamacpp", weights=str(GGUF), weights_class="one", context=512,
            slots=32, options=options,
        )  # fmt: skip
        async with mixed(tmp_path, "tiny-r1", TINY, [native, other], 0.02) as run:
            found = await moved_about(run, exam(4), rounds=2, seed=1, kills=True)
        assert not found.wrong, "\n".join(found.wrong[:5])
        assert found.equal == found.greedy == 14
        assert found.moved > 20, found.ways
        for there, back in (("native", "llamacpp"), ("llamacpp", "native")):  # a turn began on each
            assert any(way.startswith(f"{there}>{back}>{there}") for way in found.ways), found.ways
        for move in ("drain native", "drain llamacpp", "kill native", "kill llamacpp"):
            assert found.moves[move] > 5, found.moves

    uvloop.run(main())
