"""Commands to the simulated chips of a running process, through a file that it watches.

`TWINLINE_SIMCHIP_CONTROL` names the file. Each line is `STATE` (all chips) or `INDEX STATE`, the last that fits counts;
states are `ok`, `lost` and `hang`. No file, or an empty one, changes nothing. What it says holds for processes that
start later too: a chip that is lost stays lost until the file says otherwise.
"""

from __future__ import annotations

import os
import threading
import time
from functools import cache
from pathlib import Path

from twinline.engine.devices.simulated.chip import CHIPS

VARIABLE = "TWINLINE_SIMCHIP_CONTROL"
LOOK_SECONDS = 0.05


def read(text: str) -> dict[int, str]:
    """What a control file says of each chip. Lines that are not understood are passed over."""
    said: dict[int, str] = {}
    for line in text.splitlines():
        match line.split():
            case [state] if state in ("ok", "lost", "hang"):
                said |= dict.fromkeys(range(len(CHIPS)), state)
            case [index, state] if index.isdecimal() and int(index) < len(CHIPS) and state in ("ok", "lost", "hang"):
                said[int(index)] = state
    return said


def obey(said: dict[int, str], path: object = "its control file") -> None:
    for index, state in said.items():
        chip = CHIPS[index]
        if state == "lost" and chip.lost is None:
            chip.die(f"{path} says so")
        elif state == "hang" and not chip.hangs:
            chip.hang()
        elif state == "ok" and (chip.lost is not None or chip.hangs):
            chip.heal()


@cache
def watch() -> None:
    """Obeys the file now, and from a thread of its own whenever it changes; nothing where no file is named."""
    named = os.environ.get(VARIABLE)
    if not named:
        return
    path = Path(named)

    def text() -> str:
        try:
            return path.read_text("utf-8", "replace")
        except OSError:
            return ""

    def follow(last: str) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            now = text()
            if now != last:
                obey(read(now), path)
                last = now

    first = text()
    obey(read(first), path)
    threading.Thread(target=follow, args=(first,), daemon=True, name="simchip-control").start()
