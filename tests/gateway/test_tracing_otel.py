"""Traces at a collector: what spans tell, that lines get the trace, and that nothing depends on the collector."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.processes import MODEL, Doubles, entry, fleet, until
from tests.lines.line_double import Script

from twinline.gateway import tracing
from twinline.gateway.tracing import set_up, wanted

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the packages of twinline[otel]")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "Xylophones in the attic"
TOKENS = list(range(10, 22))
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class Collector:
    """An OTLP/HTTP collector that keeps what it is sent, decoded with the protocol's own message."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
                request = ExportTraceServiceRequest.FromString(body)
                collector.bodies.append(body)
                for of_resource in request.resource_spans:
                    collector.resources.append({a.key: a.value.string_value for a in of_resource.resource.attributes})
                    for scope in of_resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, request_id: str, children: int) -> tuple[Any, list[Any]]:
        """The span of a request and those of its attempts, in order, once all are here."""

        def found() -> tuple[Any, list[Any]] | None:
            roots = [span for span in self.spans if said(span).get("twinline.request_id") == request_id]
            below = [span for span in self.spans if roots and span.parent_span_id == roots[0].span_id]
            return (roots[0], below) if roots and len(below) == children else None

        root, below = until(found)
        return root, sorted(below, key=lambda span: said(span)["twinline.attempt"])


def said(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@contextmanager
def tapped(url: str) -> Iterator[tuple[str, list[bytes]]]:
    """A way to `url` that keeps what is sent there."""
    sent: list[bytes] = []
    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, sink: socket.socket, kept: list[bytes] | None) -> None:
        try:
            while data := source.recv(65536):
                if kept is not None:
                    kept.append(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            line = socket.create_connection((host, int(port)))
            threading.Thread(target=pass_on, args=(client, line, sent), daemon=True).start()
            threading.Thread(target=pass_on, args=(line, client, None), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", sent
    finally:
        listener.close()


def traceparents(sent: list[bytes]) -> list[str]:
    heads = b"".join(sent).split(b"\r\n")
    return [line.partition(b": ")[2].decode() for line in heads if line.lower().startswith(b"traceparent:")]


def test_a_request_is_one_span_and_each_line_one_below(tiny_folder: Path, collector: Collector) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_RESOURCE_ATTRIBUTES": "deployment=here", **QUICK}
    with Doubles(2) as doubles, fleet(tiny_folder, env) as made:
        one, another = tapped(doubles.urls[0]), tapped(doubles.urls[1])
        with one as (first, sent), another as (second, more):
            made.entries = [entry("first", first, chip="cpu-a"), entry("second", second)]
            made.write()
            gateway = made.start(2)
            for double in doubles.lines:
                double.script = lambda request: (
                    Script(TOKENS) if request["output_prefix_ids"] else Script(TOKENS, fault="reset", fault_after=4)
                )
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=7"}
            with made.client(**headers) as client:
                made.complete(client, prompt=PROMPT, request_id="moved", max_tokens=12, stream=True)
                made.complete(client, request_id="refused", temperature=-1)
            root, (broke, went_on) = collector.of("moved", 2)
            refused, _ = collector.of("refused", 0)
            assert gateway.stop() == 0

    assert (root.trace_id.hex(), root.parent_span_id.hex(), root.kind) == (TRACE, PARENT, 2)
    assert root.name == f"text_completion {MODEL}"
    told = said(root)
    assert told["gen_ai.request.model"] == MODEL and told["gen_ai.usage.output_tokens"] == 12
    assert told["gen_ai.usage.input_tokens"] > 0 and told["http.response.status_code"] == 200
    assert told["twinline.moves"] == 1 and told["twinline.key"] == "-" and told["twinline.ttft_seconds"] > 0
    assert set(told["twinline.lines"].split(",")) == {"first", "second"} and "error.type" not in told

    before, after = said(broke), said(went_on)
    assert {before["twinline.line.name"], after["twinline.line.name"]} == {"first", "second"}
    assert before["twinline.left"] == after["twinline.moved_reason"] == "broken"
    assert (before["gen_ai.usage.output_tokens"], after["gen_ai.usage.output_tokens"]) == (4, 8)
    assert after["twinline.tokens_before"] == 4 and after["twinline.refilled_tokens"] > 4
    assert (broke.kind, broke.status.code, went_on.status.code) == (3, 2, 0)
    assert broke.end_time_unix_nano <= went_on.start_time_unix_nano < went_on.end_time_unix_nano
    assert root.start_time_unix_nano <= broke.start_time_unix_nano

    # Each line was told the span that stands for it.
    told_lines = {value.split("-")[2] for value in traceparents(sent + more)}
    assert told_lines == {broke.span_id.hex(), went_on.span_id.hex()}
    assert all(value.split("-")[1] == TRACE and value.endswith("-01") for value in traceparents(sent + more))
    assert b"tracestate: vendor=7\r\n" in b"".join(sent + more)

    assert said(refused)["error.type"] == "bad_request" and refused.status.code == 0
    assert collector.resources[0]["service.name"] == "twinline-gateway"
    assert collector.resources[0]["service.instance.id"] == "gateway-2"
    assert collector.resources[0]["deployment"] == "here"
    assert not any(b"Xylophones" in body for body in collector.bodies)


def test_a_client_that_leaves_and_one_without_a_trace(tiny_folder: Path, collector: Collector) -> None:
    env = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces", "OTEL_SERVICE_NAME": "door", **QUICK}
    with Doubles(1) as doubles, fleet(tiny_folder, env) as made:
        made.entries = [entry("only", doubles.urls[0])]
        made.write()
        made.start()
        doubles.lines[0].script = lambda request: Script(TOKENS, delay=0.2)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        headers = {"x-request-id": "left", "traceparent": "00-nonsense-01"}
        with made.client(**headers) as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_bytes())
        root, (attempt,) = collector.of("left", 1)
        assert root.name == f"chat {MODEL}" and not root.parent_span_id
        assert said(root)["error.type"] == "client_left" and said(root)["twinline.outcome"] == "aborted"
        assert attempt.trace_id == root.trace_id and attempt.status.code == 0
        assert collector.resources[0]["service.name"] == "door"


def test_the_sampler_is_the_standard_variables(tiny_folder: Path, collector: Collector) -> None:
    """Not sampled: nothing is sent, and the line is told that it need not either."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "parentbased_always_off", **QUICK}
    with Doubles(1) as doubles, tapped(doubles.urls[0]) as (url, sent), fleet(tiny_folder, env) as made:
        made.entries = [entry("only", url)]
        made.write()
        gateway = made.start()
        with made.client() as client:
            assert made.complete(client).status_code == 200
            assert made.complete(client, request_id="asked").status_code == 200
        with made.client(traceparent=f"00-{TRACE}-{PARENT}-01") as client:
            assert made.complete(client, request_id="sampled").status_code == 200
        collector.of("sampled", 1)
        assert gateway.stop() == 0
    assert [span for span in collector.spans if not span.parent_span_id] == []
    sampled = [int(value[-2:], 16) & 1 for value in dict.fromkeys(traceparents(sent))]  # asked again where it closed
    assert sampled == [0, 0, 1]


def test_without_the_variables_lines_are_told_nothing(tiny_folder: Path) -> None:
    with Doubles(1) as doubles, tapped(doubles.urls[0]) as (url, sent), fleet(tiny_folder) as made:
        made.entries = [entry("only", url)]
        made.write()
        made.start()
        with made.client(traceparent=f"00-{TRACE}-{PARENT}-01") as client:
            assert made.complete(client).status_code == 200
    assert sent and not traceparents(sent)


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_dead_collector_holds_nothing_up(tiny_folder: Path, kind: str) -> None:
    """Closed: connections are refused. Silent: they are taken and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if kind == "closed":
            listener.close()
            port = 9  # discard: nobody listens
        else:
            port = listener.getsockname()[1]
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_BSP_MAX_QUEUE_SIZE": "32",
               "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16", **QUICK}  # fmt: skip
        with Doubles(1) as doubles, fleet(tiny_folder, env, access_log=True) as made:
            made.entries = [entry("only", doubles.urls[0])]
            made.write()
            gateway = made.start()
            with made.client() as client:
                answers = [made.complete(client, request_id=f"dead-{n}") for n in range(40)]
            assert {answer.status_code for answer in answers} == {200}
            assert gateway.access("dead-39")["status"] == 200
            assert gateway.stop() == 0  # within its time, though the last spans cannot be sent
            complaints = [record for record in gateway.records() if record["logger"].startswith("opentelemetry")]
            assert len(complaints) <= 1


# Whether there are traces at all.


@pytest.mark.parametrize(
    ("env", "are"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_when_traces_are_wanted(env: dict[str, str], are: bool) -> None:
    assert wanted(env) is are


def test_without_the_packages_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)  # as where it is not installed
    assert set_up(0, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}) is None
    (message,) = [record.getMessage() for record in caplog.records if record.name == tracing.__name__]
    assert "pip install 'twinline[otel]'" in message


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-3", "cannot be set up"),
    ],
)
def test_what_cannot_be_obeyed_is_said_and_the_gateway_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, word: str
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert set_up(0, os.environ) is None
    assert word in caplog.text
