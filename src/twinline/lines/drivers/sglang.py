"""SGLang: its server's command line, its metrics, and its own `/generate` in token ids.

**Written from its public source and documentation (state of 2026-07 and 2026-08), not recorded**: it could not be
installed where this was written. Owns what is peculiar to it:

- `/generate` takes `input_ids` and gives `output_ids` in every version; `/v1/completions` has `return_token_ids` only
  since 2026. Events hold all tokens so far, or the new ones alone (`--incremental-streaming-output`); both are read.
- A request that it will not take is answered with 200 and an error inside the stream, as is a full queue.
- Under `ignore_eos` it heeds no stop token ids either.
- Where logits are no numbers it puts an end token in the place of the one it has not, and ends well.
- Noise is a function of seed and position, but only under `--enable-deterministic-inference`; else seeds are ignored.
- Larger priorities come first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from twinline.lines.drivers.driver import Command, EngineMetrics, Reader
from twinline.lines.drivers.launch import LOOPBACK, flags, launched, program
from twinline.lines.drivers.prometheus import totals, whole
from twinline.lines.drivers.resume import approximated, refuse_grammar, resumed
from twinline.lines.drivers.vectors import IdVectors
from twinline.lines.drivers.vllm import bearer, check_weights, dtype, listed_facts
from twinline.lines.protocol import LineBroken, LineRefused, TextSource, TokenRequest
from twinline.lines.refusals import refused_status
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Delta, TokenLogprob, Usage

PROGRAM = ("python3", "-m", "sglang.launch_server")
STRUCTURED = {"json_schema": "json_schema", "regex": "regex", "ebnf": "ebnf", "structural_tag": "structural_tag"}
IMPOSSIBLE = -9999.0  # what vLLM writes where JSON has no infinity
REFUSED = 400  # older versions say no status: they write an error of a request alone into its stream
FULL = 429  # the status of a queue that has no room
OUTPUT_ONLY, WHOLE_PROMPT = -1, 0  # where log-probabilities start

# Counters that move while a request is answered, of which no version before 2026 has both; its totals of tokens grow
# when one ends.
MOVING = ("sglang:realtime_tokens_total", "sglang:inter_token_latency_seconds_count")
FIRST_TOKENS = "sglang:time_to_first_token_seconds_count"
# Its `/health` would compute a token, in the queue behind a long prefill: whether it computes is seen by its counters.
PLAIN_HEALTH = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}

_encode = msgspec.json.Encoder().encode

_Item = TypeVar("_Item")
Entry = tuple[float | None, int, str | None]  # log-probability, token id, text


class _Finish(msgspec.Struct):
    type: str
    matched: int | str | None = None
    message: str = ""
    status_code: int | None = None


class _Meta(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: _Finish | None = None
    output_token_logprobs: list[Entry] | None = None
    output_top_logprobs: list[list[Entry] | None] | None = None
    input_token_logprobs: list[Entry] | None = None
    input_top_logprobs: list[list[Entry] | None] | None = None


class _Failure(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Event(msgspec.Struct):
    output_ids: list[int] | None = None
    meta_info: _Meta = msgspec.field(default_factory=_Meta)
    error: _Failure | None = None


_decode = msgspec.json.Decoder(_Event).decode


class Answer:
    """Reads one answer. `completion_tokens` is the total so far, so the new tokens are the last of `output_ids`."""

    def __init__(self, request: TokenRequest) -> None:
        self._request = request
        self._stops = frozenset(request.stop_token_ids if request.ignore_eos else ())  # those that we have to heed
        self._seen = 0
        self.leftover = False  # whether the engine still generates, past a stop token of ours
        self._prompt_told = request.prompt_logprobs is None or bool(request.output_prefix_ids)

    def __call__(self, payload: bytes) -> Delta | None:
        if self.leftover:
            return None
        event = _decode(payload)
        if event.error is not None:
            code = event.error.code or REFUSED
            raise LineBroken(event.error.message or "the line reported an error", str(code))
        meta = event.meta_info
        finish = meta.finish_reason
        if finish is not None:
            self._check_end(finish)
        fresh = meta.completion_tokens - self._seen if event.output_ids is not None else 0
        tokens = _last(event.output_ids or [], fresh, "output ids")
        self._seen += fresh
        logprobs = prompt_logprobs = None
        if self._request.logprobs is not None and fresh:
            own = _last(meta.output_token_logprobs or [], fresh, "log-probabilities")
            none: list[list[Entry] | None] = [None] * fresh
            tops = _last(meta.output_top_logprobs or none, fresh, "alternatives")
            logprobs = [_logprob(entry, top) for entry, top in zip(own, tops, strict=True)]
        if not self._prompt_told and meta.input_token_logprobs:
            self._prompt_told = True
            prompt_logprobs = _prompt(meta)
        delta = Delta(
            tokens,
            logprobs,
            self._request.prompt if prompt_logprobs is not None else None,
            prompt_logprobs,
            None if finish is None else finish.type,
            None if finish is None else finish.matched,
            None if finish is None else Usage(meta.prompt_tokens, meta.completion_tokens, meta.cached_tokens),
        )
        return delta if self._stops.isdisjoint(tokens) else self._stopped(delta, meta)

    def _check_end(self, finish: _Finish) -> None:
        """Raises LineError for an end that is none."""
        if finish.type == "abort":
            message = finish.message or "the engine aborted the request"
            status = None if finish.status_code is None else refused_status(finish.status_code, message)
            if status == FULL and not self._seen:
                raise LineRefused(FULL, message)
            raise LineBroken(message, None if status is None else str(status))
        if isinstance(finish.matched, str):  # no request of ours has stop strings
            raise LineBroken(f"the engine ended the answer at {finish.matched!r}, which nobody asked for")

    def _stopped(self, delta: Delta, meta: _Meta) -> Delta:
        """`delta`, which has a stop token that the engine did not heed, up to that token."""
        kept = next(at for at, token in enumerate(delta.tokens, 1) if token in self._stops)
        count = self._seen - len(delta.tokens) + kept
        self.leftover = delta.finish_reason is None
        stopped: Delta = msgspec.structs.replace(
            delta,
            tokens=delta.tokens[:kept],
            logprobs=None if delta.logprobs is None else delta.logprobs[:kept],
            finish_reason="stop",
            stop_reason=delta.tokens[kept - 1],
            usage=Usage(meta.prompt_tokens, count, meta.cached_tokens),
        )
        return stopped


def _last(items: list[_Item], count: int, what: str) -> list[_Item]:
    if not 0 <= count <= len(items):
        raise ValueError(f"{count} new tokens with {len(items)} {what}")
    return items[len(items) - count :]


def _logprob(entry: Entry, top: list[Entry] | None) -> TokenLogprob:
    ranked = sorted(((token, _finite(value)) for value, token, _ in top or ()), key=lambda pair: -pair[1])
    return TokenLogprob(entry[1], _finite(entry[0]), tuple(ranked))


def _prompt(meta: _Meta) -> list[TokenLogprob | None]:
    """The first token of a prompt has no log-probability."""
    entries = meta.input_token_logprobs or []
    tops = meta.input_top_logprobs or [None] * len(entries)
    if len(tops) != len(entries):
        raise ValueError(f"{len(entries)} prompt log-probabilities with {len(tops)} lists of alternatives")
    pairs = zip(entries, tops, strict=True)
    return [None if i == 0 else _logprob(entry, top) for i, (entry, top) in enumerate(pairs)]


def _finite(value: float | None) -> float:
    return IMPOSSIBLE if value is None else value


class SglangDialect:
    """`/generate`. A continuation is the prompt and what was generated, as a new request."""

    framing: ClassVar[str] = "sse"
    usage_after_finish: ClassVar[bool] = False

    def __init__(self, deterministic: bool, priorities: bool, small_first: bool) -> None:
        self._deterministic, self._priorities, self._small_first = deterministic, priorities, small_first

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        asked = resumed(request, same_noise=self._deterministic)
        sampling: dict[str, Any] = {
            "max_new_tokens": asked.max_tokens,
            "min_new_tokens": asked.min_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k if asked.top_k > 0 else -1,
            "min_p": asked.min_p,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "repetition_penalty": asked.repetition_penalty,
            "stop_token_ids": asked.stop_token_ids,
            "ignore_eos": asked.ignore_eos,
            "no_stop_trim": True,  # the stop token is part of the answer
        }
        if asked.logit_bias:
            sampling["logit_bias"] = asked.logit_bias
        if self._deterministic:
            sampling["sampling_seed"] = asked.seed
        if request.grammar is not None:
            refuse_grammar(request.grammar, bool(request.output_prefix_ids), reasoning=False)
            sampling[STRUCTURED[request.grammar.kind]] = request.grammar.text
        body: dict[str, Any] = {
            "input_ids": asked.prompt,
            "sampling_params": sampling,
            "stream": True,
            "rid": asked.request_id,
        }
        wanted = [count for count in (asked.logprobs, asked.prompt_logprobs) if count is not None]
        if wanted:
            body["return_logprob"] = True
            body["top_logprobs_num"] = max(wanted)
            body["logprob_start_len"] = OUTPUT_ONLY if asked.prompt_logprobs is None else WHOLE_PROMPT
        if self._priorities:
            body["priority"] = asked.priority if self._small_first else -asked.priority
        return "/generate", _encode(body)

    def reader(self, request: TokenRequest) -> Reader:
        return Answer(request)

    def carries(self, request: TokenRequest) -> str | None:
        return None

    def approximates(self, request: TokenRequest) -> str | None:
        """What a continuation here meets only nearly, or None."""
        return approximated(request)


class Sglang:
    """SGLang's server."""

    engine: ClassVar[str] = "sglang"
    features: ClassVar[frozenset[str]] = frozenset(
        {"token_ids", "logprobs", "prompt_logprobs", "logit_bias", "sampling", "grammar", "patterns"}
    )
    health_path: ClassVar[str | None] = "/health"
    metrics_path: ClassVar[str | None] = "/metrics"

    def check(self, spec: LineSpec) -> None:
        check_weights(spec, "a model folder or a model's name")
        dtype(spec)

    def command(self, spec: LineSpec, port: int) -> Command:
        argv = program(spec, PROGRAM)
        argv += ["--model-path", str(spec.weights), "--served-model-name", spec.known_as]
        argv += ["--host", LOOPBACK, "--port", str(port)]
        derived = {
            "dtype": dtype(spec),
            "context-length": spec.context,
            "max-running-requests": spec.slots,
            "tp-size": len(spec.cards) if len(spec.cards) > 1 else None,
            "is-embedding": True if spec.embeds else None,
            "enable-metrics": True,  # without it there is no /metrics
        }
        return launched(spec, port, argv + flags(spec, derived, negated=False), PLAIN_HEALTH)

    def dialect(self, spec: LineSpec) -> SglangDialect:
        def on(name: str) -> bool:
            return bool(spec.options.get(name, spec.options.get(name.replace("_", "-"))))

        return SglangDialect(
            on("enable_deterministic_inference"),
            on("enable_priority_scheduling"),
            on("schedule_low_priority_values_first"),
        )

    def vectors(self, spec: LineSpec) -> IdVectors:
        return IdVectors()

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return bearer(spec, env)

    def metrics(self, body: bytes) -> EngineMetrics:
        """It counts no steps; the progress is what moves between a request's first token and its last, some of it only
        every few dozen steps. Of a version that has nothing of the kind it is not known."""
        sums = totals(body)
        moving = [sums[name] for name in MOVING if name in sums]
        return EngineMetrics(
            running=whole(sums, "sglang:num_running_reqs"),
            waiting=whole(sums, "sglang:num_queue_reqs"),
            kv_usage=sums.get("sglang:token_usage"),
            prompt_tokens=whole(sums, "sglang:prompt_tokens_total"),
            generation_tokens=whole(sums, "sglang:generation_tokens_total"),
            progress=sum(moving) + sums.get(FIRST_TOKENS, 0.0) if moving else None,
        )

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        return listed_facts(models)
