"""Which engines a line can have: one line here, one file beside.

Owns the registry. Must not import a driver before somebody asks for it.
"""

from __future__ import annotations

import importlib
from functools import cache

from twinline.lines.drivers.driver import Driver

DRIVERS = {
    "native": "twinline.lines.drivers.native:Native",
    "vllm": "twinline.lines.drivers.vllm:Vllm",
    "sglang": "twinline.lines.drivers.sglang:Sglang",
    "llamacpp": "twinline.lines.drivers.llamacpp:LlamaCpp",
    "ollama": "twinline.lines.drivers.ollama:Ollama",
    "openai": "twinline.lines.drivers.openai:OpenAI",
    "simulated": "twinline.lines.drivers.simulated:Simulated",
}


@cache
def driver(engine: str) -> Driver:
    """Raises ValueError for an engine that nobody drives."""
    path = DRIVERS.get(engine)
    if path is None:
        raise ValueError(f"no engine is called {engine!r}; there are {', '.join(DRIVERS)}")
    module, _, name = path.partition(":")
    made: Driver = getattr(importlib.import_module(module), name)()
    return made
