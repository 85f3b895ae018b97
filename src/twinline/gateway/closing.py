"""How an attempt at a choice ends: what it made and what that counts for, and what of a line's last words is taken.

Owns the reckoning at the end of an attempt. Must not know how the choice goes on.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import msgspec

from twinline.gateway.routing import Ask, keys_after
from twinline.gateway.segment import Segment, answered, resumed
from twinline.gateway.transcript import Transcript
from twinline.lines.protocol import TokenRequest
from twinline.lines.wire import Delta, Usage

if TYPE_CHECKING:
    from twinline.gateway.choice import Choice
    from twinline.gateway.supply import Supply

log = logging.getLogger(__name__)

LARGEST_COUNT = 2**31  # tokens
P = ParamSpec("P")


def caught(act: Callable[Concatenate[Choice, P], None]) -> Callable[Concatenate[Choice, P], None]:
    """What others call of a choice: where it raises, whoever called can tell no client of it. The choice is lost."""

    @functools.wraps(act)
    def kept(choice: Choice, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            act(choice, *args, **kwargs)
        except Exception:
            log.exception("the gateway failed at %s", choice.request.request_id)
            choice.lost()

    return kept


def end_attempt(supply: Supply, choice: Choice, *, ok: bool, fault: bool = False) -> None:
    """Closes the choice's latest segment, and tells routing and the supply."""
    segment = choice.segments[-1]
    if segment.line.text_only:
        told = 0 if segment.usage is None else segment.usage.completion_tokens
        made = told or (segment.deltas if choice.begun else 0)  # some engines count nothing, and say so
    else:
        made = len(choice.journal) - segment.tokens_before
    segment.close(made, prompt_of(choice, segment))
    cached = segment.cached if ok else None
    keys: Sequence[int] = ()
    if ok and choice.ask.keys:
        keys = keys_after(choice.ask.keys, choice.request.prompt, choice.journal)
    segment.placement.end(segment.tokens, cached, ok=ok, fault=fault, keys=keys)
    if ok:
        segment.placement.station.saw_gap(segment.longest_gap, segment.deltas - 1)
    supply.ended(choice, segment, ok)


def prompt_of(choice: Choice, segment: Segment) -> int:
    """Prompt tokens that count with it: it is the first that answered, and the choice the first of its prompt."""
    if not choice.leads or segment is not answered(choice.segments):
        return 0
    return choice.prompt_tokens


def wanted_elsewhere(choice: Choice) -> Ask | None:
    """What a line must have to take the choice over as it is now; None where none could: a text goes on from content
    alone."""
    spoken = choice.transcript.spoken
    if choice.begun and spoken is not None:
        return choice.ask if spoken.resumable else None
    return resumed(choice.ask, len(choice.request.prompt), len(choice.journal), ()) if choice.begun else choice.ask


def last_words(transcript: Transcript, request: TokenRequest) -> Delta | None:
    """What a line would have said after the last token, if nothing is left to be made; else None."""
    last = transcript.last_token
    if transcript.tokens >= request.min_tokens and last in request.stop_token_ids:
        return Delta(finish_reason="stop", stop_reason=last)
    return Delta(finish_reason="length") if transcript.tokens >= request.max_tokens else None


def cut_short(delta: Delta, room: int) -> Delta:
    """What the client asked for, of a line that gives more."""
    room = max(0, room)
    logprobs = None if delta.logprobs is None else delta.logprobs[:room]
    cut: Delta = msgspec.structs.replace(
        delta, tokens=delta.tokens[:room], logprobs=logprobs, finish_reason="length", stop_reason=None
    )
    return cut


def sane(usage: Usage) -> bool:
    """Whether a line's counts can be counts at all; others are left out of the books."""
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens or 0)
    return min(counts) >= 0 and max(counts) < LARGEST_COUNT
