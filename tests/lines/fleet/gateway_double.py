"""A gateway's double, run as a process: answers on its Unix socket what a file says is in flight.

RUN/in_flight.json maps replica names to counts. While RUN/stale exists it works by an old roster. RUN/seen.jsonl gets
the states in the roster at every answer. Asked to leave it does so after RUN/leaves seconds, if there is that file.
RUN/taken is a port that somebody else has.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from twinline.lines import roster

run = Path(sys.argv[sys.argv.index("--run") + 1])
index = int(sys.argv[sys.argv.index("--index") + 1])
settings = roster.read(run).door(index)
log_format = settings.log_format
if (run / "taken").exists() and int((run / "taken").read_text()) == settings.port:
    sys.exit("address already in use")
if log_format == "slowly broken":
    time.sleep(3)
if log_format.endswith("broken"):
    sys.exit("no such log format")


def health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


def lines(request: Request) -> JSONResponse:
    read = roster.read(run)
    file = run / "in_flight.json"
    flying = json.loads(file.read_text()) if file.exists() else {}
    with (run / "seen.jsonl").open("a") as seen:
        seen.write(json.dumps({entry.name: entry.state for entry in read.entries}) + "\n")
    said = [
        {"name": e.name, "in_flight": flying.get(e.name, 0), "predicted_tpot_seconds": 0.02, "answers_learnt": 1}
        for e in read.entries
    ]
    generation = 0 if (run / "stale").exists() else read.generation
    return JSONResponse({"generation": generation, "lines": said})


def leave(request: Request) -> JSONResponse:
    file = run / "leaves"
    if not file.exists():
        return JSONResponse({}, 404)
    threading.Timer(float(file.read_text()), signal.raise_signal, [signal.SIGTERM]).start()
    return JSONResponse({})


app = Starlette(
    routes=[Route("/health", health), Route("/api/lines", lines), Route("/api/leave", leave, methods=["POST"])]
)
uvicorn.run(app, uds=str(run / f"gateway-{index}.sock"), log_level="warning")
