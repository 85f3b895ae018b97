"""What the engine is asked for and how far it has come: sampling parameters, a request, and what it emits.

Owns a request's progress. Knows token ids only: no text, no HTTP, no torch.

A request has progress, not phases: `computed` (tokens whose keys and values are in the cache) chases `known` (prompt
plus output). Prefill is a large gap, decode a gap of one, preemption sets `computed` back to zero, a prefix hit moves
it ahead, and a continuation from another line is a request that begins with some output already known.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from twinline.engine.grammars.constraint import Constraint
    from twinline.engine.pooling import Pool

FinishReason = Literal["stop", "length", "abort", "deadline", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch a filter off.

    `logprobs` and `prompt_logprobs` are how many alternatives to report beside the chosen token (None: report nothing).
    Raises ValueError, naming the field and its range, for a value out of range.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        limits: tuple[tuple[str, float, float], ...] = (
            ("max_tokens", 1, 2**31),
            ("min_tokens", 0, self.max_tokens),
            ("temperature", 0, 100),
            ("top_k", 0, 2**31),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
            ("repetition_penalty", 0.01, 100),
            ("seed", 0, 2**63 - 1),
            ("logprobs", 0, 20),
            ("prompt_logprobs", 0, 20),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value:g}")
        if self.top_p == 0:
            raise ValueError("top_p must be greater than 0")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of the token at a place, its rank (1 is the likeliest), and the likeliest alternatives."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What a request emits after a step: new tokens, and at the end why it ended. `vector`: of a text that is pooled,
    little-endian float32, with its end."""

    request_id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish: FinishReason | None = None
    stop_token: int | None = None
    cached_tokens: int = 0
    error: str | None = None
    vector: bytes | None = None


_arrivals = itertools.count()


@dataclass(slots=True, eq=False)
class Request:
    """One sequence in the engine. `prompt` and `output` are token ids.

    `output` may begin non-empty: tokens generated on another line, which count for penalties, stops and limits.
    `priority`: smaller is served first. `deadline`: `time.monotonic()` seconds, or None. `constraint` holds the output
    to a grammar. With a `pool` nothing is generated: its prompt is a text that becomes a vector.
    """

    id: str
    prompt: list[int]
    params: SamplingParams
    output: list[int] = field(default_factory=list)
    priority: int = 0
    deadline: float | None = None
    constraint: Constraint | None = None
    pool: Pool | None = None
    arrival: int = field(default_factory=lambda: next(_arrivals))
    arrived: float = field(default_factory=time.monotonic)

    computed: int = 0
    pages: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    preemptions: int = 0
    first_token_at: float | None = None
    carried: int = 0  # output tokens that came with the request
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.carried = len(self.output)

    @property
    def guessed(self) -> tuple[int, ...]:
        """Tokens that a sampler is to think of as following the output; see `speculation.ahead`."""
        return ()

    @property
    def every_position(self) -> bool:
        """The states of all of the prompt are wanted, so none of it may come from the prefix cache."""
        wanted = self.pool is not None and self.pool.pooling.every_position
        return wanted or self.params.prompt_logprobs is not None

    @property
    def known(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def remaining(self) -> int:
        """Tokens still to compute; 1 is an ordinary decode."""
        return self.known - self.computed

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids at positions `start` to `end`, across prompt and output."""
        n = len(self.prompt)
        if end <= n:
            return self.prompt[start:end]
        if start >= n:
            return self.output[start - n : end - n]
        return self.prompt[start:] + self.output[: end - n]

    def order(self) -> tuple[int, int]:
        """Sort key: who is served first."""
        return (self.priority, self.arrival)
