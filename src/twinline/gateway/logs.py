"""What the gateway writes down while it works: its log, as text or as JSON, and one line per request for those who ask.

Owns the form. Must not know where a log goes: it is stderr's. No line holds a prompt or an answer unless the fleet says
`log_prompts`; none ever holds a key.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any

import msgspec

from twinline.gateway.access import Visit
from twinline.gateway.exchange import CLIENT_LEFT, Exchange
from twinline.gateway.reasons import of_status, why_refused

ACCESS = logging.getLogger("twinline.access")
STDERR = 2
_SHOWN = 2000  # characters of a prompt and of an answer
_NAME = 200  # characters of what a client calls a model
_log = logging.getLogger("twinline")


def set_up_logs(form: str, level: str) -> None:
    """`text` or `json`, to stderr. What ends a thread or the process is logged in that form too."""
    handler = _Lines()
    if form == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(_Text("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    ACCESS.setLevel(logging.INFO)  # it was asked for: a quieter log keeps it
    sys.excepthook = _ended
    threading.excepthook = lambda told: _ended(told.exc_type, told.exc_value, told.exc_traceback)


def _ended(kind: type[BaseException], error: BaseException | None, where: TracebackType | None) -> None:
    if error is not None:
        _log.critical("%s ends", threading.current_thread().name, exc_info=(kind, error, where))


class _Lines(logging.Handler):
    """Each record by one write to stderr. A full disk costs lines, never the form of those that come after: a line of
    which only a part was taken is ended before the next."""

    _torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = b"\n" * self._torn + f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
            self._torn = os.write(STDERR, data) < len(data)
        except Exception:  # there is nobody to tell
            return


class _Text(logging.Formatter):
    """Lines for people. What others said cannot begin a line of its own nor speak to a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return line if line.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class _Json(logging.Formatter):
    """One object a line; what a call gave as `extra={"fields": ...}` stands beside the rest."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception:  # a call whose arguments do not fit its text must not break the log's form
            message = f"{record.msg} {record.args!r}"
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        said |= getattr(record, "fields", {})
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = record.stack_info
        try:
            return msgspec.json.encode(said, enc_hook=repr).decode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return msgspec.json.encode({name: _sound(value) for name, value in said.items()}).decode()


def _sound(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()


class AccessLog:
    """One line per request that reached an endpoint, refused and broken ones included."""

    def __init__(self, prompts: bool) -> None:
        self._prompts = prompts

    def began(self, exchange: Exchange, visit: Visit) -> None: ...

    def ended(self, exchange: Exchange, visit: Visit) -> None:
        fields = told_of(exchange, visit)
        if self._prompts and visit.choices:
            first = visit.choices[0]
            said, spoken = first.transcript, first.transcript.spoken
            fields["prompt"] = said.text_of(first.request.prompt)[:_SHOWN]
            fields["answer"] = (said.text_of(first.journal) if spoken is None else spoken.content)[:_SHOWN]
        text = " ".join(f"{name}={value!r}" for name, value in fields.items())
        ACCESS.info("%s", text, extra={"fields": fields})


def told_of(exchange: Exchange, visit: Visit) -> dict[str, Any]:
    """What a request was, in the access log's words (docs/operations.md). Of a client that left, the status is 499."""
    choices = visit.choices
    left = exchange.gone and exchange.cause is None
    status = CLIENT_LEFT if left else exchange.status or CLIENT_LEFT
    segments = [segment for choice in choices for segment in choice.segments]
    firsts = [segment.first for segment in segments if segment.first]
    queued = [choice.segments[0].queued for choice in choices if choice.segments]
    return {
        "request_id": exchange.request_id,
        "key": visit.tenant,
        "model": visit.model if visit.outcome is not None else exchange.model[:_NAME],
        "lines": exchange.lines,
        "status": status,
        "outcome": visit.outcome or ("aborted" if left else "refused"),
        "reason": _reason(exchange, visit, status),
        "stream": exchange.streaming,
        "prompt_tokens": sum(choice.prompt_tokens for choice in choices if choice.leads),
        "cached_tokens": (choices[0].cached_tokens or 0) if choices else 0,
        "completion_tokens": sum(choice.completion_tokens for choice in choices),
        "moves": sum(max(0, len(choice.segments) - 1) for choice in choices),
        "seconds": round(time.monotonic() - visit.started, 4),
        "queue_seconds": round(max(queued, default=0.0), 4),
        "ttft_seconds": round(min(firsts) - visit.started, 4) if firsts else None,
    }


def _reason(exchange: Exchange, visit: Visit, status: int) -> str | None:
    """Why it got no whole answer: never the message, which may quote the request."""
    if visit.refusal is not None:
        return visit.refusal
    for choice in visit.choices:
        if choice.error is not None:
            return why_refused(choice.error)
    if exchange.reason is not None:
        return exchange.reason
    if status == CLIENT_LEFT:
        return "client_left"
    return of_status(status) if status >= 400 else None
