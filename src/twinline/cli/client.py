"""A small client of an OpenAI endpoint, on the standard library alone.

Owns how verbs reach a server and what they say when it does not answer. Knows no verb.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from twinline.cli.parser import CliError
from twinline.verify.openai_error import error_text, message_of

Json = dict[str, Any]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error like others: urllib would send the key along to wherever it leads."""

    def redirect_request(self, *redirect: Any) -> None:
        return None


# No proxy: the environment's proxy would be asked for loopback addresses too.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


class NoServer(CliError):
    """Nothing listens at the address."""


def base_url(text: str) -> str:
    """`text` with a scheme and a path: `host:8000` becomes `http://host:8000/v1`."""
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CliError(f"--url must look like http://HOST:PORT/v1, not {text!r}", code=2)
    return url.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"


@dataclass(frozen=True, slots=True)
class Server:
    """An endpoint; `base` ends in `/v1`."""

    base: str
    key: str | None = None

    def models(self, timeout: float = 10) -> list[Json]:
        """The entries of `/v1/models`."""
        with self._open("/models", None, timeout) as response:
            try:
                return [dict(entry) for entry in json.load(response)["data"]]
            except (ValueError, KeyError, TypeError):
                raise CliError(f"{self.base}/models did not answer with OpenAI's list of models") from None

    def only_model(self) -> str:
        """The name of the one model served; with several the user has to choose."""
        names = [str(entry.get("id")) for entry in self.models()]
        if len(names) == 1:
            return names[0]
        if not names:
            raise CliError(f"{self.base} serves no model")
        raise CliError(f"{self.base} serves several models, choose with --model: {', '.join(names)}", code=2)

    def stream(self, path: str, body: Json, timeout: float = 600) -> Iterator[Json]:
        """The events of a streamed answer. Closing the iterator closes the connection, which ends the answer."""
        with self._open(path, body, timeout) as response:
            try:
                yield from self._events(response)
            except (OSError, http.client.HTTPException) as exc:
                raise CliError(f"{self.base} broke off its answer: {exc}") from None

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Json]:
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                raise CliError(f"{self.base} sent an event that is not JSON: {data[:80]!r}") from None
            if event.get("error"):
                raise CliError(f"{self.base} broke off its answer: {message_of(event)}")
            yield event

    def _offered(self, wanted: str) -> str:
        """What to add where a server does not know what was asked for: the models that it has."""
        with contextlib.suppress(CliError):
            names = [str(entry.get("id")) for entry in self.models()]
            return "" if wanted in names else f" It serves {', '.join(names) or 'none'}."
        return ""

    def _open(self, path: str, body: Json | None, timeout: float) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            response = _opener.open(urllib.request.Request(self.base + path, data, headers), timeout=timeout)
            return cast(http.client.HTTPResponse, response)
        except urllib.error.HTTPError as exc:
            with exc:
                said = f"{self.base}{path} answered {exc.code}: {error_text(exc.read())}"
            raise CliError(said + (self._offered(str(body.get("model"))) if exc.code == 404 and body else "")) from None
        except (OSError, http.client.HTTPException) as exc:
            reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            raise NoServer(
                f"no server answers at {self.base} ({reason}); `twinline serve` starts one here, --url names another"
            ) from None
