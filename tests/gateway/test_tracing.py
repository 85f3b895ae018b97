"""A request can be followed: one name in the answer, at the line and in the log, and a log line when it fails."""

from __future__ import annotations

import re

import pytest
from tests.gateway.harness import MODEL, Gateway
from tests.lines.line_double import Script


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_name_is_kept_everywhere(door: Gateway, stream: bool) -> None:
    door.client.headers["X-Request-Id"] = "trace-7.a"
    try:
        responses = [door.chat(stream=stream), door.complete(stream=stream)]
        refused = door.chat(temperature=-1)
    finally:
        del door.client.headers["X-Request-Id"]
    assert {response.headers["x-request-id"] for response in [*responses, refused]} == {"trace-7.a"}
    assert '"chatcmpl-trace-7.a"' in responses[0].text and '"cmpl-trace-7.a"' in responses[1].text
    names = [request["request_id"] for request in door.double.requests]
    assert len(set(names)) == 2 and all(name.startswith("trace-7.a-") for name in names)


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", 'a"b'])
def test_no_name_or_a_bad_one_gets_ours(door: Gateway, given: str | None) -> None:
    body = {"model": MODEL, "prompt": "x"}
    headers = {} if given is None else {"X-Request-Id": given}
    name = door.client.post("/v1/completions", json=body, headers=headers).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", name)
    assert door.asked()["request_id"].startswith(name)


def test_a_failed_request_is_one_line_in_the_log(door: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="twinline.gateway")

    def said() -> list[str]:
        return [line for line in caplog.messages if "status=" in line]

    door.chat()
    name = door.chat(temperature=-1).headers["x-request-id"]
    door.until(lambda: len(said()) == 1)
    assert said() == [f"chat {name} model=- line=- status=400: Expected `float` >= 0.0 - at `$.temperature`."]
    name = door.chat(model="gpt\n9").headers["x-request-id"]
    door.until(lambda: len(said()) == 2)
    assert said()[1].startswith(f"chat {name} model='gpt\\n9' line=- status=404: ") and "\n" not in said()[1]
    door.double.script = lambda request: Script(list(range(10, 30)), fault="in_band", fault_after=1)
    name = door.complete(stream=True).headers["x-request-id"]
    door.until(lambda: len(said()) == 3)
    assert said()[2].startswith(f"completions {name} model='{MODEL}' line='double' status=502: ")
    assert "a card fell off" in said()[2]
