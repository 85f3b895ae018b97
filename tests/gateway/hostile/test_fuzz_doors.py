"""The doors beside chat and completions, with fields of any type and items of any kind: never a failure of ours."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.harness import MODEL
from tests.gateway.hostile.conftest import Attacked
from tests.gateway.hostile.test_fuzz import values

from twinline.gateway.dialects.messages_types import MessagesRequest
from twinline.gateway.dialects.responses_types import Item, ResponsesRequest
from twinline.gateway.tokens import DetokenizeRequest, TokenizeRequest

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
texts = st.sampled_from(["", "a", "<think>", "{", "\0", "👋"])
kinds = st.sampled_from(
    "text thinking redacted_thinking tool_use tool_result image input_text output_text refusal message reasoning "
    "function_call function_call_output item_reference".split()
)
NAMES = "text thinking id name input tool_use_id content refusal".split()
blocks = st.builds(
    lambda kind, fields: {"type": kind, **fields}, kinds, st.dictionaries(st.sampled_from(NAMES), texts | values)
)
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "system", "tool"]),
    texts | st.lists(blocks, max_size=3),
)
items = st.builds(
    lambda kind, fields: {"type": kind, **fields},
    kinds,
    st.dictionaries(st.sampled_from(Item.__struct_fields__), texts | st.lists(blocks, max_size=2), max_size=4),
)
SHAPES = {
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesRequest,
    "/v1/responses": ResponsesRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
WHOLE: dict[str, Any] = {"model": MODEL, "tokens": [5], "max_tokens": 2, "max_output_tokens": 2}


@given(data=st.data(), path=st.sampled_from(sorted(SHAPES)))
@QUICK
def test_any_request_is_answered_or_refused(attacked: Attacked, data: st.DataObject, path: str) -> None:
    attacked.good(True)
    names = st.sampled_from(SHAPES[path].__struct_fields__)
    body = {
        **WHOLE,
        "messages": data.draw(st.lists(messages, min_size=1, max_size=3)),
        "input": data.draw(texts | st.lists(items | messages, max_size=3)),
        **data.draw(st.dictionaries(names, values, max_size=2)),
    }
    sent = json.dumps(body).encode("utf-8", "surrogatepass")
    answer = attacked.client.post(path, content=sent, headers={"x-request-timeout-s": "5"})
    assert answer.status_code < 500, (body, answer.text)
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and error["type"] in ("invalid_request_error", "not_found_error")
    elif body.get("stream") is True:
        last = [event for event in answer.text.split("\n\n") if event][-1]
        assert "message_stop" in last or '"type":"response.' in last
    else:
        assert answer.json()
