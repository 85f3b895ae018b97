"""Every recorded output gives exactly the cards, links and findings that a person reads in it."""

from __future__ import annotations

import importlib

import pytest
import yaml
from tests.cards.recordings import FOLDER, line, read, recordings

from twinline.cards.vendors import READERS, asks
from twinline.facts.chips import load

EXPECTED: dict[str, dict[str, list[str]]] = yaml.safe_load((FOLDER / "expected.yaml").read_text("utf-8"))
# Recordings that hold no value to read: no header over the rows, no output at all, or a drawing that nobody printed.
NOTHING = {
    "npu-smi-info-910c-rows", "efsmi-s60g-rows", "hl-smi-gaudi3-rows", "nvidia-smi-csv", "cnmon-json-keys",
    "ppu-smi-csv", "brsmi-unverified", "npu-smi-broken",
}  # fmt: skip


@pytest.mark.parametrize("identifier", recordings())
def test_a_recording_gives_what_a_person_reads(identifier: str) -> None:
    found, expected = read(identifier), EXPECTED[identifier]
    assert [line(card) for card in found.cards] == expected.get("cards", [])
    assert [f"{one.kind}: {one.message}" for one in found.findings] == expected.get("findings", [])
    if "groups" in expected:
        assert found.topology is not None
        assert [" ".join(group) for group in found.topology.groups()] == expected["groups"]
        assert len(found.topology.links) == expected["links"]
    else:
        assert found.topology is None


def test_every_recording_is_expected_and_has_a_source() -> None:
    texts = {path.stem for path in FOLDER.glob("*.txt")}
    assert texts == recordings().keys() == EXPECTED.keys()
    assert len(texts) == 65
    assert all(one.source and one.command and one.extent for one in recordings().values())


def test_what_holds_something_gives_something_and_no_complaint() -> None:
    for identifier in recordings().keys() - NOTHING:
        found = read(identifier)
        assert not [one for one in found.findings if one.kind == "unparsable"], identifier
        quiet = identifier in ("npu-smi-hccs-ok", "hccn-tool")
        assert quiet or found.cards or found.topology, identifier
    for identifier in NOTHING:
        assert not read(identifier).cards
        assert read(identifier).findings


def test_power_printed_once_for_two_devices_stays_with_the_first() -> None:
    cards = read("npu-smi-info-910c").cards
    assert [(card.card, card.device, card.watts) for card in cards] == [
        (0, 0, 161.9), (0, 1, None), (1, 0, 164.2), (1, 1, None),
    ]  # fmt: skip
    assert [card.health for card in cards] == ["ok", "bad", "ok", "ok"]
    assert "Warning" in cards[1].reason


def test_every_question_and_its_tool_stand_in_the_catalog() -> None:
    catalog = load()
    for vendor in READERS:
        known = {command for tool in catalog.vendors[vendor].tools for command in tool.commands}
        assert {ask.command for ask in asks(vendor)} <= known, vendor
        assert asks(vendor)
    assert asks("acme") == ()  # its cards are looked for on the bus alone


@pytest.mark.parametrize("vendor", READERS)
def test_readers_take_nonsense(vendor: str) -> None:
    module = importlib.import_module(READERS[vendor])
    for ask in module.ASKS:
        for text in (
            "",
            "\n\n",
            "{",
            "[]",
            "{}",
            "<",
            "<a/>",
            "\x00\xff" * 50,
            "null",
            "[1, [2]]",
            "|" * 500,
            "a" * 10_000,
        ):
            found = ask.read(text, ask.command)
            assert not found.cards
            assert found.topology is None
