# Of csrc/books.cpp.

from collections.abc import Callable

from twinline.gateway.routing.fit import Fit
from twinline.gateway.routing.placement import Placement
from twinline.gateway.routing.station import Station

def bind(
    fit: type[Fit],
    station: type[Station],
    placement: type[Placement],
    constants: tuple[float, ...],
    definitions: tuple[Callable[..., None], ...],
    /,
) -> tuple[Callable[..., None], ...]: ...
