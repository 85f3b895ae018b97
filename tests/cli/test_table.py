"""Tables for people: which columns a narrow terminal goes without; a price in a cell."""

from __future__ import annotations

from twinline.cli.ps import _price
from twinline.cli.table import aligned, fitted

ROWS = [["line", "state", "pid", "url"], ["ascend", "serving", "12345", "http://127.0.0.1:40000"]]


def test_columns_are_left_out_in_the_order_that_is_told_until_it_fits() -> None:
    whole = len(aligned(ROWS).splitlines()[1])
    for room, left_out in ((None, []), (whole, []), (whole - 1, ["url"]), (22, ["url"]), (21, ["url", "pid"])):
        rows, out = fitted(ROWS, room, ("url", "pid"))
        assert out == left_out
        assert room is None or max(map(len, aligned(rows).splitlines())) <= room
    assert fitted(ROWS, 3, ("url", "pid"))[0] == [["line", "state"], ["ascend", "serving"]]  # what is needed stays


def test_wide_characters_take_two_columns_and_joined_accents_none() -> None:
    rows = [["chip", "n", "url"], ["昇腾910B", "1", "a"], ["e\u0301", "22", "b"]]
    assert aligned(rows) == "chip       n  url\n昇腾910B   1    a\ne\u0301         22    b"
    assert fitted(rows, 17, ("url",))[1] == [] and fitted(rows, 16, ("url",))[1] == ["url"]


def test_a_price_by_the_hour_by_tokens_or_both() -> None:
    def price(*values: float) -> str:
        return _price(dict(zip(("price_per_hour", "price_per_million_input", "price_per_million_output"), values)))

    assert [price(2.5, 0, 0), price(0, 4, 16), price(1, 0, 2)] == ["2.5", "4/16 a million", "1 + 0/2 a million"]
