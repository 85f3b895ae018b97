"""`twinline serve`: one model folder behind the OpenAI door on this machine.

Owns the verb's options, the checks made before anything heavy starts, and what is printed when the
model can answer. Must not know how the gateway or the engine do their work.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import importlib
import json
import logging
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinline.cli.folder import embedded, read_config
from twinline.cli.log_writer import STDERR, STDOUT, LogWriter, Writer
from twinline.cli.parser import CliError, integer
from twinline.facts.models import spec_from_config
from twinline.facts.pooling import read_pooling
from twinline.facts.profiles import read_profile
from twinline.facts.quantization import quantization
from twinline.facts.weight_form import read_weights

DEMONSTRATION = "demonstration model"
# options that are the engine's own, handed on when given
WORKER = {
    "dtype": "weights and arithmetic; auto takes what the checkpoint says and the device can do",
    "weights": "form of the linear layers' weights: auto (as the checkpoint has them, the default), plain, fp8, int8, "
    "int4, int4:32, int4:64, int4:128 (the number is how many values share a scale)",
    "head_weights": "form of the output head's weights; default: as --weights",
    "max_tokens_per_step": "tokens computed in one step, over all requests",
    "max_running": "requests computed at the same time",
    "max_waiting": "requests waiting before new ones get 429",
    "max_model_len": "longest prompt plus output, in tokens",
    "kv_tokens": "capacity of the KV cache, in tokens",
    "page_size": "tokens in a page of the KV cache",
    "threads": "CPU threads of the engine",
    "device": "where the model runs: cpu, cuda, cuda:1, simchip, ...; the machine's accelerator by default",
    "profile": "what `twinline adapt` found out: providers that it refuses are passed over",
    "speculation": "guess tokens and keep those that hold, the text stays the same; ngram: from what was said before, "
    "mtp: by the model's prediction layer",
    "draft_depth": "tokens that the prediction layer guesses at once (default 1)",
    "strict_ops": "refuse to start when an op has no provider but the reference",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="default: the embedded tiny-r1")
    parser.add_argument("--name", metavar="N", help="what users call the model (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="default: %(default)s")
    parser.add_argument(
        "--port", type=integer(0, 65535), default=8000, metavar="P", help="0 takes a free one; default: %(default)s"
    )
    parser.add_argument(
        "--keys",
        choices=("off", "required"),
        help="whether a key of `twinline keys` is needed; off only where no other machine can reach it (default: so)",
    )
    for name, text in WORKER.items():
        flag = "--" + name.replace("_", "-")
        if name == "dtype":
            parser.add_argument(flag, choices=("auto", "float32", "bfloat16", "float16"), help=text)
        elif name in ("weights", "head_weights"):
            parser.add_argument(flag, metavar="F", help=text)
        elif name == "speculation":
            parser.add_argument(flag, choices=("off", "ngram", "mtp", "ngram+mtp"), help=text)
        elif name == "device":
            parser.add_argument(flag, metavar="D", help=text)
        elif name == "profile":
            parser.add_argument(flag, type=Path, metavar="FILE", help=text)
        elif name == "strict_ops":
            parser.add_argument(flag, action="store_true", default=None, help=text)
        else:
            parser.add_argument(flag, type=integer(1), metavar="N", help=text)
    levels = ("critical", "error", "warning", "info", "debug")
    parser.add_argument("--log-level", choices=levels, default="info", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM; checks first what can be checked in milliseconds."""
    folder: Path = (args.dir or embedded()).resolve()
    config = read_config(folder)
    spec_from_config(config)
    quantization(config)
    read_pooling(folder)
    read_weights(args.dtype or "auto", args.weights or "auto", args.head_weights or "auto")
    if args.profile:
        args.profile = args.profile.resolve()
        read_profile(args.profile)
    check_port(args.host, args.port)
    keys = keys_needed(args.host, args.keys)
    logging.basicConfig(
        level=args.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[LogWriter(STDERR)],
    )

    import uvloop

    uvloop.run(_serve(args, folder, keys))
    return 0


async def _serve(args: argparse.Namespace, folder: Path, keys: bool) -> None:
    """The engine is on its way before the gateway is even imported: both take seconds."""
    from twinline.lines.native import NativeLine

    name, label = args.name or folder.name, None if args.dir else DEMONSTRATION
    line = NativeLine(folder, name, worker_flags(args))
    await line.begin()  # before a thread imports: the worker is forked
    gateway = await asyncio.to_thread(importlib.import_module, "twinline.gateway.serve")
    what = gateway.Serving(folder, name, args.host, args.port, label, keys)

    out = Writer(STDOUT, sys.stdout.encoding)
    try:
        await gateway.serve(what, line, lambda url: out.put(ready_text(url, name, label, line.facts, keys)))
    finally:
        out.flush()


def worker_flags(args: argparse.Namespace) -> list[str]:
    """The worker's arguments: the options that were given, and the log level."""
    flags = []
    for name in WORKER:
        value, flag = getattr(args, name), "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not None:
            flags += [flag, str(value)]
    return [*flags, "--log-level", args.log_level]


def check_port(host: str, port: int, chosen_by: str = "--port") -> None:
    """Raises CliError when nothing could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise CliError(f"port {port} on {host} is in use: choose another with {chosen_by}") from None
        raise CliError(f"cannot listen on {host} port {port}: {exc.strerror or exc}") from None


def keys_needed(host: str, asked: str | None) -> bool:
    """Raises CliError for a door that would be open to everybody."""
    from twinline.gateway.listening import loopback

    inside = loopback(host)
    if asked == "off" and not inside:
        raise CliError(
            f"--keys off at {host} lets everybody in: bind to 127.0.0.1, or make keys with `twinline keys`", 2
        )
    return asked == "required" or (asked is None and not inside)


def ready_text(url: str, name: str, label: str | None, facts: Mapping[str, Any], keys: bool = False) -> str:
    """What a person reads when the model can answer: endpoint, model, device and dtype, one line to try."""
    title = f"{name} ({label})" if label else name
    ran = ", ".join(str(facts[field]) for field in ("device", "dtype") if field in facts)
    key = "-H 'Authorization: Bearer KEY' " if keys else ""
    make = "\n  a KEY is made by `twinline keys create NAME`" if keys else ""
    question = "What is 17+25?"
    path, asked = "chat/completions", dict[str, Any](messages=[{"role": "user", "content": question}])
    if facts.get("embeds"):
        path, asked = "embeddings", {"input": question}
    body = json.dumps({"model": name, **asked}, ensure_ascii=False)
    return (
        f"{title}{' on ' + ran if ran else ''} is ready at {url}/v1\n"
        f"  curl {url}/v1/{path} {key}-H 'Content-Type: application/json' -d {shlex.quote(body)}{make}"
    )
