"""Text as tools print it, and the numbers in it: what reads, and what must not."""

from __future__ import annotations

import pytest

from twinline.cards import quantity
from twinline.cards.fields import Cell, address, card, condition, pair
from twinline.cards.headers import header
from twinline.cards.objects import parsed
from twinline.cards.text import clipped, lines, plain, said


@pytest.mark.parametrize(
    "text",
    ["N/A", "n/a", "NA", "-", "--", "", "  ", "[Not Supported]", "[N/A]", "ERR!", "Unknown Error", "None", "null", "?"],
)
def test_what_means_nothing(text: str) -> None:
    assert said(text) is None


@pytest.mark.parametrize("text", ["0", "OK", "-5", "Nano", "NAND", "none of it"])
def test_what_means_something(text: str) -> None:
    assert said(f" {text} ") == text


@pytest.mark.parametrize(("text", "value"), [
    ("65.23", 65.23), ("65,23", 65.23), ("0", 0.0), ("-3", -3.0), ("1,5", 1.5), ("1,024", None), ("1.024,5", None),
    ("1e5", None), ("0x10", None), ("\u0663", None), ("\uff11\uff12", None), ("", None), ("12 3", None), ("nan", None),
    ("9" * 30, None),
])  # fmt: skip
def test_numbers(text: str, value: float | None) -> None:
    assert quantity.number(text) == value


@pytest.mark.parametrize(("text", "unit", "count"), [
    ("65536", "MB", 65536 << 20), ("31058MiB", None, 31058 << 20), ("1 GiB", None, 1 << 30),
    ("512Mib", None, 512 << 20),
    ("17163091968", "B", 17163091968), ("96 MiB", "B", 96 << 20), ("65536", None, None), ("40 W", "MB", None),
    ("-5 MiB", None, None), ("1,024 MiB", None, None), ("99999999 TiB", None, None),
    ("64.5GB", None, round(64.5 * 2**30)),
])  # fmt: skip
def test_memory_needs_a_unit_of_memory(text: str, unit: str | None, count: int | None) -> None:
    assert quantity.memory(text, unit) == count


def test_other_quantities_refuse_foreign_units_and_impossible_values() -> None:
    assert (
        quantity.celsius("34℃") == quantity.celsius("34C") == quantity.celsius("34 °C") == quantity.celsius("34") == 34
    )
    assert quantity.celsius("93F") is quantity.celsius("4000C") is quantity.celsius("34%") is None
    assert quantity.watts("91W") == quantity.watts("91") == 91
    assert quantity.watts("91500mW") == 91.5
    assert quantity.watts("91C") is quantity.watts("-1W") is None
    assert quantity.percent("0.0 %") == 0
    assert quantity.percent("101%") is quantity.percent("5 MiB") is None
    assert quantity.whole("07") == 7
    assert quantity.whole("-1") is quantity.whole("1.0") is None


def test_pairs() -> None:
    assert pair("91W / 400W") == ("91W", "400W")
    assert pair("826/65536 MiB") == ("826MiB", "65536 MiB")
    assert pair("2MiB(16384MiB)") == ("2MiB", "16384MiB")
    assert pair("2MiB(16384MiB") is pair("91W") is None


@pytest.mark.parametrize(("text", "found"), [
    ("0000:5A:00.0", "0000:5a:00.0"), ("00000000:03:00.0", "0000:03:00.0"), ("5a:00.0", "0000:5a:00.0"),
    ("00:2d:00.0", "0000:2d:00.0"), ("00010000:01:00.0", "10000:01:00.0"), ("0000:06:00.0 --> SN: X", "0000:06:00.0"),
    ("0000:5A:00", None), ("5a", None), ("0000:5A:00.0f", None), ("", None), (None, None),
])  # fmt: skip
def test_addresses_have_one_form(text: str | None, found: str | None) -> None:
    assert address(text) == found


def test_a_header_is_its_words_without_its_unit() -> None:
    assert (header("HBM-Usage(MB)").field, header("HBM-Usage(MB)").unit) == ("memory_pair", "MB")
    assert (header("DCU use (%)").field, header("HCU use (%)").field) == ("utilisation", "utilisation")
    assert (header("HCU").field, header("HCU%").field) == ("card", "utilisation")
    assert header("Mem", {"mem": "memory_total MiB"}).unit == "MiB"
    assert header("GPU", {"gpu": ""}).field is None
    assert header("Leistung(W)").field is None


def test_colours_line_ends_and_controls_go() -> None:
    assert plain("\x1b[1;31m OK\x1b[0m\r\nx\x00y\tz\ufeff\u202e") == " OK\nxy        z"
    assert lines("a\rb\n" + "c" * 3000) == ["a", "b"]
    assert clipped("a\n b" * 200).endswith("...")


def test_health_words() -> None:
    assert condition("OK", "t")[0] == condition("True", "t")[0] == condition("Available", "t")[0] == "ok"
    assert condition("Alarm", "t")[0] == condition("NOK", "t")[0] == condition("ERROR: 3", "t")[0] == "bad"
    assert condition("Rot", "t") == ("unknown", "t: health Rot")
    assert condition("N/A", "t") == ("unknown", "t does not say")


def test_a_card_keeps_only_what_reads() -> None:
    texts = {"card": "x", "watts": "ERR!", "temperature": "91W", "memory_total": "64", "name": "910B2", "bus": "??"}
    found = card("huawei", "npu-smi", {field: Cell(text) for field, text in texts.items()})
    assert (found.card, found.watts, found.temperature, found.memory_total, found.bus) == (None,) * 5
    assert found.chip == "ascend-910b2"
    assert card("huawei", "npu-smi", {"name": Cell("no such chip")}).chip is None


def test_json_between_other_text() -> None:
    assert parsed('warn\n{"a": 1, "": "x", "": "y"}\nWarning: [some]') == {"a": "1"}
    assert parsed('{"a": {"value": 1.50}, "b": "x", "b": "z"}') == {"a": {"value": "1.50"}}
    assert parsed('{"card0": {"a": "1"}, "card1": {"a"') is None
    assert parsed("no object") is parsed("[1, 2") is None
    assert parsed("[" * 5000) is None
