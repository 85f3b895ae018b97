"""One engine with one model in a process of its own, asked line by line.

    PYTHON -m benchmarks.cpu.child ENGINE MODEL PRECISION THREADS [OPTION...]

Reads `[scenario, {arguments}]` a line from standard input, writes `{...figures}` or `{"error": ...}` a line to standard
output, which the engine itself cannot reach. Runs in the engine's own environment: standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cpu.engines import Asked, Engine, open_engine
from benchmarks.cpu.family import peak_bytes

from benchmarks.cpu import scenarios

SCENARIOS: dict[str, Callable[..., dict[str, float]]] = {
    "decode": scenarios.decode,
    "prefill": scenarios.prefill,
    "beside": scenarios.beside,
}
WARM_PROMPT, WARM_NEW = 32, 6


class Answering:
    """Runs scenarios on an engine. The first of each kind and width is preceded by a short one that nobody times: what
    an engine compiles or records when it first meets a batch is not its speed. `start` times such a first."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._warm: set[tuple[str, int]] = set()

    def __call__(self, line: str) -> dict[str, Any]:
        name, arguments = json.loads(line)
        if name == "facts":
            return self._engine.facts()
        if name == "start":
            name = "prefill"
        else:
            self._warm_up(name, arguments)
        return SCENARIOS[name](self._engine, **arguments) | {"peak_bytes": peak_bytes(os.getpid())}

    def _warm_up(self, name: str, arguments: dict[str, Any]) -> None:
        users = arguments.get("users", scenarios.OTHERS if name == "beside" else 1)
        if (name, users) not in self._warm:
            self._warm.add((name, users))
            scenarios.decode(self._engine, users, arguments["vocab"], prompt=WARM_PROMPT, new=WARM_NEW, seed=1)


def main() -> int:
    name, model, precision, threads, *options = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints goes to standard error
    engine: Engine | None = None
    try:
        engine = open_engine(name, Asked(Path(model), precision, int(threads), tuple(options)))
        print(json.dumps({"ready": True}), file=answers, flush=True)
        answer = Answering(engine)
        for line in sys.stdin:
            print(json.dumps(answer(line)), file=answers, flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return 1
    finally:
        if engine is not None:
            engine.close()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # some engines do not end on their own
