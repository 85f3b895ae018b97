"""One level on the simulated chip, with whatever a test plants in it, and what came of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

import twinline
from twinline.engine.devices.simulated.chip import CHIPS, Call, Chip
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding, Trial

TINY = Path(twinline.__file__).parent / "models" / "tiny-r1"


def bench(*only: str, device: str = "simchip:clean", seed: int = 0, model: Path = TINY) -> Bench:
    torch.set_num_threads(1)
    return Bench(Trial(device=device, model=str(model), seed=seed, only=only))


def climb(bench: Bench, level: str) -> list[Finding]:
    return list(importlib.import_module(f"twinline.verify.ladder.{level}").climb(bench))


def bad(findings: list[Finding]) -> list[Finding]:
    return [f for f in findings if f.verdict in ("fail", "limit")]


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {f.check: f.verdict for f in findings}


@contextmanager
def planted(bench: Bench, plant: Callable[[Chip], None]) -> Iterator[Bench]:
    """The bench's chip with something planted while it lasts; healthy again afterwards."""
    chip = bench.device.chip  # type: ignore[attr-defined]
    plant(chip)
    try:
        yield bench
    finally:
        CHIPS[chip.index].reset()
        chip.plays = "clean"


def changed(names: str, change: Callable[[Tensor], Tensor]) -> Callable[[Chip], None]:
    """Plants a change in what these aten ops compute in floating point."""

    def after(call: Call, out: object) -> object:
        if not isinstance(out, Tensor) or not out.is_floating_point() or not out.numel():
            return out
        return out.copy_(change(out)) if call.writes else change(out).to(out.dtype)

    return lambda chip: chip.plant(names.split(), after=after)
