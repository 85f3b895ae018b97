"""The driver: a closed list of options, and a command line that the process understands."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from twinline.lines.drivers import driver
from twinline.lines.protocol import TokenRequest
from twinline.lines.spec import LineSpec
from twinline.train.tokenizer import build

SPEC = LineSpec(name="a", model="m", engine="simulated", chip="some-chip", slots=7, context=300)
SIMULATED = driver("simulated")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decode_tokens": 4}, "options.decode_tokens"),
        ({"kv_tokens": 1.5}, "kv_tokens: must be a whole number"),
        ({"decode_tokens_per_second": "fast"}, "decode_tokens_per_second: must be a number"),
        ({"decode_tokens_per_second": True}, "must be a number"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"fault": {"mode": "explode"}}, "options.fault: Invalid enum value 'explode'"),
        ({"fault": {"mode": "reset", "after": 3}}, "options.fault"),
        ({"decode_tokens_per_second": 4.0, "decode_step_seconds": 0.1}, "exclude"),
    ],
)
def test_an_option_that_cannot_be_obeyed_is_named(options: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        SIMULATED.check(replace(SPEC, options=options))


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: .* tokenizer.json"):
        SIMULATED.check(replace(SPEC, weights=str(tmp_path)))


def test_the_process_obeys_and_says_what_it_is(tmp_path: Path) -> None:
    build(tmp_path)
    options = {"decode_tokens_per_second": 500, "fault": {"mode": "slow", "factor": 2.0}, "max_waiting": 3}
    spec = replace(SPEC, weights=str(tmp_path), options=options)
    SIMULATED.check(spec)
    argv = [*SIMULATED.command(spec, 0).argv, "--watch-stdin"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=20)
    assert ready["ready"] and ready["port"] and process.returncode == 0
    assert (ready["label"], ready["max_model_len"], ready["model"]) == ("simulated some-chip", 300, "m")


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    argv = SIMULATED.command(replace(SPEC, weights=str(tmp_path)), 0).argv
    done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=20, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "tokenizer.json" in json.loads(done.stdout)["error"]


def test_it_speaks_the_line_protocol_and_shows_its_label() -> None:
    request = TokenRequest(model="m", prompt=[1], request_id="r", output_prefix_ids=[2])
    path, body = SIMULATED.dialect(SPEC).encode(request, None)
    assert path == "/v1/completions" and json.loads(body)["output_prefix_ids"] == [2]
    listed = {"data": [{"id": "m", "max_model_len": 9, "label": "simulated some-chip", "owned_by": "x"}]}
    assert SIMULATED.facts(listed) == {"max_model_len": 9, "label": "simulated some-chip"}
    assert not SIMULATED.features & {"logprobs", "prompt_logprobs", "logit_bias"}
