"""Twinline's engine, in this process, without its door."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.cpu.engines import CACHE_TOKENS, MOST_REQUESTS, STEP_TOKENS, Asked

PLAIN = ("bfloat16", "float32")


class Opened:
    def __init__(self, asked: Asked) -> None:
        from twinline.engine.build import Options, build

        wanted: dict[str, Any] = {
            "device": "cpu",
            "threads": asked.threads,
            "kv_tokens": CACHE_TOKENS,
            "max_running": MOST_REQUESTS,
            "max_tokens_per_step": STEP_TOKENS,
            "prefix_cache": False,
        }
        if asked.precision not in PLAIN:
            wanted["weights"] = asked.precision
        wanted |= dict(option.split("=", 1) for option in asked.options)
        known = {field.name for field in dataclasses.fields(Options)}
        if missing := wanted.keys() - known:
            raise SystemExit(f"this Twinline has no option {', '.join(sorted(missing))}")
        self._came: list[str] = []
        self._numbers = itertools.count()
        self._built = build(asked.model, Options(**wanted), self._take)
        self._built.device.prepare_thread()

    def _take(self, outputs: Sequence[Any]) -> None:
        for output in outputs:
            if output.error:
                raise RuntimeError(output.error)
            self._came += [output.request_id] * len(output.tokens)

    def submit(self, prompt: list[int], new: int) -> str:
        from twinline.engine.request import Request, SamplingParams

        key = f"{time.monotonic_ns()}-{next(self._numbers)}"
        self._built.engine.submit(Request(key, prompt, SamplingParams(max_tokens=new, temperature=0)))
        return key

    def step(self) -> list[str]:
        self._came = []
        while not self._came and self._built.engine.scheduler.has_work:
            self._built.engine.step()
        return self._came

    def facts(self) -> dict[str, Any]:
        import torch

        import twinline

        built = self._built
        uses = built.engine.runner.model.uses()
        graphs = built.engine.runner.graphs.why_not
        return {
            "version": twinline.__version__,
            "torch": torch.__version__,
            "ops": built.ops.explain(uses).splitlines(),
            "recorded_steps": graphs or "yes",
            "cache_bytes": built.kv_tokens * built.spec.kv_values * built.dtype.itemsize,
        }

    def close(self) -> None:
        pass
