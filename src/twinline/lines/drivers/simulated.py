"""The simulated engine: a process of ours that plays a chip and speaks the line protocol.

Owns its options and its marks. Must not know how it plays: that is `lines/simulated/`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from twinline.lines.drivers.driver import Command, EngineMetrics
from twinline.lines.drivers.native import Native, Protocol
from twinline.lines.simulated.chip import Chip
from twinline.lines.simulated.faults import convert
from twinline.lines.spec import LineSpec

# The chip's figures, as a fleet file gives them; `slots` and `max_model_len` are fields of a line there.
FIGURES = {field.name: type(field.default) for field in fields(Chip) if field.name not in ("name", "slots")}
OPTIONS = frozenset({*FIGURES, "vocab_size", "fault", "seed"})


class Simulated:
    """A line that plays `spec.chip`. `spec.weights` is the model folder whose vocabulary it speaks."""

    engine: ClassVar[str] = "simulated"
    features: ClassVar[frozenset[str]] = frozenset({"token_ids", "exact", "sampling"})
    health_path: ClassVar[str | None] = "/health"
    metrics_path: ClassVar[str | None] = "/health"

    def check(self, spec: LineSpec) -> None:
        for name, value in spec.options.items():
            if name not in OPTIONS:
                known = ", ".join(sorted(OPTIONS))
                raise ValueError(f"options.{name}: the simulated engine has no such option; it has {known}")
            if name != "fault" and (isinstance(value, bool) or not isinstance(value, _kind(name))):
                raise ValueError(f"options.{name}: must be {_wanted(name)}, not {value!r}")
        if "fault" in spec.options:
            try:
                convert(spec.options["fault"])
            except ValueError as error:
                raise ValueError(f"options.fault: {error}") from None
        if "vocab_size" in spec.options and spec.weights is not None:
            raise ValueError("options.vocab_size: it has no use with weights, whose vocabulary is spoken")
        if spec.options.get("vocab_size", 2) < 2:
            raise ValueError(f"options.vocab_size: must be at least 2, not {spec.options['vocab_size']}")
        try:
            _chip(spec)
        except ValueError as error:
            raise ValueError(f"options: {error}") from None
        if spec.weights is not None and not (Path(spec.weights) / "tokenizer.json").is_file():
            raise ValueError(
                f"weights: {spec.weights} has no tokenizer.json; a simulated line takes a model folder for its "
                f"vocabulary, or none"
            )

    def command(self, spec: LineSpec, port: int) -> Command:
        chip = _chip(spec)
        argv = [sys.executable, "-m", "twinline.lines.simulated", "--name", spec.known_as]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--chip", chip.name, "--slots", str(chip.slots)]
        if spec.weights is not None:
            argv += ["--text", spec.weights]
        options: dict[str, Any] = dict(spec.options)
        options["max_model_len"] = chip.max_model_len
        for name, value in options.items():
            argv += ["--" + name.replace("_", "-"), json.dumps(value) if name == "fault" else str(value)]
        return Command(argv, {})

    def dialect(self, spec: LineSpec) -> Protocol:
        return Protocol()

    def vectors(self, spec: LineSpec) -> None:
        return None

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return {}

    def metrics(self, body: bytes) -> EngineMetrics:
        return Native().metrics(body)

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        """Also `label`, so that nobody takes it for more than it is."""
        listed = (models.get("data") or [{}])[0]
        return {name: listed[name] for name in ("max_model_len", "vocab_size", "label") if name in listed}


def _chip(spec: LineSpec) -> Chip:
    """What the line plays. Raises ValueError."""
    figures: dict[str, Any] = {name: value for name, value in spec.options.items() if name in FIGURES}
    if spec.slots is not None:
        figures["slots"] = spec.slots
    if spec.context is not None:
        figures["max_model_len"] = spec.context
    return Chip(name=spec.chip, **figures)


def _kind(name: str) -> type | tuple[type, ...]:
    return (int, float) if FIGURES.get(name) is float else int


def _wanted(name: str) -> str:
    return "a number" if FIGURES.get(name) is float else "a whole number"
