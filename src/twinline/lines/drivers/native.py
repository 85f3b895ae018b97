"""The native engine: its worker's command line, and the line protocol itself (docs/line-protocol.md).

Owns nothing that another engine would have to share but the reader of the protocol's chunks. Must not import the
engine: the worker is another process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from twinline.facts.pooling import MODULES, read_pooling
from twinline.facts.weight_form import PLAIN, read_weight_form, read_weights
from twinline.lines.cards import device, shown
from twinline.lines.drivers.driver import Command, EngineMetrics, Reader
from twinline.lines.drivers.vectors import IdVectors
from twinline.lines.protocol import LineBroken, TextSource, TokenRequest
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Chunk, Delta, to_delta, to_usage

# vLLM writes log-probabilities under token texts, which two ids may share, unless it is asked for ids.
STREAMED = (
    b'{"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true,"return_tokens_as_token_ids":true,'
)
# Huge pages for the worker's large allocations, by the C library and by PyTorch; both must be asked before the start.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
OPTIONS = frozenset(
    "dtype weights head_weights device threads kv_tokens page_size max_model_len max_running max_waiting "
    "max_tokens_per_step speculation draft_depth strict_ops log_level".split()
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Chunk).decode
_decode_many = msgspec.json.Decoder(list[Chunk]).decode
DONE = b"[DONE]"


def read_chunk(payload: bytes) -> Delta:
    """One chunk of the line protocol. Raises LineBroken for an in-band error, DecodeError or ValueError."""
    chunk = _decode(payload)
    if chunk.error is not None:
        code = chunk.error.code
        raise LineBroken(chunk.error.message or "the line reported an error", None if code is None else str(code))
    return to_delta(chunk)


def read_plain(payloads: list[bytes]) -> tuple[Delta | None, list[bytes]]:
    """Many events as one Delta, and the payloads that are left: `[DONE]`, or all of them if any is not plain.

    Plain are tokens, those of the prompt, a finish reason and usage. The others are for `read_chunk`, one by one.
    """
    left = payloads[-1:] if payloads[-1] == DONE else []
    plain = payloads[:-1] if left else payloads
    try:
        chunks = _decode_many(b"[" + b",".join(plain) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, payloads
    if len(chunks) != len(plain):  # two broken events that make a whole one
        return None, payloads
    tokens: list[int] = []
    prompt = finish = stop = usage = None
    for chunk in chunks:
        if chunk.error is not None or len(chunk.choices) > 1:
            return None, payloads
        if chunk.usage is not None:
            usage = to_usage(chunk.usage)
        for choice in chunk.choices:
            if choice.logprobs is not None or choice.prompt_logprobs is not None:
                return None, payloads
            if prompt is None:
                prompt = choice.prompt_token_ids
            if choice.token_ids:
                tokens += choice.token_ids
            if choice.finish_reason is not None:
                finish = choice.finish_reason
            if choice.stop_reason is not None:
                stop = choice.stop_reason
    return Delta(tokens, None, prompt, None, finish, stop, usage), left


class Protocol:
    """The line protocol. A continuation is exact: the worker counts the prefix as its own output."""

    framing: ClassVar[str] = "sse"
    usage_after_finish: ClassVar[bool] = True

    def encode(self, request: TokenRequest, text: TextSource | None) -> tuple[str, bytes]:
        return "/v1/completions", STREAMED + _encode(request)[1:]

    def reader(self, request: TokenRequest) -> Reader:
        return read_chunk

    def carries(self, request: TokenRequest) -> str | None:
        return None

    def approximates(self, request: TokenRequest) -> str | None:
        return None


def _weights(spec: LineSpec) -> dict[str, Any]:
    """The line's options, with `precision` as the option that it stands for: a dtype, or a form of weights.

    Raises ValueError for what the engine has not, and for options that contradict each other.
    """
    options = dict(spec.options)
    form, dtype = read_weight_form(spec.precision, "precision")
    unsaid = form == PLAIN and spec.precision.strip().lower() != str(PLAIN)
    for option, value in (("dtype", dtype), ("weights", None if unsaid else str(form))):
        if value is not None and str(options.setdefault(option, value)) != value:
            raise ValueError(f"precision: {spec.precision} and options.{option} {options[option]} contradict; keep one")
    read_weights(*(str(options.get(option, "auto")) for option in ("dtype", "weights", "head_weights")))
    return options


def _check_card(spec: LineSpec) -> None:
    """Raises ValueError for a device whose number is that of a card among all, while the worker sees one."""
    number = str(spec.options.get("device", "")).partition(":")[2]
    if shown(spec) and number.isdigit() and int(number):
        raise ValueError(f"options.device: the engine sees card {spec.cards[0]} alone, as number 0; leave numbers out")


class Native:
    """Our own engine's worker."""

    engine: ClassVar[str] = "native"
    features: ClassVar[frozenset[str]] = frozenset(
        {"token_ids", "exact", "logprobs", "prompt_logprobs", "logit_bias", "sampling", "grammar", "patterns"}
    )
    health_path: ClassVar[str | None] = "/health"
    metrics_path: ClassVar[str | None] = "/health"

    def check(self, spec: LineSpec) -> None:
        if spec.url is None and spec.weights is None:
            raise ValueError("weights: a native line needs the model folder that it loads")
        if spec.container is not None:
            raise ValueError("container: the native engine runs from this installation, not from an image")
        for name in spec.options:
            if name not in OPTIONS:
                raise ValueError(
                    f"options: the native engine has no option {name!r}; it has {', '.join(sorted(OPTIONS))}"
                )
        _weights(spec)
        _check_card(spec)
        if spec.url is None and spec.folder is not None:
            self._check_pooling(spec, spec.folder)

    def _check_pooling(self, spec: LineSpec, folder: Path) -> None:
        pools = read_pooling(folder) is not None
        if spec.embeds and not pools:
            raise ValueError(
                f"embeds: {folder} has no {MODULES}, so nothing says how its model's vectors are made; add it and "
                "1_Pooling/config.json as sentence-transformers writes them"
            )
        if pools and not spec.embeds:
            raise ValueError(
                f"embeds: {folder} has {MODULES}: the native engine gives its vectors and generates nothing"
            )

    def command(self, spec: LineSpec, port: int) -> Command:
        argv = [sys.executable, "-m", "twinline.engine.worker", "--model", str(spec.folder), "--name", spec.known_as]
        argv += ["--host", "127.0.0.1", "--port", str(port)]
        options = _weights(spec)
        if spec.context is not None:
            options.setdefault("max_model_len", spec.context)
        if spec.slots is not None:
            options.setdefault("max_running", spec.slots)
        if (named := device(spec)) is not None:
            options.setdefault("device", named)  # it shall not fall back to the CPU
        for name, value in options.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                argv.append(flag)
            elif value is not False and value is not None:
                argv += [flag, str(value)]
        return Command(argv, HUGE_PAGES)

    def dialect(self, spec: LineSpec) -> Protocol:
        return Protocol()

    def vectors(self, spec: LineSpec) -> IdVectors:
        return IdVectors(named=True, timed=True, counted=True)

    def headers(self, spec: LineSpec, env: Mapping[str, str]) -> Mapping[str, str]:
        return {}

    def metrics(self, body: bytes) -> EngineMetrics:
        """The worker's health holds its counters of progress."""
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return EngineMetrics()
        steps, seconds = said.get("steps"), said.get("grammar_seconds")
        progress = steps + seconds if isinstance(steps, int) and isinstance(seconds, int) else steps
        tokens = said.get("tokens_generated")
        return EngineMetrics(said.get("running"), said.get("waiting"), None, None, tokens, progress)

    def facts(self, models: Mapping[str, Any]) -> Mapping[str, Any]:
        listed = (models.get("data") or [{}])[0]
        told = ("max_model_len", "vocab_size", "lacks", "embeds", "simulated")
        return {name: listed[name] for name in told if name in listed}
