"""An engine's double, run as a process: the line protocol at --port, and faults that a file commands at its start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from line_double import LineDouble, Script


async def main() -> None:
    port = int(sys.argv[sys.argv.index("--port") + 1])
    file = Path(os.environ.get("FAULT_FILE", ""))
    faults = file.read_text().split(",") if file.is_file() else []
    if "crash" in faults:
        print("loading weights\nout of memory: a card has 1 GB, 2 GB are needed", file=sys.stderr, flush=True)
        sys.exit(3)
    if "error" in faults:
        print(json.dumps({"error": "the folder has no config.json"}), flush=True)
        sys.exit(1)
    if "slow" in faults:
        time.sleep(60)
    double = LineDouble()
    if "wrong" in faults:
        double.script = lambda request: Script(fault="in_band")
    if "stalled" in faults:
        double.health = lambda: {"status": "ok", "steps": 7, "running": 1}
    if "busy" in faults:
        double.health = lambda: {"status": "ok", "steps": time.monotonic(), "running": 1}
    if "mute" in faults:
        double.health = lambda: None if double.requests else {"status": "ok"}
    if "stubborn" in faults:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "two faced" in faults:  # sound at first, then no request succeeds
        double.script = lambda request: Script() if len(double.requests) < 2 else Script(fault="in_band")
    server = await asyncio.start_server(double._serve, "127.0.0.1", port)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
