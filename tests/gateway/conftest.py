from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.harness import Gateway, gateway
from tests.lines.line_double import Script

from twinline.train.tokenizer import build


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-r1")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def running(tiny_folder: Path) -> Iterator[Gateway]:
    with gateway(tiny_folder) as made:
        yield made


@pytest.fixture
def door(running: Gateway) -> Gateway:
    """A gateway whose line's double has forgotten earlier tests."""
    running.double.script = lambda request: Script()
    running.double.requests.clear()
    running.double.aborted.clear()
    running.renew()
    return running
