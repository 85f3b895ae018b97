"""The gateways that are compared: how each is installed and started in front of the same sixteen lines.

Owns command lines and configuration files. Must not know how speed is measured. Every gateway gets one process (or the
one thread of work that one core feeds), no log per request, and the plainest configuration that checks a key, if it
can, and spreads requests over all lines.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.processes import StartFailed
from gateway.tools import CHAT, FIRST_PORT, HERE, LINES, MODEL, ROOT, TEXT, TOKEN_IDS, Kind

PORT = 8100
ADDRESSES = [f"127.0.0.1:{FIRST_PORT + n}" for n in range(LINES)]
URLS = [f"http://{address}" for address in ADDRESSES]
KEY = "sk-benchmark"
TWINLINE = ROOT / ".venv/bin/twinline"
LIMIT = str(10**12)  # requests and tokens a minute: counted, never reached


class NotInstalled(Exception):
    """A peer is not there; the message says how to get it."""


@dataclass(frozen=True)
class Launch:
    """A started gateway's needs. `version` is for the report."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    health: str = "/health"
    key: str = KEY
    version: str = ""


@dataclass(frozen=True)
class Stack:
    """One gateway. `launch` gets the folder for its files; None is no gateway at all."""

    name: str
    launch: Callable[[Path], Launch] | None
    kinds: tuple[Kind, ...] = (CHAT,)


REQUIREMENTS = {
    "litellm": ("litellm[proxy]",),
    "sglang-router": ("sglang-router",),
    "vllm-router": ("vllm-router",),
    "reference": ("fastapi", "httpx", "uvicorn", "uvloop", "httptools", "orjson"),
}


@dataclass(frozen=True)
class Peers:
    """Where the peers live: one virtual environment each under `folder`."""

    folder: Path

    def install(self) -> bool:
        """Makes every environment that is missing, tells which cannot be made, and returns whether all are there."""
        for name, requirements in REQUIREMENTS.items():
            if self._marker(name).exists():
                continue
            print(f"installing {name}", file=sys.stderr)
            environment = self.folder / name
            try:
                subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
                pip = [str(environment / "bin/python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
                subprocess.run([*pip, "install", *requirements], check=True)
                self._marker(name).touch()
            except subprocess.CalledProcessError as error:
                print(f"{name} could not be installed: {error}", file=sys.stderr)
        return all(self._marker(name).exists() for name in REQUIREMENTS)

    def program(self, peer: str, name: str) -> str:
        """Raises NotInstalled."""
        if not self._marker(peer).exists():
            raise NotInstalled("not installed: run once with --install-peers")
        return str(self.folder / peer / "bin" / name)

    def version(self, peer: str, package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        return subprocess.check_output([self.program(peer, "python"), "-c", code], text=True).strip()

    def _marker(self, name: str) -> Path:
        return self.folder / name / ".installed"


def litellm(peers: Peers, folder: Path) -> Launch:
    """One worker, no database, no callbacks, no retries; its default and recommended rule, simple-shuffle."""
    deployments = [
        {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "sk"}}
        for url in URLS
    ]
    settings = {
        "model_list": deployments,
        "router_settings": {"routing_strategy": "simple-shuffle", "num_retries": 0},
        "litellm_settings": {"num_retries": 0, "request_timeout": 600, "set_verbose": False, "telemetry": False},
        "general_settings": {"master_key": KEY},
    }
    (folder / "litellm.yaml").write_text(json.dumps(settings, indent=1))  # JSON is YAML
    command = [
        peers.program("litellm", "litellm"), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1",
        "--port", str(PORT), "--num_workers", "1",
    ]  # fmt: skip
    env = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return Launch(command, env, "/health/liveliness", version=peers.version("litellm", "litellm"))


def router(peers: Peers, name: str, module: str, folder: Path) -> Launch:
    """sglang-router and vllm-router, which has grown from it: round robin, no key. (Their --api-key is the lines'.)"""
    command = [
        peers.program(name, "python"), "-m", module, "--worker-urls", *URLS, "--host", "127.0.0.1",
        "--port", str(PORT), "--policy", "round_robin", "--max-concurrent-requests", "4096", "--log-level", "error",
    ]  # fmt: skip
    return Launch(command, version=peers.version(name, name))


def reference(peers: Peers, script: str, folder: Path) -> Launch:
    """One of ours in peers/: key, request parsed, fewest requests under way, usage of whole answers."""
    env = {"LINES": ",".join(ADDRESSES), "KEY": KEY, "PORT": str(PORT)}
    return Launch([peers.program("reference", "python"), str(HERE / "peers" / script)], env)


def fleet() -> str:
    """A fleet.yaml of sixteen lines of one model, priced unlike, that speak the line protocol; keys are required."""
    lines = "\n".join(
        f"  line-{n}: {{model: {MODEL}, engine: native, url: '{url}', price: {1 + n % 4} USD/h}}"
        for n, url in enumerate(URLS)
    )
    return (
        f"name: benchmark\ngateway: {{host: 127.0.0.1, port: {PORT}, keys: required}}\n"
        f"models:\n  {MODEL}: {{text: '{TEXT}', policy: fastest}}\nlines:\n{lines}\n"
    )


def twinline(command: str, folder: Path) -> Launch:
    """`twinline up` on a fleet file, in a home of its own on disk, with a key that has limits on requests and tokens.

    So every request is checked against a key and its quota, routed over the sixteen lines, and metered durably.
    `{fleet}`, `{port}` and `{home}` in the command are filled in.
    """
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (folder / "fleet.yaml").write_text(fleet())
    env = {"TWINLINE_HOME": str(home)}
    create = [str(TWINLINE), "keys", "create", "benchmark", "--rpm", LIMIT, "--tpm", LIMIT, "--json"]
    made = subprocess.run(create, env={**os.environ, **env}, capture_output=True, text=True)
    if made.returncode:
        raise StartFailed(f"no key: {made.stderr.strip()}")
    filled = command.format(fleet=folder / "fleet.yaml", port=PORT, home=home)
    return Launch(shlex.split(filled), env, key=json.loads(made.stdout)["secret"])


def stacks(peers: Peers, command: str) -> list[Stack]:
    """All of them, in the order of the report; what is not installed is found out at its launch."""
    return [
        Stack("direct", None, (CHAT, TOKEN_IDS)),
        Stack("twinline", lambda folder: twinline(command, folder), (CHAT, TOKEN_IDS)),
        Stack("uvicorn ASGI + httptools", lambda folder: reference(peers, "asgi_httptools.py", folder)),
        Stack("FastAPI + httpx", lambda folder: reference(peers, "fastapi_httpx.py", folder)),
        Stack("vllm-router", lambda folder: router(peers, "vllm-router", "vllm_router.launch_router", folder)),
        Stack("sglang-router", lambda folder: router(peers, "sglang-router", "sglang_router.launch_router", folder)),
        Stack("LiteLLM", lambda folder: litellm(peers, folder)),
    ]


DEFAULT_COMMAND = f"{TWINLINE} up {{fleet}}"
