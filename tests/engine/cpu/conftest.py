"""Every instruction set that this CPU runs, and numbers of threads, for tests of kernels."""

from collections.abc import Callable, Iterator

import pytest
import torch

from twinline.engine.ops.cpu import library


@pytest.fixture(params=library.variants() if library.why_not() is None else [])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once in each variant."""
    handle = library.library().handle
    assert handle.twinline_use(request.param.encode())
    yield request.param
    handle.twinline_use(library.library().variant.encode())


@pytest.fixture
def on_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads compute until the test ends."""
    yield library.set_threads
    library.set_threads(torch.get_num_threads())
