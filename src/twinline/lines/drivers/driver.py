"""What the house asks of an engine: how it is started and watched, and how it is spoken to.

Owns the contract alone. A driver is stateless; one object serves all lines of its engine. What two engines share is a
function in the module of one of them, not a parent here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from twinline.lines.protocol import TextSource, TokenRequest
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Delta

if TYPE_CHECKING:
    from twinline.lines.drivers.vectors import VectorDialect

# What a request may need of a line. A driver says what its engine can; a fleet may take from it (`lacks`).
FEATURES: Mapping[str, str] = {
    "token_ids": "takes token ids and gives token ids",
    "exact": "continues an answer as its own: noise, penalties and limits count over the tokens generated elsewhere",
    "logprobs": "log-probabilities of output tokens",
    "prompt_logprobs": "log-probabilities of prompt tokens",
    "logit_bias": "biases by token id",
    "tools": "tool calls",
    "tool_choice": "tool calls where the request wants one, or a certain one",
    "grammar": "structured output by OpenAI's response_format",
    "patterns": "structured output by regular expressions, choices and EBNF grammars too, in vLLM's fields",
    "sampling": "top_k, min_p, repetition_penalty and min_tokens",
    "embeddings": "vectors of texts; a line that gives them gives nothing else",
    "dimensions": "vectors that are shortened by the engine itself, or refused",
}
# What a gateway adds to lines of tokens (`Line.lend`) only where they have this.
RESTS_ON: Mapping[str, str] = {"tool_choice": "patterns"}


@dataclass(frozen=True, slots=True)
class Command:
    """How an engine is started: what runs, and what is added to our environment."""

    argv: Sequence[str]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """An engine's own counts, with vLLM's meanings. None where the engine does not say.

    `progress` is a number that changes while the engine computes anything: busy is told from dead by it.
    """

    running: int | None = None  # requests being computed
    waiting: int | None = None  # requests queued inside the engine
    kv_usage: float | None = None  # share of the KV cache in use, 0 to 1
    prompt_tokens: int | None = None  # since its start
    generation_tokens: int | None = None
    progress: float | None = None


class Reader(Protocol):
    """Reads one answer. Made anew for each request.

    One that has an attribute `leftover` says by it, after a finish reason, that the engine would generate on.
    """

    def __call__(self, payload: bytes) -> Delta | None:
        """One event's payload as a Delta, or None for one that says nothing; `[DONE]` never comes here.

        Raises LineBroken for an in-band error, LineRefused for one in place of an answer that says what a status would
        have, ValueError or msgspec.DecodeError for what is not the dialect's.
        """


class Dialect(Protocol):
    """How requests and answers are written for one engine."""

    # `sse`: payloads are `data:` lines and `[DONE]` ends them. `lines`: each line of the body is a payload.
    framing: ClassVar[str]
    # True: the stream ends with `[DONE]` or an extra chunk after the finish reason that is worth waiting for (usage).
    usage_after_finish: ClassVar[bool]

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        """Path and JSON body. `request.output_prefix_ids` were generated on another line. Raises ValueError."""

    def reader(self, request: TokenRequest) -> Reader: ...

    def carries(self, request: TokenRequest) -> str | None:
        """None if an answer with `request`'s parameters can be continued here; else what would be lost."""

    def approximates(self, request: TokenRequest) -> str | None:
        """What of `request` a continuation here meets only nearly; None if nothing."""


class Driver(Protocol):
    """One kind of engine. `engine` is its name in a fleet file."""

    engine: ClassVar[str]
    features: ClassVar[frozenset[str]]
    health_path: ClassVar[str | None]  # answers 200 once the engine can compute; None: only a request can tell
    metrics_path: ClassVar[str | None]

    def check(self, spec: LineSpec) -> None:
        """Raises ValueError, in one line that names the field, for a spec this engine cannot obey.

        An option that the engine does not know is an error where its options are a closed list; else it is passed on.
        """

    def command(self, spec: LineSpec, port: int) -> Command:
        """How to start it on loopback at `port`. Only for a spec without `url`."""

    def dialect(self, spec: LineSpec) -> Dialect: ...

    def vectors(self, spec: LineSpec) -> VectorDialect | None:
        """How it is asked for vectors, if it can be (`LineSpec.embeds`)."""

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        """Headers of every request, such as a remote's key; `env` is where secrets are looked up. Raises ValueError."""

    def metrics(self, body: bytes) -> EngineMetrics:
        """From the answer to `metrics_path`. What cannot be read is None; never raises."""

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        """From the JSON of `/v1/models`: `max_model_len`, `vocab_size`, as far as the engine says."""
