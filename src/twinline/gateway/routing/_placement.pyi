# Of csrc/placement.cpp.

from twinline.gateway.routing.station import Station

# Place in the list, tokens held, lateness, seconds to the first token, the least lateness.
Found = tuple[int, int, float, float, float]

def bind(
    station: type[Station], min_prefill: float, detection_seconds: float, holder: float, holder_late: float, /
) -> None: ...
def best(
    lines: list[Station],
    held: list[tuple[int, int]],
    prompt: float,
    output: float,
    movable: bool,
    sticky: bool,
    per_ttft: float,
    now: float,
    rule: int,
    mean_price: float,
    /,
) -> Found | None: ...
