"""`twinline serve`: one model folder behind the OpenAI door on this machine.

Owns the verb's options, the checks made before anything heavy starts, and the lines printed when the model can answer.
Must not know how the gateway or the engine do their work.
"""

from __future__ import annotations

import argparse
import errno
import json
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinline.cli.folder import embedded, read_config
from twinline.cli.parser import CliError, integer
from twinline.facts.models import spec_from_config

POLL_SECONDS = 0.2
# options handed to the engine's worker when given, under their own names
WORKER = {
    "dtype": "weights and arithmetic; auto takes what the checkpoint says and the device can do",
    "max_tokens_per_step": "tokens computed in one step, over all requests",
    "max_running": "requests computed at the same time",
    "max_waiting": "requests waiting before new ones get 429",
    "max_model_len": "longest prompt plus output, in tokens",
    "kv_tokens": "capacity of the KV cache, in tokens",
    "page_size": "tokens in a page of the KV cache",
    "threads": "CPU threads of the engine",
    "device": "where the model runs: cpu, cuda, cuda:1, ...; the machine's accelerator by default",
    "strict_ops": "refuse to start when an op has no provider but the reference",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="default: the embedded tiny-r1")
    parser.add_argument("--name", metavar="N", help="what users call the model (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="default: %(default)s")
    parser.add_argument("--port", type=integer(1, 65535), default=8000, metavar="P", help="default: %(default)s")
    for name, text in WORKER.items():
        flag = "--" + name.replace("_", "-")
        if name == "dtype":
            parser.add_argument(flag, choices=("auto", "float32", "bfloat16", "float16"), help=text)
        elif name == "device":
            parser.add_argument(flag, metavar="D", help=text)
        elif name == "strict_ops":
            parser.add_argument(flag, action="store_true", default=None, help=text)
        else:
            parser.add_argument(flag, type=integer(1), metavar="N", help=text)
    levels = ("critical", "error", "warning", "info", "debug")
    parser.add_argument("--log-level", choices=levels, default="info", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Serves until interrupted; checks first what can be checked in milliseconds."""
    folder: Path = (args.dir or embedded()).resolve()
    spec_from_config(read_config(folder))
    check_port(args.host, args.port)
    name = args.name or folder.name
    options: dict[str, str | int | bool] = {o: getattr(args, o) for o in WORKER if getattr(args, o) is not None}
    title = f"{name} (demonstration model)" if args.dir is None else name

    from twinline.gateway.serve import run as run_gateway

    with Announcement(args.host, args.port, lambda health: print(ready_text(args, name, title, health), flush=True)):
        return run_gateway(folder, name, args.host, args.port, options, args.log_level)


def check_port(host: str, port: int) -> None:
    """Raises CliError when nothing could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise CliError(f"port {port} on {host} is in use: choose another with --port") from None
        raise CliError(f"cannot listen on {host} port {port}: {exc.strerror or exc}") from None


class Announcement:
    """Asks the new server's `/health` in the background and calls `ready` with its answer, once."""

    def __init__(self, host: str, port: int, ready: Callable[[dict[str, Any]], None]):
        self.url = f"http://{reachable(host)}:{port}/health"
        self.ready = ready
        self.over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="announcement", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def _watch(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self.over.wait(POLL_SECONDS):
            try:
                with opener.open(self.url, timeout=5) as response:
                    health = json.load(response)
            except (OSError, ValueError):
                continue
            self.ready(health if isinstance(health, dict) else {})
            return


def reachable(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def ready_text(args: argparse.Namespace, name: str, title: str, health: dict[str, Any]) -> str:
    """What a person reads when the model can answer: endpoint, model, device, one line to try."""
    base = f"http://{reachable(args.host)}:{args.port}/v1"
    ran = [str(found(health, field) or getattr(args, field) or "") for field in ("device", "dtype")]
    on = f" on {', '.join(filter(None, ran))}" if any(ran) else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "What is 17+25?"}]}, ensure_ascii=False)
    return (
        f"{title}{on} is ready at {base}\n"
        f"  curl {base}/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    )


def found(value: Any, field: str) -> str | None:
    """The first text named `field` in nested JSON: a line's device and dtype, wherever the gateway reports them."""
    if isinstance(value, dict):
        if isinstance(value.get(field), str):
            return str(value[field])
        value = list(value.values())
    if isinstance(value, list):
        return next((text for item in value if (text := found(item, field))), None)
    return None
