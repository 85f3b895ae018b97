"""Fixtures of the engine's tests: one thread, provider orders, and checkpoints that are made once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import checkpoints, judged
from tests.engine.driving import DEVICE, only

from twinline.engine.devices.cpu import Cpu
from twinline.engine.devices.device import open_device

ORDERS = {"natural": Cpu.providers, "pure": ("reference",)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _known_to_pytorch() -> None:
    """As a simulated chip is only once it is opened."""
    if DEVICE != "cpu":
        open_device(DEVICE)


@pytest.fixture(autouse=True)
def _memory_back() -> Iterator[None]:
    """A card's memory is shared by all processes that test on it."""
    yield
    if DEVICE != "cpu":
        gc.collect()
        torch.get_device_module(DEVICE.partition(":")[0]).empty_cache()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every order for what asks for one and names none; traps are tried in the providers of other devices too."""
    named = any("order" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "order" in metafunc.fixturenames and not named:
        more = ["batched"] if metafunc.function.__name__.startswith("test_trap_") else []
        metafunc.parametrize("order", [*ORDERS, *more], indirect=True)


@pytest.fixture
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The device's own provider order, then the reference alone, then PyTorch's kernels as other devices have them.
    What is given back is the CPU's."""
    if request.param == "natural":
        return ORDERS["natural"]
    providers = (ORDERS | {"batched": ("batched", "reference")})[request.param]
    only(monkeypatch, *providers)
    return providers


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], checkpoints.Saved]:
    """A family's random checkpoint with its `transformers` model, made when first asked for."""
    made: dict[str, checkpoints.Saved] = {}

    def get(name: str) -> checkpoints.Saved:
        if name not in made:
            made[name] = checkpoints.save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture
def case(tmp_path: Path, order: tuple[str, ...]) -> judged.Make:
    """Crafted checkpoints with an engine of each provider order and the oracle's answer."""
    made = iter(range(10**6))

    def make(config: checkpoints.Config = checkpoints.R1, *more: Any, **options: Any) -> judged.Case:
        return judged.Case(tmp_path / str(next(made)), config, *more, **options)

    return make
