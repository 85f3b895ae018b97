"""Numbers with the digits that float32 has."""

from __future__ import annotations

import json
import math

import numpy as np

from twinline.facts.decimals import decimals


def test_a_number_reads_back_as_the_same_float32() -> None:
    """Of every exponent, beside the powers of two, where the distance to the next value changes, and at its ends."""
    powers = np.array([2.0**e for e in range(-149, 128)], "<f4")
    beside = [np.nextafter(powers, np.float32(to)) for to in (0, np.finfo("f4").max)]
    drawn = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype="<u4").view("<f4")
    ends = np.array([0.0, -0.0, np.finfo("f4").max, np.finfo("f4").min], "<f4")
    values = np.concatenate([powers, -powers, *beside, drawn[np.isfinite(drawn)], ends])
    written = json.dumps(decimals(values))
    assert np.array_equal(np.asarray(json.loads(written), "f8").astype("<f4").view("<u4"), values.view("<u4"))


def test_a_number_has_nine_digits_at_most() -> None:
    drawn = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype="<u4").view("<f4")
    usual = drawn[(np.abs(drawn) > 1e-14) & (np.abs(drawn) < 2**24)]  # larger ones are whole numbers
    assert max(len(f"{number!r}".split("e")[0].replace(".", "").strip("-0")) for number in decimals(usual)) == 9
    (nothing,) = decimals(np.array([np.nan], "<f4"))
    assert math.isnan(nothing)
