"""What a line is, in routing's words, and in a person's: why it is not asked, or cannot be.

Owns these words. Must not know who waits or how a line is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twinline.gateway.errors import ApiError, beyond, no_line, unfit
from twinline.gateway.routing import Ask, Traits
from twinline.lines.circuit import Circuit
from twinline.lines.line import Line

# Features (`lines/drivers/driver.py`) and the fields of requests that ask for them.
FIELDS = {
    "tool_choice": "tool_choice",
    "tools": "tools",
    "grammar": "response_format",
    "patterns": "structured_outputs",
    "logprobs": "logprobs",
    "logit_bias": "logit_bias",
    "dimensions": "dimensions",
}


def why_not(line: Line, circuit: Circuit) -> str:
    """Why a line is not asked now."""
    if line.state.takes_requests and not circuit.closed:
        return f"line {line.name} is not asked for now: {circuit.reason}"
    return f"line {line.name} is {line.state}: {line.life.reason}"


def named(name: str, wanted: str) -> bool:
    """`wanted` is a line's name, or the name of its replicas (`line#2`)."""
    return name == wanted or name.partition("#")[0] == wanted


def able(line: Line, ask: Ask) -> bool:
    """Whether the line can take it at all."""
    return ask.needs <= line.features and (line.context is None or ask.context <= line.context)


def unfit_for(model: str, ask: Ask, lines: Iterable[Line]) -> ApiError:
    """Why none of these lines can take it, whatever the load."""
    why = []
    lacked: set[str] = set()
    for line in lines:
        lacking = sorted(ask.needs - line.features)
        lacked.update(lacking)
        if lacking:
            why.append(f"line {line.name} lacks {', '.join(lacking)}")
        elif line.context is not None and ask.context > line.context:
            told = beyond(ask.prompt_tokens, ask.context - ask.prompt_tokens, line.context)
            why.append(f"line {line.name} has a context of {line.context} tokens: {told}")
    return unfit(model, why, next((FIELDS[need] for need in sorted(lacked) if need in FIELDS), None))


def why_none(model: str, ask: Ask, pinned: str | None, lines: list[Line], circuits: Mapping[str, Circuit]) -> ApiError:
    """Why no line that is up can take it, of `lines` that the client may have: for good, or because those that could
    are down."""
    if not lines and pinned is not None:
        return ApiError(404, f"The model `{model}` has no line `{pinned}`.", code="line_not_found")
    fit = [line for line in lines if able(line, ask)]
    if lines and not fit:
        return unfit_for(model, ask, lines)
    return no_line(model, [why_not(line, circuits[line.name]) for line in fit])


def traits_of(line: Line) -> Traits:
    """What routing has to know of a line."""
    spec = line.spec
    return Traits(
        name=line.name,
        features=line.features,
        context=line.context,
        price_per_hour=spec.price_per_hour,
        price_per_million_input=spec.price_per_million_input,
        price_per_million_output=spec.price_per_million_output,
        slots=spec.slots,
        weight=spec.weight,
    )
