"""A worker's double, run as a process: the arguments and the ready line of a real one, and faults by environment."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

from line_double import LineDouble, Script


async def main() -> None:
    double = LineDouble()
    url = await double.start()
    print("loading weights", file=sys.stderr, flush=True)
    fault = os.environ.get("WORKER_FAULT")
    if (file := Path(os.environ.get("WORKER_FAULT_FILE", ""))).is_file():
        fault = file.read_text()
    if fault == "error":
        print(json.dumps({"error": "the folder has no config.json"}), flush=True)
        sys.exit(1)
    if fault == "crash":
        print("Traceback: out of memory", file=sys.stderr, flush=True)
        sys.exit(3)
    if fault == "slow":
        time.sleep(60)
    if fault == "chatter":
        print("hello", flush=True)
    if fault == "hang":
        double.script = lambda request: (
            Script() if request["request_id"].startswith("verify") else Script(fault="hang", fault_after=1)
        )
    if fault == "stalled":
        double.health = lambda: {"status": "ok", "steps": 7, "running": 1}
    if fault == "busy":
        steps = itertools.count()
        double.health = lambda: {"status": "ok", "steps": next(steps), "running": 1}
    if fault == "unwell":
        double.health = lambda: {"status": "error", "reason": "a card fell off"}
    if fault == "mute":
        double.health = lambda: None
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    port = int(url.rsplit(":", 1)[1])
    print(json.dumps({"ready": True, "port": port, "max_model_len": 512, "vocab_size": 1024}), flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)  # --watch-stdin


assert "--watch-stdin" in sys.argv
asyncio.run(main())
