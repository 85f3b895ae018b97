"""What a fleet says of one line: its engine, what it runs on, what it costs, what it cannot do.

Owns the words and their defaults. Must not know files, processes or requests: `fleet/` reads it, a driver obeys it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRECISION = ("dtype", "weights", "head_weights")  # options of the native engine that change its texts


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSpec:
    """One line. With `url` the engine is somebody else's: it is neither started nor stopped here.

    `model` is what users call; `upstream` is the engine's own name for it. `weights` is what the engine loads: a model
    folder, a GGUF file, an Ollama name. `embeds`: it gives vectors of texts, and nothing else. `weights_class` names
    lines whose answers are one text, or whose vectors compare: a stream moves within its class only. `lacks` are
    features (drivers/driver.py) that this line must not be asked for. `container`: an image in which the command runs.
    """

    name: str
    model: str
    engine: str
    weights: str | None = None
    url: str | None = None
    upstream: str | None = None
    embeds: bool = False
    precision: str = "auto"
    weights_class: str = "default"
    chip: str = "cpu"
    cards: tuple[int, ...] = ()
    replicas: int = 1
    price_per_hour: float = 0.0  # of one running replica
    price_per_million_input: float = 0.0  # of a line that is paid by the token
    price_per_million_output: float = 0.0
    weight: float = 1.0
    context: int | None = None
    slots: int | None = None
    lacks: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    container: str | None = None
    api_key_env: str | None = None
    start_seconds: float = 600.0

    @property
    def known_as(self) -> str:
        """The model's name at the engine."""
        return self.upstream or self.model

    @property
    def folder(self) -> Path | None:
        return None if self.weights is None else Path(self.weights)


def weights_class(spec: LineSpec) -> str:
    """Lines that load the same weights in the same precision give one text: a stream may move between them.

    A simulated line gives a text of its own, whatever vocabulary it speaks. Options that say how our engine keeps and
    computes weights say its precision too.
    """
    name = f"{spec.weights or spec.known_as}@{spec.precision}"
    if spec.engine == "native":
        name += "".join(f",{option}={spec.options[option]}" for option in PRECISION if option in spec.options)
    return f"simulated:{name}" if spec.engine == "simulated" else name
