"""SGLang's driver against answers written from its source; none was recorded."""

from __future__ import annotations

import msgspec
import pytest
from tests.lines.drivers.replay import ask, body, deltas, said, whole

from twinline.gateway.faults import is_fault
from twinline.lines.drivers import driver
from twinline.lines.protocol import Grammar, LineBroken, LineRefused
from twinline.lines.spec import LineSpec
from twinline.lines.wire import TokenLogprob, Usage

SGLANG = driver("sglang")
SPEC = LineSpec(name="a", model="m", engine="sglang", weights="/weights/qwen")
DIALECT = SGLANG.dialect(SPEC)


@pytest.mark.parametrize("name", ["cumulative", "incremental"])
@pytest.mark.parametrize("step", [0, 1, 50])
def test_both_kinds_of_streams_give_each_token_once(name: str, step: int) -> None:
    answer = whole(DIALECT, ask(), body(f"sglang/{name}.sse"), step)
    assert answer.tokens == [71, 578, 66, 1]
    assert (answer.finish_reason, answer.stop_reason, answer.usage) == ("stop", 1, Usage(7, 4, 4))


def test_logprobs_of_output_and_prompt() -> None:
    request = ask(prompt=[0, 3, 100], logprobs=2, prompt_logprobs=2)
    found = deltas(DIALECT, request, body("sglang/logprobs.sse"))
    assert [len(delta.logprobs or []) for delta in found] == [1, 1, 1]
    assert found[1].logprobs == [TokenLogprob(578, -2.25, ((578, -2.25), (66, -2.5)))]
    assert found[0].prompt_logprobs == [
        None,
        TokenLogprob(3, -3.5, ((4, -0.5), (5, -0.75))),
        TokenLogprob(100, -4.25, ((9, -1.0), (8, -1.25))),
    ]
    assert found[0].prompt_tokens == request.prompt
    assert all(delta.prompt_logprobs is None for delta in found[1:])


def test_logprobs_that_were_not_asked_for_are_not_told() -> None:
    assert whole(DIALECT, ask(), body("sglang/logprobs.sse")).logprobs is None


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [("too_long", "longer than the model's context", "400"), ("abort", "queue is full", "429")],
)
def test_errors_inside_the_stream_break_it(name: str, words: str, code: str) -> None:
    with pytest.raises(LineBroken, match=words) as broken:
        deltas(DIALECT, ask(), body(f"sglang/{name}.sse"))
    assert broken.value.code == code
    assert not is_fault(broken.value)  # a request that is wrong, and a queue that is full


def event(*tokens: int, count: int, finish: object = None) -> bytes:
    meta = {"id": "r1", "finish_reason": finish, "prompt_tokens": 7, "completion_tokens": count, "cached_tokens": 0}
    return msgspec.json.encode({"text": "", "output_ids": tokens, "meta_info": meta})


def test_a_full_queue_is_no_fault() -> None:
    full = {"type": "abort", "message": "The request queue is full.", "status_code": 503, "err_type": None}
    with pytest.raises(LineRefused, match="queue is full") as refused:
        DIALECT.reader(ask())(event(count=0, finish=full))
    assert refused.value.status == 429
    with pytest.raises(LineBroken) as broken:
        DIALECT.reader(ask())(event(count=0, finish=full | {"message": "Weights are being updated."}))
    assert broken.value.code == "503"


def test_logits_that_are_no_numbers_are_no_end() -> None:
    """Its scheduler puts an end token in their place and says `stop`."""
    reader = DIALECT.reader(ask(stop_token_ids=[1]))
    reader(event(71, count=1))
    with pytest.raises(LineBroken, match="NaN happened"):
        reader(event(71, 1, count=2, finish={"type": "stop", "matched": "NaN happened"}))


@pytest.mark.parametrize("incremental", [True, False])
def test_stop_tokens_count_where_end_tokens_do_not(incremental: bool) -> None:
    """Under `ignore_eos` it looks at neither."""
    request = ask(stop_token_ids=[66], ignore_eos=True, logprobs=0)
    entries = [[-1.5, 71, None], [-2.25, 578, None], [-2.0, 66, None], [-0.5, 67, None]]
    said = msgspec.json.decode(event(*(() if incremental else (71,)), 578, 66, 67, count=4))
    said["meta_info"]["output_token_logprobs"] = entries[1:] if incremental else entries
    first = msgspec.json.decode(event(71, count=1))
    first["meta_info"]["output_token_logprobs"] = entries[:1]
    stream = b"".join(b"data: " + msgspec.json.encode(payload) + b"\n\n" for payload in (first, said, said))
    begun, ended = deltas(DIALECT, request, stream)
    assert begun.finish_reason is None
    assert (ended.tokens, ended.finish_reason, ended.stop_reason) == ([578, 66], "stop", 66)
    assert [entry.token for entry in ended.logprobs or []] == [578, 66]
    assert ended.usage == Usage(7, 3, 0)


def test_it_stops_at_stop_tokens_by_itself_otherwise() -> None:
    stream = b"data: " + event(66, 67, count=2) + b"\n\n"
    assert whole(DIALECT, ask(stop_token_ids=[66]), stream).tokens == [66, 67]


def test_fewer_tokens_than_were_counted_are_no_answer() -> None:
    with pytest.raises(ValueError, match="3 new tokens with 1 output ids"):
        DIALECT.reader(ask())(b'{"output_ids":[5],"meta_info":{"completion_tokens":3}}')


def test_a_request() -> None:
    path, asked = said(DIALECT, ask(prompt=[1, 2], top_k=0, stop_token_ids=[9], logprobs=0, seed=4))
    assert (path, asked["input_ids"], asked["rid"]) == ("/generate", [1, 2], "r")
    sampling = asked["sampling_params"]
    assert (sampling["top_k"], sampling["stop_token_ids"], sampling["no_stop_trim"]) == (-1, [9], True)
    assert (asked["return_logprob"], asked["logprob_start_len"]) == (True, -1)
    assert not {"sampling_seed", "logit_bias"} & sampling.keys()
    assert not {"priority", "model"} & asked.keys()


def test_a_deterministic_engine_keeps_its_noise_over_a_move() -> None:
    options = {"enable_deterministic_inference": True}
    dialect = SGLANG.dialect(LineSpec(name="a", model="m", engine="sglang", weights="w", options=options))
    _, asked = said(dialect, ask(seed=4, output_prefix_ids=[7], max_tokens=5, frequency_penalty=1.0))
    sampling = asked["sampling_params"]
    assert (sampling["sampling_seed"], sampling["max_new_tokens"], sampling["logit_bias"]) == (4, 4, {"7": -1.0})


@pytest.mark.parametrize(("options", "sent"), [({}, -3), ({"schedule_low_priority_values_first": True}, 3)])
def test_smaller_priorities_come_first_whatever_the_engine_means_by_them(options: dict[str, bool], sent: int) -> None:
    spec = LineSpec(
        name="a", model="m", engine="sglang", weights="w", options={"enable_priority_scheduling": True} | options
    )
    assert said(SGLANG.dialect(spec), ask(priority=3))[1]["priority"] == sent


def test_metrics_and_facts() -> None:
    found = SGLANG.metrics(body("sglang/metrics.txt"))
    assert (found.running, found.waiting, found.kv_usage) == (16, 5, 0.28)
    assert (found.prompt_tokens, found.generation_tokens) == (8128, 7557)
    assert SGLANG.facts(msgspec.json.decode(body("sglang/models.json"))) == {"max_model_len": 512}
    assert SGLANG.metrics(b"nothing of the kind").progress is None


def test_progress_moves_in_the_midst_of_a_request() -> None:
    """Its totals of prompt and generated tokens grow when a request ends: one long answer would count as a hang."""
    counted = body("sglang/metrics.txt")
    before = SGLANG.metrics(counted).progress
    for earlier, later in ((b" 8600.0\n", b" 8640.0\n"), (b" 6100.0\n", b" 6164.0\n"), (b" 8570.0\n", b" 8571.0\n")):
        assert earlier in counted
        moved = SGLANG.metrics(counted.replace(earlier, later))
        assert before is not None and moved.progress is not None and moved.progress > before
    old = b"sglang:prompt_tokens_total 8128.0\nsglang:generation_tokens_total 7557.0\nsglang:num_running_reqs 1.0\n"
    old += b"sglang:time_to_first_token_seconds_count 12\n"
    assert SGLANG.metrics(old).progress is None  # nothing moves through a long answer, so nothing stands still
    assert SGLANG.metrics(old + b"sglang:inter_token_latency_seconds_count 30\n").progress == 42.0


def test_the_command_line_has_no_negated_flags() -> None:
    spec = LineSpec(
        name="a", model="m", engine="sglang", weights="/w", context=4096, slots=8, cards=(0, 1, 2, 3),
        precision="bfloat16", options={"enable_deterministic_inference": True, "disable_radix_cache": False},
    )  # fmt: skip
    command = SGLANG.command(spec, 9003)
    assert command.env == {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}  # or a long prefill would look like death
    line = " ".join(command.argv)
    assert "--model-path /w --served-model-name m --host 127.0.0.1 --port 9003" in line
    for flag in ("--dtype bfloat16", "--context-length 4096", "--max-running-requests 8", "--tp-size 4",
                 "--enable-metrics", "--enable-deterministic-inference"):  # fmt: skip
        assert f" {flag} " in f"{line} ", flag
    assert "radix" not in line


def test_a_grammar_in_sglangs_words() -> None:
    for kind in ("json_schema", "regex", "ebnf"):
        asked = said(DIALECT, ask(grammar=Grammar(kind, "x", "</think>", "<think>")))[1]
        assert asked["sampling_params"][kind] == "x"
    for request in (ask(grammar=Grammar("regex", "ab"), output_prefix_ids=[4], max_tokens=9),
                    ask(grammar=Grammar("regex", "ab", after="</think>"))):  # fmt: skip
        with pytest.raises(ValueError, match="grammar:"):
            DIALECT.encode(request, None)
