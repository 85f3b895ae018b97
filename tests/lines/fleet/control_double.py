"""A control side as a process, with doubles of engines and gateways.

python control_double.py FLEET.yaml [--leave-running]
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.lines.fleet.harness import GATEWAY, PACE

from twinline.lines import drivers
from twinline.lines.fleet.control import run
from twinline.lines.fleet.file import load

drivers.DRIVERS["double"] = "tests.lines.fleet.harness:Double"
path = Path(sys.argv[1])
asyncio.run(
    run(
        path,
        load(path, os.environ),
        GATEWAY,
        leave_running="--leave-running" in sys.argv,
        told=lambda event: print(event.name, event.state, event.reason, flush=True),
        begun=lambda failures, fleet: print("begun", failures, fleet.gateway.port, flush=True),
        pace=PACE,
    )
)
