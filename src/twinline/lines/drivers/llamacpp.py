"""llama.cpp's server: its command line, its metrics, and its own `/completion` in token ids.

Owns what is peculiar to it, all recorded from its version 0.5.0-dev (tests/lines/recorded/llamacpp):

- A stream leaves out every token after which the text ends inside a character. `tokens_predicted` counts them, so the
  gap is seen, and the tokens are put back from the bytes of the text that follows (pieces.py).
- Progress events hold a token 0 that was never generated.
- Frequency and presence penalties count the prompt too.
- There are no stop token ids beside the model's own end tokens, no min_tokens, no prompt log-probabilities and no
  `[DONE]`.

Log-probabilities are not offered: those of the tokens left out never come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from twinline.lines.drivers.driver import Command, EngineMetrics, Reader
from twinline.lines.drivers.gguf import metadata
from twinline.lines.drivers.launch import LOOPBACK, OURS, flags, launched, program
from twinline.lines.drivers.pieces import Pieces, pieces
from twinline.lines.drivers.prometheus import totals, whole
from twinline.lines.drivers.resume import resumed
from twinline.lines.drivers.vectors import IdVectors
from twinline.lines.drivers.vllm import bearer, check_weights
from twinline.lines.protocol import LineBroken, TextSource, TokenRequest
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Delta, Usage

ANY_SEED = 0xFFFFFFFF  # asks for a random one; larger seeds lose their high bits without a word
SAMPLERS = ("penalties", "temperature", "top_k", "top_p", "min_p")  # our engine's order; its own puts temperature last
ANSWER_FIELDS = ("stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings")  # else the prompt comes back
SLOTS = 4
# Each stream holds one. Its default is slots + 4, and requests beyond them, /health too, may wait until a stream ends.
HTTP_THREADS = 256
LONGEST_UNASKED = 8192  # tokens of context per slot where a fleet does not say

_encode = msgspec.json.Encoder().encode


class _Progress(msgspec.Struct):
    cache: int = 0


class _Timings(msgspec.Struct):
    cache_n: int | None = None


class _Failure(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Event(msgspec.Struct):
    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    stop_type: str = "none"
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    prompt_progress: _Progress | None = None
    timings: _Timings | None = None
    error: _Failure | None = None


_decode = msgspec.json.Decoder(_Event).decode


class Answer:
    """Reads one answer, and ends it at a stop token of the request, which the engine does not know."""

    def __init__(self, request: TokenRequest, table: Pieces | None) -> None:
        self._stops = frozenset(request.stop_token_ids)
        self._table = table
        self._seen = 0  # tokens that came or were put back
        self._last: int | None = None
        self._cached: int | None = None
        self.leftover = False  # whether the engine still generates, past a stop token of ours

    def __call__(self, payload: bytes) -> Delta | None:
        if self.leftover:
            return None
        event = _decode(payload)
        if event.error is not None:
            code = event.error.code
            raise LineBroken(event.error.message or "the line reported an error", None if code is None else str(code))
        if event.prompt_progress is not None:
            self._cached = event.prompt_progress.cache
            return None
        if event.stop:
            return self._end(event)
        if len(event.tokens) != 1:
            raise ValueError(f"an event with {len(event.tokens)} tokens instead of one")
        token = event.tokens[0]
        tokens = [*self._left_out(event, token), token]
        self._seen += len(tokens)
        self._last = token
        if token in self._stops:
            self.leftover = True
            return Delta(tokens, finish_reason="stop", stop_reason=token, usage=self._usage(event))
        return Delta(tokens)

    def _left_out(self, event: _Event, token: int) -> list[int]:
        count = event.tokens_predicted - self._seen - 1
        if not count:
            return []
        if count < 0:
            raise ValueError(f"token {event.tokens_predicted} came after {self._seen} tokens")
        found = None if self._table is None else self._table.missing(event.content.encode(), token, count)
        if found is None:
            raise LineBroken(
                f"llama.cpp left {count} of its tokens out of the stream, as it does inside a character, and the text "
                f"{event.content!r} does not tell which",
                "tokens_left_out",
            )
        return found

    def _end(self, event: _Event) -> Delta:
        """Tokens left out at the very end are only counted: they ended inside a character, so they have no text."""
        ended = event.stop_type in ("eos", "word")
        whole_answer = event.tokens_predicted == self._seen
        return Delta(
            finish_reason="stop" if ended else "length",
            stop_reason=self._last if ended and whole_answer else None,
            usage=self._usage(event),
        )

    def _usage(self, event: _Event) -> Usage:
        cached = event.timings.cache_n if event.timings is not None else self._cached
        return Usage(event.tokens_evaluated, event.tokens_predicted, cached)


class LlamaCppDialect:
    """`/completion` with an array of token ids."""

    framing: ClassVar[str] = "sse"
    usage_after_finish: ClassVar[bool] = False

    def __init__(self, table: Pieces | None) -> None:
        self._table = table

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        lost = self.carries(request)
        if lost is not None:
            raise ValueError(lost)
        # Penalties over what was generated elsewhere need no bias: the engine counts its prompt.
        asked = resumed(request, penalties=False)
        biases = {int(token): bias for token, bias in asked.logit_bias.items()}
        additive = bool(asked.frequency_penalty or asked.presence_penalty)
        if additive:
            for token, count in Counter(request.prompt).items():  # the part that no other engine counts
                back = asked.frequency_penalty * count + asked.presence_penalty
                biases[token] = biases.get(token, 0.0) + back
        penalised = additive or asked.repetition_penalty != 1.0
        body: dict[str, Any] = {
            "prompt": asked.prompt,
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "cache_prompt": True,
            "response_fields": ANSWER_FIELDS,
            "n_predict": asked.max_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": max(0, asked.top_k),
            "min_p": asked.min_p,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "repeat_penalty": asked.repetition_penalty,
            "repeat_last_n": len(asked.prompt) + asked.max_tokens if penalised else 0,
            "samplers": SAMPLERS,
            "seed": asked.seed % ANY_SEED,
            "ignore_eos": asked.ignore_eos,
            "logit_bias": list(biases.items()),
        }
        return "/completion", _encode(body)

    def reader(self, request: TokenRequest) -> Reader:
        return Answer(request, self._table)

    def carries(self, request: TokenRequest) -> str | None:
        if request.logprobs is not None:
            return "logprobs: llama.cpp's stream does not have them for every token"
        if request.min_tokens > len(request.output_prefix_ids):
            return "min_tokens: llama.cpp has nothing like it"
        return None

    def approximates(self, request: TokenRequest) -> str | None:
        """What an answer here meets only nearly, continued or not, or None."""
        if request.presence_penalty:
            return "presence_penalty: it does not act on tokens that are in the prompt"
        if request.frequency_penalty and request.repetition_penalty != 1.0:
            return "frequency_penalty: the part over the prompt is taken back before repetition_penalty scales it"
        return None


def default_context(file: Path) -> int:
    """Tokens per slot: what the model was trained for, as far as its file says, but not more than LONGEST_UNASKED."""
    try:
        found = metadata(file, lambda name: name.endswith(".context_length"))
    except (OSError, ValueError):
        return LONGEST_UNASKED
    return min([LONGEST_UNASKED, *(length for length in found.values() if isinstance(length, int))])


class LlamaCpp:
    """llama-server."""

    engine: ClassVar[str] = "llamacpp"
    features: ClassVar[frozenset[str]] = frozenset({"token_ids", "logit_bias", "sampling"})
    health_path: ClassVar[str | None] = "/health"
    metrics_path: ClassVar[str | None] = "/metrics"

    def check(self, spec: LineSpec) -> None:
        check_weights(spec, "a GGUF file")
        if spec.weights is None and "tokenizer" not in spec.options:
            raise ValueError(
                "options.tokenizer: name the GGUF file or a folder with tokenizer.json (or give weights): llama.cpp "
                "leaves tokens inside a character out of its streams, and their bytes are needed to put them back"
            )

    def command(self, spec: LineSpec, port: int) -> Command:
        argv = program(spec, ("llama-server",))
        argv += ["--model", str(spec.weights), "--alias", spec.known_as, "--host", LOOPBACK, "--port", str(port)]
        slots = spec.slots or SLOTS
        context = spec.context or default_context(Path(str(spec.weights)))
        derived = {
            # Each slot has its own room: left to itself it shares one, and breaks all answers when that is full.
            "parallel": slots,
            "ctx-size": slots * context,
            "embeddings": True if spec.embeds else None,
            # A text that is pooled has to be in one batch.
            "batch-size": context if spec.embeds else None,
            "ubatch-size": context if spec.embeds else None,
            "threads-http": HTTP_THREADS,
            "metrics": True,
            "offline": True,
            "ui": False,
            "slots": False,  # it shows prompts
        }
        return launched(spec, port, argv + flags(spec, derived, ours=OURS | {"tokenizer"}), {})

    def dialect(self, spec: LineSpec) -> LlamaCppDialect:
        """Reads the table of tokens once per file. A file that is not on this machine leaves the dialect without it."""
        where = spec.options.get("tokenizer") or spec.weights
        try:
            return LlamaCppDialect(pieces(Path(where)) if where else None)
        except OSError:
            return LlamaCppDialect(None)

    def vectors(self, spec: LineSpec) -> IdVectors:
        return IdVectors()

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return bearer(spec, env)

    def metrics(self, body: bytes) -> EngineMetrics:
        """The engine counts a prompt's cached tokens apart; vLLM's meaning holds both. It tells no KV use."""
        sums = totals(body)
        computed = whole(sums, "llamacpp:prompt_tokens_total")
        cached = whole(sums, "llamacpp:prompt_tokens_cached_total")
        return EngineMetrics(
            running=whole(sums, "llamacpp:requests_processing"),
            waiting=whole(sums, "llamacpp:requests_deferred"),
            kv_usage=None,
            prompt_tokens=None if computed is None else computed + (cached or 0),
            generation_tokens=whole(sums, "llamacpp:tokens_predicted_total"),
            progress=sums.get("llamacpp:n_decode_total"),
        )

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        meta = ((models.get("data") or [{}])[0]).get("meta") or {}
        found = {"max_model_len": meta.get("n_ctx"), "vocab_size": meta.get("n_vocab")}
        return {name: value for name, value in found.items() if isinstance(value, int)}
