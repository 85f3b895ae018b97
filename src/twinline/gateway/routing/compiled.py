"""The methods by which a request passes through the books, compiled where the extension was built.

Owns which they are. `fit.py`, `station.py` and `placement.py` define them; csrc/books.cpp has the same arithmetic in
the same order and leaves to Python what it does not know, such as a book of anything but floats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from twinline.gateway.routing import fit, placement, station
from twinline.gateway.routing.fit import Fit
from twinline.gateway.routing.placement import Placement
from twinline.gateway.routing.station import Station

_Method = tuple[type, str]
DEFINITIONS: dict[_Method, Callable[..., None]] = {
    (Fit, "learn"): Fit.learn,
    (Station, "derive"): Station.derive,
    (Station, "sent"): Station.sent,
    (Placement, "first_token"): Placement.first_token,
    (Placement, "end"): Placement.end,
}
COMPILED: dict[_Method, Callable[..., None]] = {}
_CONSTANTS = (
    fit.MEMORY, fit.RECENT, fit.PRIOR, fit.OUTLIER,
    station.UNKNOWN_SLOTS, station.PREFILL_WEIGHT, station.PREFILL_DELAY, station.READING, station.MOST_BUSY,
    station.BUSY_SECONDS,
    placement.MIN_PREFILL, placement.LEARN_TOKENS, placement.TRUSTED,
)  # fmt: skip


def use(methods: dict[_Method, Any]) -> None:
    """Those of `DEFINITIONS` or `COMPILED`, for all lines of the process."""
    for (owner, name), method in methods.items():
        setattr(owner, name, method)


with contextlib.suppress(ImportError):
    from twinline.gateway.routing._books import bind

    COMPILED.update(
        zip(DEFINITIONS, bind(Fit, Station, Placement, _CONSTANTS, tuple(DEFINITIONS.values())), strict=True)
    )
    use(COMPILED)
