"""What changes between two fleets, and which changes start an engine anew."""

from __future__ import annotations

from dataclasses import fields, replace

import msgspec
from tests.lines.fleet.harness import MODEL, fleet, line

from twinline.lines import roster
from twinline.lines.fleet.diff import IN_PLACE, diff, engine_fields, fleet_of
from twinline.lines.roster import Entry, GatewaySpec, Roster
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState


def told(old, new) -> list[tuple[str, str, str, tuple[str, ...]]]:  # type: ignore[no-untyped-def]
    return [(c.kind, c.what, c.name, tuple(name for name, _, _ in c.fields)) for c in diff(old, new)]


def test_from_nothing_all_is_added_and_to_the_same_nothing_changes() -> None:
    wanted = fleet(line(), line("b"))
    assert told(None, wanted) == [
        ("add", "model", "m", ()),
        ("add", "line", "a", ()),
        ("add", "line", "b", ()),
        ("add", "gateway", "127.0.0.1:1", ()),
    ]
    assert told(wanted, wanted) == []


def test_each_change_is_named_with_its_fields() -> None:
    old = fleet(line(), line("b"), line("c"), line("d", replicas=1))
    new = fleet(
        line(options={"x": 1}, price_per_hour=2.0),
        line("b", weight=2.0, lacks=frozenset({"tools"})),
        line("d", replicas=3),
        line("e"),
        gateway=GatewaySpec(port=2),
    )
    assert told(old, new) == [
        ("restart", "line", "a", ("options",)),
        ("update", "line", "a", ("price_per_hour",)),
        ("update", "line", "b", ("weight", "lacks")),
        ("scale", "line", "d", ("replicas",)),
        ("add", "line", "e", ()),
        ("remove", "line", "c", ()),
        ("restart", "gateway", "127.0.0.1:2", ("port",)),
    ]
    other = replace(
        old, models=(msgspec.structs.replace(MODEL, policy="fastest"), msgspec.structs.replace(MODEL, name="n"))
    )
    assert told(old, other) == [("update", "model", "m", ("policy",)), ("add", "model", "n", ())]
    assert told(other, old)[-1] == ("remove", "model", "n", ())


def test_a_chip_is_only_a_name_where_no_engine_is_started() -> None:
    assert told(fleet(line(url="http://b:1", chip="x")), fleet(line(url="http://b:1", chip="y"))) == [
        ("update", "line", "a", ("chip",))
    ]
    assert told(fleet(line(chip="x")), fleet(line(chip="y"))) == [("restart", "line", "a", ("chip",))]


def test_a_list_is_told_as_a_list() -> None:
    """So that `diff`, which has the values, and `apply`, which has them from JSON, say the same."""
    (change,) = diff(fleet(line(cards=())), fleet(line(cards=(0, 1))))
    assert change.plain()["fields"] == [{"field": "cards", "old": [], "new": [0, 1]}]


def test_the_path_of_an_address_may_be_a_secret_and_is_not_told() -> None:
    (change,) = diff(fleet(line(url="https://a:1/s3cret/v1")), fleet(line(url="https://b:2")))
    assert change.plain()["fields"] == [{"field": "url", "old": "https://a:1/...", "new": "https://b:2"}]
    (change,) = diff(fleet(line(url="http://[::1]:1")), fleet(line(url="http://[::1]:2/v1")))
    assert change.plain()["fields"] == [{"field": "url", "old": "http://[::1]:1", "new": "http://[::1]:2/..."}]


def test_every_field_of_a_line_is_either_the_engines_or_in_place() -> None:
    names = {field.name for field in fields(LineSpec)}
    assert names > IN_PLACE
    assert set(engine_fields(line())) == names - IN_PLACE - {"replicas"}


def test_a_roster_that_was_written_and_read_is_no_change(twinline_home) -> None:  # type: ignore[no-untyped-def]
    wanted = fleet(line(options={"a": [1, 2]}, cards=(0, 1), lacks=frozenset({"tools", "grammar"}), env={"X": "1"}))
    entries = tuple(Entry(name=s.name, spec=s, state=LineState.SERVING, reason="", url=None) for s in wanted.lines)
    made = Roster(fleet="f", generation=1, gateway=wanted.gateway, models=wanted.models, entries=entries)
    roster.write(twinline_home, made)
    assert told(fleet_of(roster.read(twinline_home)), wanted) == []
