"""The worker as a real process for tests: started, spoken to over loopback, and surely ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import httpx

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "src"}


class Spawned:
    """`ready` is the worker's first line, waited for when asked. Leave the `with` block, and the process is gone."""

    def __init__(self, model: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "twinline.engine.worker", "--model", str(model), "--name", "tiny"]
        self.process = subprocess.Popen(
            [*command, "--watch-stdin", "--threads", "1", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        self.last_words: list[str] = []
        assert self.process.stderr is not None
        threading.Thread(target=self._follow, args=(self.process.stderr,), daemon=True).start()

    @cached_property
    def ready(self) -> dict[str, Any]:
        return json.loads(self._line(120))

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.ready['port']}", timeout=30, trust_env=False)

    def _follow(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self.last_words.append(line.decode("utf-8", "replace"))

    def _line(self, seconds: float) -> bytes:
        assert self.process.stdout is not None
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        assert line, f"the worker ended without a word: {''.join(self.last_words)}"
        return line

    def __enter__(self) -> Spawned:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def complete(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"model": "tiny", "temperature": 0} | body)

    def choice(self, **body: Any) -> dict[str, Any]:
        response = self.complete(**body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def tokens(self, **body: Any) -> list[int]:
        return self.choice(**body)["token_ids"]

    def health(self) -> dict[str, Any]:
        return self.http.get("/health").json()

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def events(response: httpx.Response) -> list[Any]:
    """The parsed events of a stream that ended; `[DONE]` as a string."""
    found = []
    for line in response.text.splitlines():
        if line:
            assert line.startswith("data: "), line
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
