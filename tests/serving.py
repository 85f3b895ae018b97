"""`twinline serve` as a process for tests: the embedded model on a free port, asked over loopback, and surely ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import httpx

MODEL = "tiny-r1"
CLI = [sys.executable, "-m", "twinline.cli"]
START_SECONDS, STOP_SECONDS = 120.0, 20.0
# One thread, and no proxy between two ends of loopback.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@dataclass
class Served:
    """A running server. `url` is without `/v1`; `last_words` is what it said on stderr."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client
    last_words: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"{self.url}/v1"

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def chat(self, question: str, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: str | list[int], **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": MODEL, "prompt": prompt, **fields})

    def metric(self, name: str) -> float:
        """The sum of a metric's samples over all labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    def answers(self) -> bool:
        return self.complete([0], max_tokens=1).status_code == 200

    def worker_pid(self) -> int:
        """The one child of the server: the engine's process."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True)
        return int(found.stdout)

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def serving(*options: str) -> Iterator[Served]:
    """Serves the embedded model until the block is left; `options` are the command line's."""
    command = [*CLI, "serve", "--port", "0", "--threads", "1", "--log-level", "warning", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None and process.stderr is not None
    words: list[str] = []
    follower = threading.Thread(target=_follow, args=(process.stderr, words), daemon=True)
    follower.start()
    try:
        url = _ready(process, words)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Served(process, url, client, words)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        follower.join(5)
        process.stdout.close()
        process.stderr.close()


def _follow(pipe: IO[str], words: list[str]) -> None:
    words.extend(pipe)


def _ready(process: subprocess.Popen[str], words: list[str]) -> str:
    """The URL in the announcement."""
    assert process.stdout is not None
    timer = threading.Timer(START_SECONDS, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    found = re.search(r"is ready at (http://\S+)/v1$", line)
    assert found, f"no server: {line!r} {''.join(words)}"
    return found.group(1)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
