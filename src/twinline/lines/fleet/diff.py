"""What would change if a fleet became another: pure, from what is wanted now and what is wanted next.

Owns which fields of a line need its engine started anew. Must not know processes; `controller` carries changes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import msgspec

from twinline.lines.fleet.file import Fleet
from twinline.lines.http import Target
from twinline.lines.roster import Roster
from twinline.lines.spec import LineSpec

Kind = Literal["add", "remove", "restart", "scale", "update"]
# What the control side and the gateways read themselves; every other field is on the engine's command line or in how
# it is spoken to.
IN_PLACE = frozenset(
    "price_per_hour price_per_million_input price_per_million_output weight lacks weights_class start_seconds".split()
)


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `what` is `line`, `model` or `gateway`; `fields` are (name, old, new), for `restart` and `update`.

    restart: engines are replaced one by one. scale: replicas are added or ended. update: nothing is started or ended.
    """

    kind: Kind
    what: Literal["line", "model", "gateway"]
    name: str
    fields: tuple[tuple[str, Any, Any], ...] = ()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        told = [{"field": name, "old": _shown(name, old), "new": _shown(name, new)} for name, old, new in self.fields]
        return {"change": self.kind, "what": self.what, "name": self.name, "fields": told}


def diff(old: Fleet | None, new: Fleet) -> tuple[Change, ...]:
    """Models first, then lines, then the gateway; empty when nothing would change."""
    return tuple(_changes(old, new))


def _changes(old: Fleet | None, new: Fleet) -> Iterator[Change]:
    models = {} if old is None else {model.name: model for model in old.models}
    lines = {} if old is None else {spec.name: spec for spec in old.lines}
    for model in new.models:
        was = models.pop(model.name, None)
        if was is None:
            yield Change("add", "model", model.name)
        elif told := _told(msgspec.structs.asdict(was), msgspec.structs.asdict(model)):
            yield Change("update", "model", model.name, told)
    yield from (Change("remove", "model", name) for name in models)
    for spec in new.lines:
        before = lines.pop(spec.name, None)
        if before is None:
            yield Change("add", "line", spec.name)
        else:
            yield from _line(before, spec)
    yield from (Change("remove", "line", name) for name in lines)
    if old is None:
        yield Change("add", "gateway", f"{new.gateway.host}:{new.gateway.port}")
    elif told := _told(msgspec.structs.asdict(old.gateway), msgspec.structs.asdict(new.gateway)):
        yield Change("restart", "gateway", f"{new.gateway.host}:{new.gateway.port}", told)


def _line(old: LineSpec, new: LineSpec) -> Iterator[Change]:
    told = _told(_fields(old), _fields(new))
    kept = _in_place(old) & _in_place(new)
    restart = tuple(field for field in told if field[0] not in kept | {"replicas"})
    in_place = tuple(field for field in told if field[0] in kept)
    if restart:
        yield Change("restart", "line", new.name, restart)
    if in_place:
        yield Change("update", "line", new.name, in_place)
    if scaled := tuple(field for field in told if field[0] == "replicas"):
        yield Change("scale", "line", new.name, scaled)


def engine_fields(spec: LineSpec) -> dict[str, Any]:
    """The fields that an engine is started from: engines with equal ones are the same."""
    others = _in_place(spec) | {"replicas"}
    return {name: _plain(value) for name, value in _fields(spec).items() if name not in others}


def _in_place(spec: LineSpec) -> frozenset[str]:
    """What is started elsewhere is only called by its chip."""
    return IN_PLACE | {"chip"} if spec.url is not None else IN_PLACE


def fleet_of(roster: Roster) -> Fleet:
    """What a roster was written for, as far as it says: no more than `diff` compares."""
    specs = {entry.spec.name: entry.spec for entry in roster.entries}
    return Fleet(name=roster.fleet, models=roster.models, lines=tuple(specs.values()), gateway=roster.gateway)


def _fields(spec: LineSpec) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in fields(spec)}


def _told(old: dict[str, Any], new: dict[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    return tuple((name, old[name], new[name]) for name in new if _plain(old[name]) != _plain(new[name]))


def _shown(field: str, value: Any) -> Any:
    return Target.shown(value) if field == "url" and value else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return list(value) if isinstance(value, tuple) else msgspec.to_builtins(value)
