"""llama.cpp's server, asked over HTTP in token ids; its own benchmark tools are in `tools.py`."""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.cpu.engines import CACHE_TOKENS, MOST_REQUESTS, STEP_TOKENS, Asked
from benchmarks.cpu.engines.streamed import Counter, Server, Streams, free_port


class Opened:
    """`asked.model` is a GGUF file; the server is named by the environment."""

    def __init__(self, asked: Asked) -> None:
        port = free_port()
        command = [
            os.environ["LLAMA_SERVER"], "--model", str(asked.model), "--port", str(port), "--host", "127.0.0.1",
            "--threads", str(asked.threads), "--threads-batch", str(asked.threads), "--threads-http", "64",
            "--ctx-size", str(CACHE_TOKENS), "--parallel", str(MOST_REQUESTS), "--kv-unified",
            "--batch-size", str(STEP_TOKENS), "--ubatch-size", str(STEP_TOKENS), "--log-verbosity", "1",
            "--cache-ram", "0",
        ]  # fmt: skip
        self._server = Server(command, f"http://127.0.0.1:{port}", "/health")
        self._streams = Streams(self._server.url + "/completion", _counter)
        self.step = self._streams.step

    def submit(self, prompt: list[int], new: int) -> str:
        return self._streams.submit(
            {"prompt": prompt, "n_predict": new, "temperature": 0, "stream": True, "ignore_eos": True,
             "cache_prompt": False, "samplers": ["temperature"], "return_tokens": True}
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        return {"server": os.environ["LLAMA_SERVER"]}

    def close(self) -> None:
        self._streams.close()
        self._server.close()


def _counter() -> Counter:
    """Tokens of one stream. One that ends inside a character has no event of its own: the next event counts it."""
    seen = 0

    def tokens(data: bytes) -> int:
        nonlocal seen
        event = json.loads(data)
        if event.get("error"):
            raise RuntimeError(str(event["error"]))
        before, seen = seen, max(seen, int(event.get("tokens_predicted") or 0))
        return seen - before

    return tokens
