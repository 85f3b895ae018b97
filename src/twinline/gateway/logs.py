"""What the gateway writes down while it works: its log, as text or as JSON, and one line per request for those who ask.

Owns the form. Must not know where a log goes: it is stderr's. No line holds a prompt or an answer unless the fleet says
`log_prompts`; none ever holds a key.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.gateway.access import Visit
from twinline.gateway.choice import Choice
from twinline.gateway.exchange import Exchange

ACCESS = logging.getLogger("twinline.access")
_SHOWN = 2000  # characters of a prompt


def set_up_logs(form: str, level: str) -> None:
    """`text` or `json`, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _Json(logging.Formatter):
    """One object a line; what a call gave as `extra={"fields": ...}` stands beside the rest."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= getattr(record, "fields", {})
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(said).decode()


class AccessLog:
    """One line per answered request."""

    def __init__(self, prompts: bool) -> None:
        self._prompts = prompts

    def __call__(self, exchange: Exchange, visit: Visit, model: str, choices: Sequence[Choice], status: str) -> None:
        fields: dict[str, Any] = {
            "request_id": exchange.request_id,
            "key": visit.tenant,
            "model": model,
            "lines": exchange.lines,
            "outcome": status,
            "prompt_tokens": choices[0].prompt_tokens if choices else 0,
            "completion_tokens": sum(choice.completion_tokens for choice in choices),
            "moves": sum(max(0, len(choice.segments) - 1) for choice in choices),
            "seconds": round(time.time() - visit.began, 4),
        }
        if self._prompts and choices:
            served = choices[0]
            fields["prompt"] = served.shown_prompt()[:_SHOWN]
        text = " ".join(f"{name}={value!r}" for name, value in fields.items())
        ACCESS.info(text, extra={"fields": fields})
