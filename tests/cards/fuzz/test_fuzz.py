"""Ten thousand spoilt outputs: none raises, and no card holds a number that does not stand there.

`TWINLINE_FUZZ=100000` runs more of them, from other seeds.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from tests.cards.fuzz.mutations import HARMLESS, columns_at, insert_column, mutated, shuffle_columns
from tests.cards.fuzz.oracle import invented, invented_links, stands
from tests.cards.recordings import Recording, line, reader, recordings

COUNT = int(os.environ.get("TWINLINE_FUZZ", "10000"))
SLICES = 8
LIVE = [one for one in recordings().values() if one.id not in ("cnmon-json-keys", "ppu-smi-csv")]


@pytest.mark.parametrize("part", range(SLICES))
def test_spoilt_outputs_neither_raise_nor_invent(part: int) -> None:
    random = Random(f"cards {COUNT} {part}")
    wrong = []
    for at in range(COUNT // SLICES):
        one = LIVE[(at * SLICES + part) % len(LIVE)]
        text, command = mutated(random, one)
        found = reader(one)(text, command)
        for card in found.cards:
            wrong += [(one.id, fault, text) for fault in invented(text, command, card)]
        if found.topology:
            wrong += [(one.id, fault, text) for fault in invented_links(text, found.topology)]
    assert not wrong, f"{len(wrong)}: {wrong[0][0]}: {wrong[0][1]}\n{wrong[0][2]}"


@pytest.mark.parametrize("mutation", HARMLESS, ids=lambda mutation: mutation.__name__)
def test_what_a_person_can_still_read_is_read(mutation: object) -> None:
    """Wider columns, more columns, other orders, colours and line ends change nothing."""
    changed = 0
    for one in LIVE:
        if mutation in (insert_column, shuffle_columns) and not columns_at(one.text, one.command):
            continue
        expected = [line(card) for card in reader(one)(one.text, one.command).cards]
        for seed in range(8):
            text, command = mutation(Random(seed), one.text, one.command)  # type: ignore[operator]
            changed += (text, command) != (one.text, one.command)
            assert [line(card) for card in reader(one)(text, command).cards] == expected, f"{one.id}\n{command}\n{text}"
    assert changed > 20


def test_the_mutations_spoil_and_leave_enough_to_read() -> None:
    random, held, kept = Random(1), 0, 0
    for one in LIVE:
        for _ in range(10):
            text, command = mutated(random, one)
            held += text != one.text or command != one.command
            kept += bool(reader(one)(text, command).cards)
    assert held > 8 * len(LIVE)
    assert kept > 5 * len(LIVE)


def test_the_oracle_finds_an_invented_number() -> None:
    """Every number of every card, off by one, is called invented; as it is, it is not."""
    called = asked = 0
    for one in LIVE:
        for card in reader(one)(one.text, one.command).cards:
            assert not invented(one.text, one.command, card), one.id
            for field in ("temperature", "watts", "watt_limit", "memory_total", "memory_used"):
                value = getattr(card, field)
                if value:
                    asked += 1
                    called += not stands(one.text, one.command, field, value + (1.25 if field[0] in "tw" else 3 << 20))
    assert asked > 150
    assert called == asked


def test_the_oracle_finds_a_number_of_the_next_column() -> None:
    one: Recording = recordings()["npu-smi-info-910b2c-23.0.3"]
    card = reader(one)(one.text, one.command).cards[0]
    assert stands(one.text, one.command, "temperature", 53.0)
    assert not stands(one.text, one.command, "temperature", 89.9)
    assert not stands(one.text, one.command, "watts", 53.0)
    assert not stands(one.text, one.command, "memory_used", 65536 << 10)
    assert card.watts == 89.9


NUMBERS = (
    "card", "device", "logical", "memory_total", "memory_used", "utilisation", "temperature", "watts", "watt_limit",
)  # fmt: skip


@pytest.mark.parametrize(
    "one", [one for one in LIVE if columns_at(one.text, one.command) == "bar"], ids=lambda one: one.id
)
def test_a_cut_table_gives_less_and_never_another_number(one: Recording) -> None:
    """Half a number would stand in the text too. A bar or a unit is missing then, so that it is not read."""
    random = Random(one.id)
    whole = reader(one)(one.text, one.command).cards
    lines = one.text.split("\n")
    rows = [at for at, row in enumerate(lines) if row.count("|") > 1]
    for _ in range(150):
        at = random.choice(rows)
        cut = [*lines[:at], lines[at][: random.randint(1, len(lines[at]))], *lines[at + 1 :]]
        text = "\n".join(cut if random.random() < 0.7 else cut[: at + 1])
        for card in reader(one)(text, one.command).cards:
            owners = [
                c for c in whole if c.card == card.card and card.device in (None, c.device)
            ]  # a cut number: any of them
            for name in NUMBERS if card.card is not None else ():
                known = {getattr(owner, name) for owner in owners}
                assert getattr(card, name) in {None, *known}, f"{name} of {card.label}\n{text}"
