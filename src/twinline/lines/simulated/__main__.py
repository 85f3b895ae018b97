"""A simulated line as a process:

    python -m twinline.lines.simulated --name NAME --port 0 --text MODEL_FOLDER --decode-tokens-per-second 40

Owns the command line and the process's life. As the native worker does, it prints one JSON line on stdout when it is
ready, `{"ready": true, "port": ...}`, or `{"error": "..."}` and exits 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import uvloop

from twinline.lines.simulated import faults, texts
from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.faults import Fault
from twinline.lines.simulated.http import Connection
from twinline.lines.simulated.line import Line
from twinline.lines.simulated.teacher import Teacher

HELP = {
    "name": "the chip that is played, for the label `simulated NAME`",
    "prefill_tokens_per_second": "prompt tokens computed per second",
    "decode_tokens_per_second": "speed of a single stream; or give the step instead",
    "decode_step_seconds": "what a decode step takes however many streams are in it",
    "decode_step_seconds_per_stream": "what each stream adds to it",
    "slots": "streams computed at once",
    "kv_tokens": "tokens that the cache holds",
    "max_model_len": "longest prompt and answer together, in tokens",
    "max_waiting": "requests that may wait; more are refused with 429",
    "max_tokens_per_step": "tokens computed in one step (default: slots + 512)",
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twinline-simulated", description="A line that plays a chip.")
    parser.add_argument("--name", required=True, help="the model's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--text", type=Path, help="model folder whose vocabulary it speaks; without it, tokens by lot")
    parser.add_argument("--vocab-size", type=int, default=32768, help="size of the vocabulary without --text")
    parser.add_argument("--fault", default='{"mode":"ok"}', help="a failure from the start, as POST /simulate takes it")
    parser.add_argument("--seed", type=int, default=0, help="of the lots that failures draw")
    parser.add_argument("--watch-stdin", action="store_true", help="exit when stdin closes")
    for field in dataclasses.fields(Chip):
        flag = "--chip" if field.name == "name" else "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, dest=f"chip_{field.name}",
                            help=HELP[field.name])  # fmt: skip
    return parser.parse_args()


async def _serve(
    arguments: argparse.Namespace, chip: Chip, teacher: Teacher, vocab: int, fault: Fault, listener: socket.socket
) -> None:
    loop = asyncio.get_running_loop()
    line = Line(arguments.name, chip, teacher, vocab, fault, arguments.seed)
    connections: set[Connection] = set()
    server = await loop.create_server(lambda: Connection(line.handle, connections), sock=listener, backlog=1024)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if arguments.watch_stdin:

        def watch() -> None:
            while os.read(sys.stdin.fileno(), 4096):
                pass
            loop.call_soon_threadsafe(stop.set)

        threading.Thread(target=watch, daemon=True, name="watch-stdin").start()
    ready = {"ready": True, "port": listener.getsockname()[1], "model": line.name, "label": line.label,
             "max_model_len": chip.max_model_len, "vocab_size": vocab}  # fmt: skip
    print(json.dumps(ready), flush=True)
    await stop.wait()
    server.close()
    for connection in tuple(connections):
        connection.fin()


def main() -> int:
    arguments = _arguments()
    try:
        chip = Chip(**{field.name: getattr(arguments, f"chip_{field.name}") for field in dataclasses.fields(Chip)})
        fault = faults.parse(arguments.fault)
        if arguments.text is None:
            if arguments.vocab_size < 2:
                raise ValueError(f"vocab_size must be at least 2, not {arguments.vocab_size}")
            teacher, vocab = texts.murmured(arguments.vocab_size), arguments.vocab_size
        else:
            teacher, vocab = texts.recited(arguments.text)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        with contextlib.closing(listener):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((arguments.host, arguments.port))
            listener.setblocking(False)
            uvloop.run(_serve(arguments, chip, teacher, vocab, fault, listener))
    except (ValueError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
