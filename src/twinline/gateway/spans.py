"""What a trace tells of a request: one server span, and one child for each line that was asked for it.

Owns spans, their names and attributes, and the trace's header to and from the wire. Must not know where spans go. A
span never holds a prompt or an answer. Names of attributes are OpenTelemetry's where it has one (GenAI and HTTP
conventions), else `twinline.*`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from twinline.gateway.access import Visit
from twinline.gateway.exchange import Exchange
from twinline.gateway.logs import told_of
from twinline.gateway.segment import Segment

_CONTEXT = TraceContextTextMapPropagator()  # W3C traceparent and tracestate
_NAMES = {
    "request_id": "twinline.request_id",
    "key": "twinline.key",
    "model": "gen_ai.request.model",
    "lines": "twinline.lines",
    "status": "http.response.status_code",
    "outcome": "twinline.outcome",
    "reason": "error.type",
    "stream": "twinline.stream",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "moves": "twinline.moves",
    "queue_seconds": "twinline.queue_seconds",
    "ttft_seconds": "twinline.ttft_seconds",
}
_NO_FAULT = ("", "drained", "full", "deadline")  # why an attempt may end that is no error of its line


class Spans:
    """An observer of `Access`: gives each visit its trace and ends it."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def began(self, exchange: Exchange, visit: Visit) -> None:
        carrier = {name: value for name in _CONTEXT.fields if (value := exchange.header(name)) is not None}
        visit.trace = RequestTrace(self._tracer, _CONTEXT.extract(carrier, Context()))

    def ended(self, exchange: Exchange, visit: Visit) -> None:
        trace = visit.trace
        if trace is None:
            return
        visit.trace = None
        said = told_of(exchange, visit)
        trace.end({_NAMES[name]: value for name, value in said.items() if name in _NAMES and value is not None})


class RequestTrace:
    """One request's spans."""

    def __init__(self, tracer: Tracer, parent: Context) -> None:
        self._tracer = tracer
        self._span = tracer.start_span("request", parent, SpanKind.SERVER)
        self._context = set_span_in_context(self._span, parent)
        self._operation = "request"
        self._choices: list[ChoiceTrace] = []

    def of_choice(self, index: int, operation: str) -> ChoiceTrace:
        """`operation` is `chat`, `text_completion` or `embeddings`."""
        self._operation = operation
        made = ChoiceTrace(self._tracer, self._context, index)
        self._choices.append(made)
        return made

    def end(self, attributes: dict[str, str | int | float | bool]) -> None:
        for choice in self._choices:
            choice.end()
        self._choices.clear()
        if not self._span.is_recording():
            self._span.end()
            return
        model = attributes.get("gen_ai.request.model", "-")
        if self._operation != "request":  # what a client calls a model is no name for a span until it is found
            self._span.update_name(f"{self._operation} {model}")
            attributes["gen_ai.operation.name"] = self._operation
        self._span.set_attributes(attributes)
        if int(attributes.get("http.response.status_code", 0)) >= 500:
            self._span.set_status(Status(StatusCode.ERROR, str(attributes.get("error.type", ""))))
        self._span.end()


class ChoiceTrace:
    """One choice's attempts. `header` is what its present line is sent, as lines of an HTTP head."""

    __slots__ = ("_attempts", "_context", "_index", "_tracer", "header")

    def __init__(self, tracer: Tracer, context: Context, index: int) -> None:
        self._tracer, self._context, self._index = tracer, context, index
        self._attempts: list[tuple[Span, Segment, int]] = []
        self.header = b""

    def placed(self, segments: Sequence[Segment]) -> None:
        """The last of them begins now."""
        segment = segments[-1]
        line = segment.line
        now = time.time_ns()
        span = self._tracer.start_span(f"line {line.name}", self._context, SpanKind.CLIENT, start_time=now)
        if span.is_recording():
            span.set_attributes(
                {
                    "twinline.line.name": line.name,
                    "twinline.line.engine": line.spec.engine,
                    "twinline.line.chip": line.spec.chip,
                    "twinline.choice": self._index,
                    "twinline.attempt": len(segments),
                    "twinline.predicted_ttft_seconds": segment.placement.ttft,
                }
            )
            if len(segments) > 1:
                span.set_attribute("twinline.moved_reason", segments[-2].left)
                span.set_attribute("twinline.tokens_before", segment.tokens_before)
                span.set_attribute("twinline.refilled_tokens", segment.waste)
        self._attempts.append((span, segment, now))
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, set_span_in_context(span, self._context))
        self.header = "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("latin-1")

    def end(self) -> None:
        """Each span ends when its attempt did, which may be long ago."""
        for span, segment, began in self._attempts:
            if span.is_recording():
                span.set_attribute("gen_ai.usage.output_tokens", segment.tokens)
                if segment.cached is not None:
                    span.set_attribute("gen_ai.usage.cache_read.input_tokens", segment.cached)
                if segment.first:
                    span.set_attribute("twinline.ttft_seconds", segment.first - segment.began)
                if segment.left:
                    span.set_attribute("twinline.left", segment.left)
                if segment.left not in _NO_FAULT:
                    span.set_status(Status(StatusCode.ERROR, segment.left))
            span.end(end_time=began + int(segment.seconds * 1e9))
        self._attempts.clear()
