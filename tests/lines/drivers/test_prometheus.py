"""Prometheus text: sums over labels, whatever stands between."""

from __future__ import annotations

from twinline.lines.drivers.prometheus import totals, whole


def test_samples_are_added_up_over_their_labels() -> None:
    text = b'# HELP a b\n# TYPE a counter\na{x="1",y="} 9"} 2\na{x="2"} 3.5 1700000000\nb 1e3\n\nc{} NaN\nbroken\nd x\n'
    assert totals(text) == {"a": 5.5, "b": 1000.0}
    assert (whole(totals(text), "a"), whole(totals(text), "none")) == (5, None)


def test_no_bytes_are_too_strange() -> None:
    assert totals(b"\xff\xfe{} 1\n{\n}\n 5\n\0") is not None


def test_a_sum_stays_a_number() -> None:
    assert whole(totals(b"a{b='1'} 1.5e308\na{b='2'} 1.5e308\n"), "a") == int(1.5e308)
