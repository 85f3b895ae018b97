"""Which failures may be asked for, and whom they strike."""

from __future__ import annotations

import pytest

from twinline.lines.simulated.faults import Fault, Faults, convert, parse


@pytest.mark.parametrize(
    "said",
    [
        b"", b"[]", b'{"mode": "explode"}', b'{"mode": "reset", "after": 1}', b'{"mode": "reset", "after_tokens": -1}',
        b'{"mode": "reset", "probability": 0}', b'{"mode": "reset", "probability": 1.5}',
        b'{"mode": "500", "after_tokens": 3}', b'{"mode": "reset", "seconds": 3}', b'{"mode": "hang", "seconds": 0}',
        b'{"mode": "slow", "factor": 0}', b'{"mode": "slow", "streams": "next"}', b'{"mode": "fin", "streams": "some"}',
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse(said)


def test_a_fleet_file_says_the_same() -> None:
    said = {"mode": "late_wake", "after_tokens": 4, "streams": "next", "seconds": 2}
    assert convert(said) == Fault("late_wake", 4, "next", seconds=2)
    with pytest.raises(ValueError, match="explode"):
        convert({"mode": "explode"})


def test_next_strikes_once_and_all_strikes_always() -> None:
    faults = Faults()
    assert faults.strikes() is None
    faults.set(Fault("reset", streams="next"))
    assert [faults.strikes() is not None for _ in range(3)] == [True, False, False]
    faults.set(Fault("reset"))
    assert all(faults.strikes() for _ in range(10))
    faults.set(Fault("slow"))
    assert faults.strikes() is None


def test_the_lot_falls_on_the_share_that_was_asked_for() -> None:
    faults = Faults(seed=1)
    faults.set(Fault("fin", probability=0.25))
    assert 400 < sum(faults.strikes() is not None for _ in range(2000)) < 600
