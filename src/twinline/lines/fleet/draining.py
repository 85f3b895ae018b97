"""When a line has drained: every gateway knows that it drains, and none has a request there.

Owns the asking. Must not know why a line drains nor what is done with it then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from twinline.lines.fleet.gateways import said_by
from twinline.lines.fleet.pace import Pace
from twinline.lines.protocol import LineError

SETTLE_SECONDS = 1.0  # for a gateway that does not say by which roster it works to have read the last one


async def drained(
    directory: Path, gateways: Callable[[], Iterable[int]], name: str, generation: int, patience: float, pace: Pace
) -> bool:
    """Waits for it, at most `patience` seconds; whether it came. `gateways` gives the indices of those that live."""
    began = time.monotonic()
    while time.monotonic() - began < patience:
        settled = time.monotonic() - began >= SETTLE_SECONDS
        asked = (_at_rest(directory, index, name, generation, settled, pace) for index in gateways())
        if all(await asyncio.gather(*asked)):
            return True
        await asyncio.sleep(pace.drain_look)
    return False


async def _at_rest(directory: Path, index: int, name: str, generation: int, settled: bool, pace: Pace) -> bool:
    """Whether a gateway is known to have nothing at the line and to send nothing there any more."""
    try:
        said = await said_by(directory, index, pace.question)
    except LineError:
        return False
    if said.generation is None and not settled:
        return False
    if said.generation is not None and said.generation < generation:
        return False
    return not any(line.get("in_flight") for line in said.lines if line.get("name") == name)
