"""The engines that are measured, one file each, all driven in the same way.

    submit(prompt, new)   queues a greedy request for exactly `new` tokens; its key
    step()                lets the engine work until something came; the key of each token that came, in order
    facts()               versions, and what the engine says of its weights and cache
    close()

Each runs in its own environment, so a file imports its engine only when it is opened, and nothing here but the standard
library is common to all.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CACHE_TOKENS = 12288  # of every engine: 32 requests of 256 tokens, one of 4,096
LONGEST = 8192  # tokens of one request that an engine must be ready for, where it asks
STEP_TOKENS = 512  # computed in one step, over all requests
MOST_REQUESTS = 40


@dataclass(frozen=True)
class Asked:
    """What an engine is to run: a model's files, the width of weights, threads, and options of the engine's own."""

    model: Path
    precision: str
    threads: int
    options: tuple[str, ...] = ()


class Engine(Protocol):
    def submit(self, prompt: list[int], new: int) -> str: ...
    def step(self) -> list[str]: ...
    def facts(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


ENGINES = ("native", "serve", "llamaserver", "openvino", "vllm")


def open_engine(name: str, asked: Asked) -> Engine:
    """Loads the model; ready for requests when it returns."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}: one of {', '.join(ENGINES)}")
    return importlib.import_module(f"benchmarks.cpu.engines.{name}").Opened(asked)
