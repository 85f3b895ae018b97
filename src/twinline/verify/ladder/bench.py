"""The bench on which a chip is tried: the device beside the reference (CPU, reference ops), one model, one seed.

Owns what several levels need and what is slow to make, made once: devices, specs, models; and what was refused so far,
so that later levels try the chip as it would serve. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

from twinline.engine.devices.device import Device, dtype_name, open_device
from twinline.facts.models import ModelSpec, read_spec
from twinline.verify.ladder.finding import Trial

P = ParamSpec("P")
T = TypeVar("T")


class Bench:
    """`doing(check)` is told before each check starts, so that a hang or a death can be laid at its door."""

    def __init__(self, trial: Trial, doing: Callable[[str], None] = lambda check: None):
        self.trial, self.doing = trial, doing
        self.check, self.told = "", 0.0
        """What is being done, and when that was told last (monotonic seconds)."""
        self.model_is_wrong = False
        """It is known already: nothing long is needed to show it again."""
        self.refused: dict[tuple[str, str, str], str] = {}
        """(op, provider, dtype) to what it did wrongly."""
        self.made: dict[tuple[Any, ...], Any] = {}
        """What `once` has made."""
        self._supports: dict[torch.dtype, bool] = {}

    @cached_property
    def spec(self) -> ModelSpec:
        return read_spec(Path(self.trial.model))

    @cached_property
    def device(self) -> Device:
        return open_device(self.trial.device)

    @cached_property
    def host(self) -> Device:
        return open_device("cpu")

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether the device computes in a dtype; one that breaks when asked does not."""
        if dtype not in self._supports:
            try:
                self._supports[dtype] = self.device.supports(dtype)
            except Exception:
                self._supports[dtype] = False
        return self._supports[dtype]

    def refusals(self, dtype: torch.dtype) -> dict[tuple[str, str], str]:
        """(op, provider) to reason, of what must not serve in a dtype."""
        name = dtype_name(dtype)
        return {(op, provider): why for (op, provider, of), why in self.refused.items() if of == name}

    def generator(self, *names: str | int) -> np.random.Generator:
        """Random numbers that depend on the trial's seed and on `names` alone, on every machine alike."""
        words = [self.trial.seed, *(byte for name in names for byte in str(name).encode())]
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device.torch_device)


def once(make: Callable[Concatenate[Bench, P], T]) -> Callable[Concatenate[Bench, P], T]:
    """Called once for each bench and further arguments; what it returns lives as long as the bench."""

    @wraps(make)
    def made(bench: Bench, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (make, *args, *sorted(kwargs.items()))
        if key not in bench.made:
            bench.made[key] = make(bench, *args, **kwargs)
        found: T = bench.made[key]
        return found

    return made
