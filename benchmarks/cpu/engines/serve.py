"""Twinline as people run it: `twinline serve`, asked over HTTP."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cpu.engines import CACHE_TOKENS, MOST_REQUESTS, STEP_TOKENS, Asked
from benchmarks.cpu.engines.native import PLAIN
from benchmarks.cpu.engines.streamed import Server, Streams, free_port


class Opened:
    def __init__(self, asked: Asked) -> None:
        port = free_port()
        self._home = tempfile.TemporaryDirectory()
        command = [
            "env", f"TWINLINE_HOME={self._home.name}", str(Path(sys.executable).with_name("twinline")), "serve",
            str(asked.model), "--name", "model", "--port", str(port), "--log-level", "warning", "--device", "cpu",
            "--threads", str(asked.threads), "--kv-tokens", str(CACHE_TOKENS), "--max-running", str(MOST_REQUESTS),
            "--max-tokens-per-step", str(STEP_TOKENS), *asked.options,
        ]  # fmt: skip
        if asked.precision not in PLAIN:
            command += ["--weights", asked.precision]
        self._server = Server(command, f"http://127.0.0.1:{port}", "/health")
        self._streams = Streams(self._server.url + "/v1/completions", lambda: _tokens)
        self.step = self._streams.step

    def submit(self, prompt: list[int], new: int) -> str:
        return self._streams.submit(
            {"model": "model", "prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True,
             "ignore_eos": True, "return_token_ids": True}
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        import twinline

        return {"version": twinline.__version__}

    def close(self) -> None:
        self._streams.close()
        self._server.close()
        self._home.cleanup()


def _tokens(data: bytes) -> int:
    event = json.loads(data)
    if event.get("error"):
        raise RuntimeError(str(event["error"]))
    return sum(len(choice.get("token_ids") or ()) for choice in event.get("choices") or ())
