"""`twinline models`: what a server serves; with no server about, what the package itself can serve.

Owns the listing's looks. Must not know how a model is run.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from twinline.cli.client import NoServer, Server, base_url
from twinline.cli.folder import embedded, read_folder
from twinline.cli.parser import DEFAULT_URL, add_server
from twinline.cli.table import aligned


def configure(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    server = Server(base_url(args.url or DEFAULT_URL), args.api_key)
    try:
        _show_served(server, args.json)
    except NoServer:
        if args.url:
            raise
        _show_embedded(args.json)
    return 0


def _show_served(server: Server, as_json: bool) -> None:
    entries = server.models(timeout=5)
    if as_json:
        print(json.dumps({"url": server.base, "models": entries}, indent=2, ensure_ascii=False))
        return
    print(f"served at {server.base}")
    rows = [["model", "context"]]
    rows += [[str(entry.get("id")), _count(entry.get("max_model_len"))] for entry in entries]
    print(aligned(rows, "  "))


def _show_embedded(as_json: bool) -> None:
    folder = read_folder(embedded())
    if as_json:
        print(json.dumps({"url": None, "embedded": [asdict(folder)]}, indent=2, ensure_ascii=False))
        return
    print("no server is running; `twinline serve` would serve this demonstration model:")
    rows = [
        ["name", "architecture", "parameters", "tensor bytes"],
        [folder.name, folder.architecture, _count(folder.parameters), _count(folder.tensor_bytes)],
    ]
    print(aligned(rows, "  "))
    print(f"  {folder.path}")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
