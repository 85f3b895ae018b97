"""One card from several outputs, and no card from two."""

from __future__ import annotations

from twinline.cards.card import Card
from twinline.cards.join import joined


def card(**given: object) -> Card:
    return Card(vendor="huawei", tool="npu-smi", **given)  # type: ignore[arg-type]


def test_numbers_join_and_gaps_are_filled() -> None:
    first = (card(card=0, device=0, watts=90.0, bus="0000:01:00.0"), card(card=0, device=1, bus="0000:02:00.0"))
    second = (card(card=0, device=1, logical=1), card(card=0, device=0, logical=0, watts=95.0))
    cards, findings = joined([first, second])
    assert [(one.device, one.logical, one.watts) for one in cards] == [(0, 0, 90.0), (1, 1, None)]
    assert not findings


def test_a_uuid_with_blanks_joins_outputs_without_numbers_in_common() -> None:
    uuid = "E0F4EE64 802061B1 6A691492"
    cards, _ = joined([(card(card=2, device=0, uuid=uuid),), (card(logical=7, uuid=uuid, temperature=40.0),)])
    assert len(cards) == 1
    assert (cards[0].card, cards[0].logical, cards[0].temperature) == (2, 7, 40.0)


def test_two_chips_at_one_address_stay_two() -> None:
    bus = "0000:81:00.0"
    pair = (card(card=4, device=0, bus=bus, uuid="A"), card(card=4, device=1, bus=bus, uuid="B"))
    cards, findings = joined([pair, (card(bus=bus, watts=50.0),)])
    assert len(cards) == 3, "a line with the shared address alone belongs to neither for sure"
    assert [one.watts for one in cards] == [None, None, 50.0]
    assert not findings


def test_an_address_that_is_one_cards_joins() -> None:
    cards, _ = joined([(card(card=0, bus="0000:01:00.0"),), (card(bus="0000:01:00.0", watt_limit=350.0),)])
    assert [(one.card, one.watt_limit) for one in cards] == [(0, 350.0)]


def test_a_uuid_of_two_cards_identifies_neither() -> None:
    cards, findings = joined([(card(card=0, device=0, uuid="same"), card(card=1, device=0, uuid="same"))])
    assert len(cards) == 2
    assert findings[0].kind == "doubtful"
    assert "huawei 0/0 and huawei 1/0" in findings[0].message


def test_contradictions_are_told_and_the_first_is_kept() -> None:
    cards, findings = joined([(card(card=0, memory_total=64 << 30),), (card(card=0, memory_total=32 << 30),)])
    assert cards[0].memory_total == 64 << 30
    assert "memory total" in findings[0].message


def test_a_doubled_block_is_one_card() -> None:
    one = card(card=0, device=0, watts=90.0)
    assert joined([(one, one)]) == ((one,), ())
    cards, findings = joined([(one, card(card=0, device=0, temperature=40.0))])
    assert len(cards) == 1
    cards, findings = joined([(one, card(card=0, device=0, watts=91.0))])
    assert [c.watts for c in cards] == [90.0]
    assert "twice" in findings[0].message


def test_bad_news_is_believed_from_any_output() -> None:
    cards, _ = joined([(card(card=0, health="ok", reason="a"),), (card(card=0, health="bad", reason="b"),)])
    assert (cards[0].health, cards[0].reason) == ("bad", "b")
    cards, _ = joined([(card(card=0, health="bad", reason="b"),), (card(card=0, health="ok", reason="a"),)])
    assert (cards[0].health, cards[0].reason) == ("bad", "b")


def test_cards_of_other_vendors_are_never_one() -> None:
    other = Card(vendor="amd", tool="rocm-smi", card=0, uuid="A")
    assert len(joined([(card(card=0, uuid="A"),), (other,)])[0]) == 2
