"""Random damage, by hypothesis: to requests on their way in, and to what a line answers on its way back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.harness import MODEL
from tests.gateway.hostile.conftest import Attacked
from tests.gateway.hostile.hostile_line import OK, bytes_of, event, tokens
from tests.gateway.hostile.wire import BODY, HEALTH, answers, chunked, connected, framed, post, rest

QUICK = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
GOOD = [
    framed(),
    post(b"transfer-encoding: chunked\r\n\r\n") + chunked(),
    HEALTH + b"\r\n",
    framed(extra=b"expect: 100-continue\r\n"),
    framed(extra=b"connection: upgrade\r\nupgrade: h2c\r\n"),
]
SPICE = [b"\r\n", b"\n", b"\r", b"\0", b"\xff", b": ", b"0\r\n\r\n", b"transfer-encoding: chunked\r\n", b"%",
         b"\r\n\r\n", b"content-length: 5\r\n", b"HTTP/1.1", b"ffffffff", b" ", b"\t", b"[", b"{",
         b'"', b"\\u0000", b"-1", b"1e999"]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 6))
        data[at : at + cut] = draw(st.one_of(st.sampled_from(SPICE), st.binary(max_size=6)))
    return bytes(data)


@given(
    data=st.sampled_from(GOOD).flatmap(lambda first: st.sampled_from(GOOD).flatmap(lambda then: damaged(first + then)))
)
@QUICK
def test_damaged_requests(attacked: Attacked, data: bytes) -> None:
    """Whatever comes: whole answers, no failure of ours, and the next client is served."""
    attacked.good(True)
    with connected(attacked.address) as client:
        client.sendall(data)
        client.shutdown(1)
        for answer in answers(rest(client, 3.0)[0]):
            assert answer.status < 500
            if answer.status >= 400 and answer.body:
                assert answer.error["message"]
    assert attacked.client.get("/health").status_code == 200


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["user", "assistant", "text", "tool", MODEL, [1, 2], {"role": "user", "content": "a"}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "model messages prompt max_tokens max_completion_tokens min_tokens temperature top_p top_k min_p presence_penalty "
    "frequency_penalty repetition_penalty seed stop stop_token_ids ignore_eos logit_bias n stream stream_options "
    "priority timeout_s include_stop_str_in_output skip_special_tokens response_format logprobs top_logprobs tools "
    "tool_choice functions chat_template_kwargs add_generation_prompt continue_final_message echo "
    "return_token_ids suffix best_of"
).split()


@given(
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
    fields=st.dictionaries(st.sampled_from(FIELDS), values, max_size=4),
)
@QUICK
def test_fields_of_any_type(attacked: Attacked, path: str, fields: dict[str, Any]) -> None:
    attacked.good(True)
    whole = {
        "model": MODEL,
        "prompt": "a",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
        "timeout_s": 5,
    }
    body = json.dumps({**whole, **fields}).encode("utf-8", "surrogatepass")
    answer = attacked.client.post(path, content=body)
    assert answer.status_code < 500, (fields, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


ANSWER = OK + tokens(20) + tokens(21) + tokens(22, finish_reason="length")
ANSWER += event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 3}) + b"data: [DONE]\n\n"


@given(data=damaged(ANSWER), stream=st.booleans(), good=st.booleans())
@QUICK
def test_damaged_answers_of_a_line(attacked: Attacked, data: bytes, stream: bool, good: bool) -> None:
    """The answer is whole, is another line's, or ends in an error; it never hangs, and nothing of ours fails."""
    attacked.call(lambda: [attacked.supply.restarted(line) for line in attacked.lines.values()])
    attacked.good(good)
    attacked.hostile.answer = bytes_of(data)
    answer = attacked.client.post(
        "/v1/completions", json={**json.loads(BODY), "max_tokens": 3, "stream": stream, "timeout_s": 4}
    )
    if answer.status_code != 200:
        assert answer.status_code in (400, 429, 502, 503, 504)
        assert answer.json()["error"]["code"] != "internal_error"
    elif stream:
        *events, last = [part.removeprefix("data: ") for part in answer.text.strip().split("\n\n")]
        assert last == "[DONE]" or set(json.loads(last)) == {"error"}
        assert all("error" not in json.loads(each) for each in events)
    else:
        assert answer.json()["choices"][0]["finish_reason"] is not None
        assert answer.json()["usage"]["completion_tokens"] <= 3
