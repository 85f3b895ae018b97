"""What an earlier control side left in files, also where a crash or a disk left less than all of it.

Owns how that is read and mended. Must not know what is done with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from twinline.lines import roster
from twinline.lines.fleet import held
from twinline.lines.fleet.file import Fleet
from twinline.lines.fleet.home import state_files
from twinline.lines.roster import Entry, Roster
from twinline.lines.state import LineState


@dataclass(frozen=True)
class Left:
    """`by_hand` are the lines that were drained by hand; `mended` says, for people, which file could not be read."""

    roster: Roster
    by_hand: frozenset[str]
    mended: tuple[str, ...] = ()


def left(directory: Path, fleet: Fleet) -> Left:
    """Without a roster that can be read, what has a state file counts as started for what `fleet` says of it now."""
    mended = []
    try:
        old = roster.read(directory)
    except FileNotFoundError:
        old = _guessed(directory, fleet)
    except (OSError, msgspec.MsgspecError) as error:
        old = _guessed(directory, fleet)
        mended.append(f"{roster.ROSTER} cannot be read ({error}): what runs is taken up as the fleet file says")
    if held.mended(directory, [entry.name for entry in old.entries if entry.reason == held.BY_HAND]):
        mended.append(f"{held.HELD} cannot be read: the roster says which lines were drained by hand")
    return Left(old, held.read(directory), tuple(mended))


def _guessed(directory: Path, fleet: Fleet) -> Roster:
    names = [path.stem for path in state_files(directory)]
    specs = {name: spec for name in names if (spec := fleet.line(name.partition("#")[0])) is not None}
    entries = (Entry(name=name, spec=spec, state=LineState.STOPPED, reason="") for name, spec in specs.items())
    gateway, models = fleet.gateway, fleet.models
    return Roster(fleet=fleet.name, generation=0, gateway=gateway, models=models, entries=tuple(entries))
