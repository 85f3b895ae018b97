"""What is asked of the lines, and what a line declares of itself.

Owns the two records that go into routing. Must not know how a line is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

NOTHING: frozenset[str] = frozenset()


class Ask(msgspec.Struct, eq=False):
    """One request, or what is left of one that moves: then the prompt is the prompt and all tokens delivered."""

    prompt_tokens: int
    keys: Sequence[int]  # of `block_keys`; empty: nothing is known of the prefix
    output_tokens: int  # expected, not the limit
    movable: bool = True  # False: if the line dies the request is lost (a grammar on a stock engine)
    needs: frozenset[str] = NOTHING
    context: int = 0  # prompt and the most output, in tokens
    key: str = ""  # whose request; for debugging
    named: bool = False  # the client chose the line: no share of the policy `weighted` is touched by it


@dataclass(frozen=True, slots=True)
class Traits:
    """What is declared of a line. Speeds are first guesses only: they are learnt from its first answers."""

    name: str
    features: frozenset[str] = NOTHING
    context: int | None = None  # tokens; None: no limit known
    price_per_hour: float = 0.0  # of the running line
    price_per_million_input: float = 0.0  # of a line that is paid by the token; the same currency
    price_per_million_output: float = 0.0
    slots: int | None = None  # requests it runs at once; None: not known, its queue shows in its first tokens
    weight: float = 1.0
    failures_per_hour: float = 0.01  # before any is seen
    prefill_tokens_per_second: float = 3000.0
    step_seconds: float = 0.03  # one output token of a lone stream
