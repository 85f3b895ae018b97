"""OpenTelemetry traces, where the standard variables ask for them: whether, to whom, and how the sending ends.

Owns the reading of the `OTEL_*` variables that are not the SDK's own to read. Must not know what a span tells: that is
`spans.py`'s, which is imported only when traces are on, for the packages behind it are an extra (`twinline[otel]`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinline import __version__

if TYPE_CHECKING:
    from twinline.gateway.spans import ChoiceTrace as ChoiceTrace
    from twinline.gateway.spans import RequestTrace as RequestTrace
    from twinline.gateway.spans import Spans

log = logging.getLogger(__name__)

PROTOCOL = "http/protobuf"
CLOSE_SECONDS = 2.0  # how long the last spans may take when the gateway ends
QUIET_SECONDS = 60.0  # between two complaints about a collector that does not answer


class Tracing:
    """What sends spans in the background. `observer` is told of requests."""

    def __init__(self, observer: Spans, provider: Any) -> None:
        self.observer = observer
        self._provider = provider

    def close(self) -> None:
        """Sends what is left; a collector that does not answer is not waited for longer than `CLOSE_SECONDS`."""
        thread = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        thread.start()
        thread.join(CLOSE_SECONDS)


def wanted(env: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces: an endpoint, or `otlp` by name, and nothing that forbids it."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = [name.strip() for name in env.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if exporters:
        return "otlp" in exporters
    return bool(env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def set_up(index: int, env: Mapping[str, str] = os.environ) -> Tracing | None:
    """Traces of gateway `index` of a fleet, or None where nobody asks for them; the log says why if they cannot be."""
    if not wanted(env):
        return None
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or PROTOCOL
    if protocol != PROTOCOL:
        log.error("no traces: they are sent by %s, not %s: set OTEL_EXPORTER_OTLP_PROTOCOL so", PROTOCOL, protocol)
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from twinline.gateway.spans import Spans
    except ImportError as error:
        log.error("no traces: OpenTelemetry is not installed (%s): pip install 'twinline[otel]'", error)
        return None
    try:
        provider = TracerProvider(resource=Resource.create(_resource(index, env)), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:  # whatever a variable's value makes the SDK raise: the gateway serves all the same
        log.error("no traces: OpenTelemetry cannot be set up: %s", error)
        return None
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Seldom())
    log.info("traces are sent by OTLP")
    return Tracing(Spans(provider.get_tracer("twinline.gateway", __version__)), provider)


def _resource(index: int, env: Mapping[str, str]) -> dict[str, str]:
    """Who sends; a name that the variables give is left to the SDK."""
    who = {"service.version": __version__, "service.instance.id": f"gateway-{index}"}
    if not env.get("OTEL_SERVICE_NAME") and "service.name=" not in env.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        who["service.name"] = "twinline-gateway"
    return who


class _Seldom(logging.Filter):
    """Lets one of the SDK's complaints through a minute: it has one for every try."""

    def __init__(self) -> None:
        super().__init__()
        self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry") or record.levelno >= logging.CRITICAL:
            return True
        now = time.monotonic()
        if now - self._last < QUIET_SECONDS:
            return False
        self._last = now
        return True
