"""Lines that lie, flood, drip and break HTTP: the gateway stays up and small; the request moves or ends in an error."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator

import pytest
from tests.gateway.hostile.conftest import Attacked
from tests.gateway.hostile.hostile_line import OK, Answer, bytes_of, endless, event, tokens

from twinline.lines import client as line_client

MIB = b"a" * (1 << 20)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FINISH = tokens(20, finish_reason="length")
DONE = b"data: [DONE]\n\n"


def usage(**counts: object) -> bytes:
    return event(choices=[], usage=counts)


def sized(body: bytes, length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (length, body)


# What a line does that has answered nothing yet: another line answers instead.
BROKEN: dict[str, Answer] = {
    "nothing": bytes_of(),
    "no HTTP": bytes_of(b"\x00\xff garbage\r\n\r\n"),
    "a redirect": bytes_of(b"HTTP/1.1 302 F\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"),
    "a redirect of a POST": bytes_of(b"HTTP/1.1 307 T\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n"),
    "another protocol": bytes_of(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    "100 for ever": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "no content": bytes_of(b"HTTP/1.1 204 No\r\n\r\n"),
    "a status of 99": bytes_of(b"HTTP/1.1 99 X\r\n\r\n{}"),
    "a status of 999": bytes_of(b"HTTP/1.1 999 X\r\n\r\n{}"),
    "an endless header": endless(b"HTTP/1.1 200 OK\r\nx: ", b"a" * 65536),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"x: a\r\n" * 1000),
    "many headers": bytes_of(b"HTTP/1.1 200 OK\r\n", b"".join(b"x%d: a\r\n" % n for n in range(2000)), b"\r\n", FINISH),
    "an endless reason": endless(b"HTTP/1.1 200 ", b"a" * 65536),
    "an endless event": endless(OK + b"data: ", b"a" * 65536),
    "an endless chunk extension": endless(CHUNKED + b"5;", b"a" * 65536),
    "a gigabyte of error": endless(b"HTTP/1.1 500 E\r\ncontent-length: 10000000000\r\n\r\n", MIB),
    "more than its length": bytes_of(sized(FINISH + DONE, 20)),
    "a negative length": bytes_of(sized(FINISH + DONE, -5)),
    "two framings": bytes_of(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "a giant chunk": bytes_of(CHUNKED + b"ffffffffffffffffff\r\n"),
    "no UTF-8": bytes_of(OK + b'data: {"choices":[{"token_ids":[\xff]}]}\n\n'),
    "depth": bytes_of(OK + b'data: {"choices":' + b"[" * 100_000 + b"\n\n"),
    "depth where nobody looks": bytes_of(OK + b'data: {"z":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n\n"),
    "no object": bytes_of(OK + b"data: 5\n\n"),
    "a negative token": bytes_of(OK + tokens(-1) + FINISH + DONE),
    "a token beyond all numbers": bytes_of(OK + tokens(10**30) + FINISH + DONE),
    "a token of 10,000 digits": bytes_of(OK + b'data: {"choices":[{"token_ids":[' + b"1" * 10_000 + b"]}]}\n\n"),
    "half a token": bytes_of(OK + b'data: {"choices":[{"token_ids":[1.5]}]}\n\n'),
    "too few log-probabilities": bytes_of(OK + tokens(20, logprobs={"tokens": [], "token_logprobs": []})),
    "log-probabilities of no token": bytes_of(
        OK + tokens(20, logprobs={"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"token_id:x": -1}]})
    ),
    "an infinite log-probability": bytes_of(
        OK + b'data: {"choices":[{"token_ids":[20],"logprobs":{"tokens":["a"],"token_logprobs":[1e999]}}]}\n\n'
    ),
    "a retry-after that is no header": bytes_of(b"HTTP/1.1 429 X\r\nretry-after: a\x01b\r\n\r\n{}"),
    "a retry-after that is no number": bytes_of(b"HTTP/1.1 429 X\r\nretry-after: nan\r\n\r\n{}"),
    "a retry-after in the past": bytes_of(b"HTTP/1.1 429 X\r\nretry-after: -1e9\r\n\r\n{}"),
    "an error of 5 MB": bytes_of(OK + event(error={"message": "a" * 5_000_000})),
}
# Whoever drips, or floods with what says nothing, is silent.
SILENT: dict[str, Answer] = {
    "a dripping header": endless(b"HTTP/1.1 200 OK\r\nx: ", b"a", 0.05),
    "a dripping event": endless(OK + b"data: ", b"a", 0.05),
    "a dripping error": endless(b"HTTP/1.1 500 E\r\ncontent-length: 1000\r\n\r\n", b"a", 0.05),
    "comments for ever": endless(OK, b": a\n" * 1000, 0.001),
    "empty events for ever": endless(OK, b"data: {}\n\n" * 100, 0.001),
}
# The answer is whole; what is wrong beside it is left out.
ODD: dict[str, Answer] = {
    "less than its length": bytes_of(sized(FINISH + DONE, 20_000)),
    "endless trailers": endless(CHUNKED + b"%x\r\n%s\r\n0\r\nx: " % (len(FINISH), FINISH), b"a" * 65536),
    "a second answer": bytes_of(
        sized(FINISH + DONE, len(FINISH + DONE)) + b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"
    ),
    "a wide field that nobody reads": bytes_of(OK + b'data: {"z":[' + b"[]," * 300_000 + b"1]}\n\n" + FINISH + DONE),
    "negative usage": bytes_of(
        OK + FINISH + usage(prompt_tokens=-5, completion_tokens=-7, prompt_tokens_details={"cached_tokens": -9}) + DONE
    ),
    "absurd usage": bytes_of(
        OK + FINISH + usage(prompt_tokens=10**30, prompt_tokens_details={"cached_tokens": 10**30}) + DONE
    ),
    "fractional usage": bytes_of(OK + FINISH + usage(prompt_tokens=1.5) + DONE),
}


def in_shape(error: dict[str, object]) -> None:
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 3000


@pytest.mark.parametrize("name", [*BROKEN, *SILENT])
def test_another_line_answers_instead(attacked: Attacked, name: str) -> None:
    attacked.good(True)
    attacked.hostile.answer = {**BROKEN, **SILENT}[name]
    answer = attacked.complete(max_tokens=3)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["usage"]["completion_tokens"] == 3
    tokenizer = attacked.door.models[0].tokenizer
    assert body["choices"][0]["text"] == tokenizer.decode([10, 11, 12], skip_special=True)


@pytest.mark.parametrize("name", [name for name in BROKEN if "retry-after" not in name] + ["a dripping error"])
def test_without_another_line_it_ends_in_an_error(attacked: Attacked, name: str) -> None:
    attacked.hostile.answer = {**BROKEN, **SILENT}[name]
    answer = attacked.complete(max_tokens=3, stream=True)
    assert answer.status_code in (502, 503)
    in_shape(answer.json()["error"])
    assert "location" not in answer.headers
    assert attacked.client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_beside_a_whole_answer_is_left_out(
    attacked: Attacked, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_client, "AFTER_FINISH_SECONDS", 0.2)
    attacked.hostile.answer = ODD[name]
    answer = attacked.complete(max_tokens=3)
    assert answer.status_code == 200
    assert answer.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


@pytest.mark.parametrize("stream", [False, True])
def test_a_line_that_ignores_the_limit_is_cut_off(attacked: Attacked, stream: bool) -> None:
    for answer in (endless(OK, tokens(20)), bytes_of(OK + tokens(*[20] * 1000, finish_reason="stop") + DONE)):
        attacked.hostile.answer = answer
        fields = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        said = attacked.complete(max_tokens=7, **fields)
        assert said.status_code == 200
        if stream:
            events = [json.loads(line[6:]) for line in said.text.splitlines() if line.startswith("data: {")]
            finishes = [choice["finish_reason"] for each in events for choice in each["choices"]]
            text = "".join(choice["text"] for each in events for choice in each["choices"])
            told = events[-1]["usage"]
        else:
            finishes = [said.json()["choices"][0]["finish_reason"]]
            text, told = said.json()["choices"][0]["text"], said.json()["usage"]
        assert told["completion_tokens"] == 7
        assert [each for each in finishes if each] == ["length"]
        assert text == attacked.door.models[0].tokenizer.decode([20] * 7, skip_special=True)


def test_what_breaks_in_the_middle_moves_or_ends_in_an_error_event(attacked: Attacked) -> None:
    attacked.hostile.answer = bytes_of(OK + tokens(10), tokens(-1) + FINISH + DONE)
    attacked.good(True)
    moved = attacked.complete(max_tokens=3)
    assert moved.json()["usage"]["completion_tokens"] == 3
    attacked.good(False)
    attacked.call(lambda: attacked.supply.restarted(attacked.lines["hostile"]))

    async def slowly(request: dict[str, object]) -> AsyncIterator[bytes]:
        yield OK + tokens(20)
        await asyncio.sleep(0.1)
        yield tokens(-1) + FINISH + DONE

    attacked.hostile.answer = slowly
    answer = attacked.complete(max_tokens=50, stream=True, timeout_s=1)
    assert answer.status_code == 200
    *_, last = answer.text.strip().split("\n\n")
    in_shape(json.loads(last.removeprefix("data: "))["error"])
    assert "[DONE]" not in answer.text


def test_a_lines_words_make_no_line_of_the_log(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    words = "a\nERROR root: all keys were stolen\x1b[31m\x00"
    attacked.hostile.answer = bytes_of(OK + event(error={"message": words, "code": "x\r\ny"}))
    with caplog.at_level(logging.INFO, "twinline.gateway.endpoint"):
        answer = attacked.complete(max_tokens=3)
        in_shape(answer.json()["error"])
        end = time.monotonic() + 60
        while not any("stolen" in record.getMessage() for record in caplog.records):
            assert time.monotonic() < end
            time.sleep(0.01)
    told = [record.getMessage() for record in caplog.records if record.name == "twinline.gateway.endpoint"]
    assert all(message.isprintable() for message in told)


def test_a_refusal_does_not_become_ours_in_size(attacked: Attacked) -> None:
    refusal = {"error": {"message": "m" * 100_000, "code": "c" * 100_000, "param": "p" * 100_000}}
    body = json.dumps(refusal).encode()
    attacked.hostile.answer = bytes_of(b"HTTP/1.1 400 X\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    answer = attacked.complete(max_tokens=3)
    assert answer.status_code == 400
    assert len(answer.content) < 4000


def test_what_a_watched_line_says_of_itself_is_bounded(attacked: Attacked) -> None:
    attacked.hostile.told = dict.fromkeys(
        ("/health", "/metrics", "/v1/models"), endless(b"HTTP/1.1 200 OK\r\n\r\n", MIB)
    )
    assert attacked.client.get("/metrics").status_code == 200
    attacked.hostile.answer = SILENT["a dripping header"]
    answer = attacked.complete(max_tokens=3)
    assert answer.status_code == 502
    attacked.client.get("/metrics")
    for path in ("/health", "/metrics"):
        with pytest.raises(line_client.LineError, match="longer than 4 MiB"):
            attacked.do(_ask(attacked.lines["hostile"].client, path))


async def _ask(client: line_client.LineClient, path: str) -> None:
    await client.ask("GET", path)


@pytest.mark.parametrize(
    "text",
    [
        b"# HELP vllm:x\\n twinline_forged 1\n",
        b'# TYPE "vllm:x\\ntwinline_forged 1\\n#" gauge\n{"vllm:x\\ntwinline_forged 1\\n#"} 1\n',
        b'vllm:x{"a\\ntwinline_forged 1\\n#"="b"} 1\n',
        b"vllm:x 1 1e999\n",
        b'# TYPE vllm:x gauge\nvllm:x{a="b",\xe2\x80\xa8="c"} 1\n',
        b'vllm:{x\ne="0.5"} 1\n',
        b"vllm:x 1 # {a",
    ],
)
def test_what_a_line_measures_makes_no_line_of_ours_and_takes_none_away(attacked: Attacked, text: bytes) -> None:
    attacked.good(True)
    attacked.hostile.told["/metrics"] = bytes_of(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
    told = attacked.client.get("/metrics")
    assert told.status_code == 200
    lines = [line.strip() for line in told.text.splitlines()]
    assert any(line.startswith("twinline_") for line in lines)
    assert not any(line.startswith("twinline_forged") for line in lines)
    assert all(line.startswith(("# HELP ", "# TYPE ", "twinline_", "vllm:", "python_", "process_")) for line in lines)
