"""What a choice brings along and what it leaves behind: the claim by which it waits, what each line is asked and did.

Owns the records, the request as one line gets it, and the reckoning of a cost. Must not know how a choice goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.gateway.routing import Ask, Placement, Station
from twinline.lines.line import Line
from twinline.lines.protocol import TokenRequest, VectorRequest
from twinline.lines.wire import Usage

HELD = frozenset({"grammar", "patterns", "tool_choice"})  # features of an answer that is held to a grammar


class Claim(msgspec.Struct, frozen=True, gc=False):
    """On whose behalf a request waits: its key, and its place among others (a higher `priority` first)."""

    key: str = ""
    priority: int = 0
    weight: float = 1.0


class Segment(msgspec.Struct, eq=False):
    """What one line did for the choice. `waste` are tokens prefilled again because the answer moved there.

    `queued` is how long the choice waited for its first line; `left` is why it left this one (`reasons.py`), empty
    while it has not; `usage` is what the line itself counted.
    """

    line: Line
    placement: Placement
    began: float
    tokens_before: int
    waste: int = 0
    queued: float = 0.0
    left: str = ""
    first: float = 0.0  # arrival of its first token
    seconds: float = 0.0
    prompt_tokens: int = 0  # of the prompt, where it counts
    tokens: int = 0
    cached: int | None = None
    usage: Usage | None = None
    last: float = 0.0  # arrival of its latest token
    longest_gap: float = 0.0  # seconds between two arrivals
    deltas: int = 0
    cost: float = 0.0

    def close(self, made: int, prompt_tokens: int) -> None:
        """Reckons what it took when it is over: `made` tokens, after a prompt that counts here or is 0.

        What was prefilled again costs the tenant nothing.
        """
        self.seconds = time.monotonic() - self.began
        self.tokens, self.prompt_tokens = made, prompt_tokens
        if not self.last:  # it gave nothing: as far as anybody knows it did nothing
            self.waste = 0
        placement = self.placement
        self.cost = cost_of(placement.station, placement.company, prompt_tokens, made, self.cached or 0)


def answered(segments: Sequence[Segment]) -> Segment | None:
    """The first that gave anything; of all segments of a choice, the one where its prompt counts."""
    return next((segment for segment in segments if segment.last), None)


def cost_of(station: Station, streams: float, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
    """The line's price for the time that the tokens take of it, at the speeds it has shown: prefill alone, a decode
    step shared by the `streams` in it; and its price per token, if it has one.
    """
    traits = station.traits
    fresh = max(0, prompt_tokens - cached_tokens)
    busy = fresh * station.prefill.slope + output_tokens * station.step.at(streams) / streams
    tokens = prompt_tokens * traits.price_per_million_input + output_tokens * traits.price_per_million_output
    return busy * traits.price_per_hour / 3600 + tokens / 1e6


def asked_of(
    line: Line, request: TokenRequest, attempt: int, journal: Sequence[int], deadline: float | None, now: float
) -> TokenRequest:
    """The request as the `attempt`th line gets it, which goes on after the tokens in `journal`.

    `deadline` is given where some of the request's time is gone.
    """
    limit = line.context
    fits = limit is None or len(request.prompt) + request.max_tokens <= limit
    if fits and attempt == 1 and deadline is None and line.model == request.model:  # nearly always
        return request
    changes: dict[str, Any] = {}
    if line.model != request.model:
        changes["model"] = line.model
    if isinstance(request, VectorRequest):
        limit = None  # its texts share no context, and nothing is generated after them
    if limit is not None and len(request.prompt) + request.max_tokens > limit:
        changes["max_tokens"] = limit - len(request.prompt)  # the client gave no limit: all that fits
    if attempt > 1:
        changes["request_id"] = f"{request.request_id}-{attempt}"
        changes["output_prefix_ids"] = list(journal)
        if journal and request.prompt_logprobs is not None:
            changes["prompt_logprobs"] = None  # they came before the first token
    if deadline is not None:
        changes["timeout_s"] = max(0.001, deadline - now)
    return msgspec.structs.replace(request, **changes) if changes else request


def resumed(ask: Ask, prompt_tokens: int, journal_tokens: int, keys: Sequence[int]) -> Ask:
    """What an answer needs of a line that goes on after so many tokens of it; `keys` are of prompt and journal."""
    return Ask(
        prompt_tokens=prompt_tokens + journal_tokens,
        keys=keys,
        output_tokens=max(1, ask.output_tokens - journal_tokens),
        # A grammar can be taken up in its middle only where what was said before counts as the line's own.
        needs=(ask.needs | ({"token_ids", "exact"} if ask.needs & HELD else {"token_ids"})) - {"prompt_logprobs"},
        context=max(ask.context, prompt_tokens + journal_tokens + 1),
        key=ask.key,
        named=ask.named,
    )
