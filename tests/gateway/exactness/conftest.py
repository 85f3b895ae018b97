from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of faults are made on purpose; a failure is told by the test itself."""
    caplog.set_level(logging.CRITICAL, "twinline")
