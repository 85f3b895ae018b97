"""llama.cpp's driver against what llama-server 0.5.0-dev really sent."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files

import msgspec
import pytest
from tests.lines.drivers.replay import RECORDED, Replay, ask, body, deltas, said, whole

from twinline.lines.client import LineClient
from twinline.lines.drivers import driver
from twinline.lines.drivers.llamacpp import Answer, LlamaCppDialect
from twinline.lines.protocol import LineBroken, LineRefused
from twinline.lines.spec import LineSpec
from twinline.lines.wire import Usage

LLAMACPP = driver("llamacpp")
TINY = str(files("twinline") / "models" / "tiny-r1")
SPEC = LineSpec(name="a", model="m", engine="llamacpp", weights="/weights/m.gguf", options={"tokenizer": TINY})
DIALECT = LLAMACPP.dialect(SPEC)


@pytest.mark.parametrize("step", [0, 1, 7, 100])
def test_a_stream_is_read_however_it_is_cut(step: int) -> None:
    answer = whole(DIALECT, ask(), body("llamacpp/greedy.http"), step)
    assert answer.tokens == [39, 85, 118, 785, 780, 108]
    assert (answer.finish_reason, answer.stop_reason) == ("length", None)
    assert answer.usage is not None and answer.usage.completion_tokens == 6


def test_progress_events_are_no_tokens() -> None:
    assert body("llamacpp/greedy.http").count(b'"tokens":[0]') == 2
    assert 0 not in whole(DIALECT, ask(), body("llamacpp/greedy.http")).tokens


def test_cached_tokens_are_told() -> None:
    assert whole(DIALECT, ask(), body("llamacpp/cached_prompt.http")).usage == Usage(403, 2, 400)


def test_the_end_token_is_the_last_token_and_the_reason() -> None:
    answer = whole(DIALECT, ask(), body("llamacpp/eos.http"))
    assert (answer.tokens, answer.finish_reason, answer.stop_reason) == ([1], "stop", 1)


def test_tokens_inside_a_character_are_put_back() -> None:
    true = json.loads((RECORDED / "llamacpp/inside_characters.tokens.json").read_text("utf-8"))["tokens"]
    sent = [token for event in _events("inside_characters.http") for token in event["tokens"]]
    assert len(sent) < len(true)
    answer = whole(DIALECT, ask(), body("llamacpp/inside_characters.http"))
    assert answer.tokens == true
    assert answer.usage is not None and answer.usage.completion_tokens == len(true)


def test_tokens_that_cannot_be_told_break_the_answer_and_what_came_before_stays() -> None:
    reader = DIALECT.reader(ask())
    came = []
    with pytest.raises(LineBroken, match="does not tell which") as broken:
        for event in _payloads("no_character.http"):
            delta = reader(event)
            came += delta.tokens if delta else []
    assert broken.value.code == "tokens_left_out"
    sent = [token for event in _events("no_character.http") for token in event["tokens"]]
    assert came == sent[: len(came)]
    assert 0 < len(came) < len(sent)


def test_without_the_tokens_bytes_a_gap_breaks_the_answer() -> None:
    with pytest.raises(LineBroken, match="left 1 of its tokens out"):
        deltas(LlamaCppDialect(None), ask(), body("llamacpp/inside_characters.http"))


def test_tokens_left_out_at_the_very_end_are_counted() -> None:
    """The text ends inside a character, so they have none; llama.cpp sends nothing of them."""
    reader = Answer(ask(), None)
    assert reader(b'{"content":"a","tokens":[5],"stop":false,"tokens_predicted":1,"tokens_evaluated":7}') is not None
    last = reader(b'{"stop":true,"stop_type":"eos","tokens_predicted":3,"tokens_evaluated":7,"timings":{"cache_n":2}}')
    assert last is not None
    assert (last.tokens, last.finish_reason, last.stop_reason, last.usage) == ([], "stop", None, Usage(7, 3, 2))


def test_nothing_comes_after_a_stop_token_however_much_was_read_at_once() -> None:
    answer = whole(DIALECT, ask(stop_token_ids=[118]), body("llamacpp/greedy.http"))
    assert (answer.tokens, answer.finish_reason, answer.stop_reason) == ([39, 85, 118], "stop", 118)


def test_a_stop_token_that_the_engine_does_not_know_ends_the_answer() -> None:
    found = deltas(DIALECT, ask(stop_token_ids=[118]), body("llamacpp/greedy.http"))
    ended = next(delta for delta in found if delta.finish_reason)
    assert [token for delta in found[: found.index(ended) + 1] for token in delta.tokens] == [39, 85, 118]
    assert (ended.finish_reason, ended.stop_reason, ended.usage) == ("stop", 118, Usage(7, 3, 3))


def test_an_error_inside_the_stream_breaks_it() -> None:
    with pytest.raises(LineBroken, match="no room") as broken:
        DIALECT.reader(ask())(b'{"error":{"code":500,"message":"no room","type":"server_error"}}')
    assert broken.value.code == "500"


def test_a_refusal_keeps_status_and_words() -> None:
    async def refused() -> LineRefused:
        async with Replay({"/completion": "llamacpp/too_long.http"}) as url:
            with pytest.raises(LineRefused) as caught:
                [delta async for delta in LineClient(url, DIALECT).stream(ask())]
            return caught.value

    error = asyncio.run(refused())
    assert error.status == 400
    assert "exceeds the available context size (1024 tokens)" in error.message


@pytest.mark.parametrize(("recording", "code"), [("llamacpp/loading.http", 503), ("llamacpp/health.http", 200)])
def test_health_tells_loading_from_ready(recording: str, code: int) -> None:
    assert LLAMACPP.health_path is not None

    async def asked(path: str) -> int:
        async with Replay({path: recording}) as url:
            return (await LineClient(url, DIALECT).ask("GET", path))[0]

    assert asyncio.run(asked(LLAMACPP.health_path)) == code


def test_the_client_reads_the_recording_over_a_socket() -> None:
    async def read() -> list[int]:
        async with Replay({"/completion": "llamacpp/inside_characters.http"}) as url:
            return [token async for delta in LineClient(url, DIALECT).stream(ask()) for token in delta.tokens]

    assert asyncio.run(read())[13:15] == [418, 154]


def test_every_default_of_the_engine_is_overruled() -> None:
    _, asked = said(DIALECT, ask(temperature=0.7, top_k=-1))
    assert asked["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert (asked["top_k"], asked["top_p"], asked["min_p"], asked["repeat_penalty"]) == (0, 1.0, 0.0, 1.0)
    assert (asked["repeat_last_n"], asked["n_predict"], asked["return_tokens"]) == (0, 6, True)


def test_seeds_fit_into_its_field_and_never_ask_for_chance() -> None:
    for seed in (0, 5, 0xFFFFFFFF, 2**40 + 3):
        assert 0 <= said(DIALECT, ask(seed=seed))[1]["seed"] < 0xFFFFFFFF


def test_penalties_over_the_prompt_are_taken_back() -> None:
    """The engine counts the prompt; our meaning is the output alone, of which the prefix is part."""
    request = ask(prompt=[4, 4, 9], output_prefix_ids=[9, 9], max_tokens=10, frequency_penalty=0.5)
    _, asked = said(DIALECT, request)
    assert asked["prompt"] == [4, 4, 9, 9, 9]
    assert dict(map(tuple, asked["logit_bias"])) == {4: 1.0, 9: 0.5}
    assert asked["repeat_last_n"] >= 5 + asked["n_predict"] == 13
    for token, output in ((4, 0), (9, 2)):
        counted = asked["prompt"].count(token) * 0.5
        assert dict(map(tuple, asked["logit_bias"]))[token] - counted == -0.5 * output


@pytest.mark.parametrize("fields", [{"min_tokens": 3}, {"logprobs": 1}])
def test_what_it_has_not_is_refused(fields: dict[str, int]) -> None:
    request = ask(**fields)
    assert DIALECT.carries(request) is not None
    with pytest.raises(ValueError, match=next(iter(fields))):
        DIALECT.encode(request, None)


def test_min_tokens_that_are_over_are_no_hindrance() -> None:
    assert DIALECT.carries(ask(min_tokens=2, output_prefix_ids=[7, 7])) is None


def test_metrics_have_vllms_meanings() -> None:
    found = LLAMACPP.metrics(body("llamacpp/metrics.txt"))
    assert (found.running, found.waiting, found.kv_usage) == (2, 2, None)
    text = body("llamacpp/metrics.txt").decode()
    counts = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}
    computed, cached = counts["llamacpp:prompt_tokens_total"], counts["llamacpp:prompt_tokens_cached_total"]
    assert cached > 0
    assert found.prompt_tokens == computed + cached
    assert found.progress == counts["llamacpp:n_decode_total"]


def test_facts_come_from_the_list_of_models() -> None:
    assert LLAMACPP.facts(msgspec.json.decode(body("llamacpp/models.http"))) == {
        "max_model_len": 1024,
        "vocab_size": 1024,
    }


def test_the_command_line() -> None:
    spec = LineSpec(
        name="a", model="m", engine="llamacpp", weights="/weights/m.gguf", context=2048, slots=3,
        options={"executable": "/bin/llama-server", "threads": 2, "tokenizer": TINY},
    )  # fmt: skip
    line = " ".join(LLAMACPP.command(spec, 9002).argv)
    assert line.startswith("/bin/llama-server --model /weights/m.gguf --alias m --host 127.0.0.1 --port 9002 ")
    for flag in (
        "--parallel 3",
        "--ctx-size 6144",
        "--threads-http 256",
        "--metrics",
        "--no-ui",
        "--no-slots",
        "--threads 2",
    ):
        assert f" {flag} " in f"{line} ", flag
    assert "tokenizer" not in line


def test_slots_have_room_of_their_own_though_nobody_asked() -> None:
    """llama-server's default shares one context among its slots; when it is full, all of their answers break."""
    line = " ".join(LLAMACPP.command(LineSpec(name="a", model="m", engine="llamacpp", weights="/absent.gguf"), 1).argv)
    assert " --parallel 4 --ctx-size 32768 " in line


def test_a_line_elsewhere_has_to_say_where_its_vocabulary_is() -> None:
    with pytest.raises(ValueError, match=r"options\.tokenizer"):
        LLAMACPP.check(LineSpec(name="a", model="m", engine="llamacpp", url="http://127.0.0.1:1"))
    LLAMACPP.check(
        LineSpec(name="a", model="m", engine="llamacpp", url="http://127.0.0.1:1", options={"tokenizer": TINY})
    )
    with pytest.raises(ValueError, match="weights:"):
        LLAMACPP.check(LineSpec(name="a", model="m", engine="llamacpp"))


def _payloads(name: str) -> list[bytes]:
    return [line[5:].strip() for line in body(f"llamacpp/{name}").split(b"\n") if line.startswith(b"data:")]


def _events(name: str) -> list[dict[str, list[int]]]:
    events = [json.loads(payload) for payload in _payloads(name)]
    return [event for event in events if not event["stop"] and "prompt_progress" not in event]
