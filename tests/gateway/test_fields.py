"""Fields beyond OpenAI's core: log-probabilities of the prompt, what a stream tells of its use, cut prompts, fields
that change nothing (told by a header) and fields that would (refused).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.harness import MAX_MODEL_LEN, Gateway
from tests.gateway.several import Several, run
from tests.lines.line_double import Script, alternatives, logprob

from twinline.gateway.api_types import IGNORED, NOT_SUPPORTED


def judged(door: Gateway, ids: list[int], k: int) -> list[Any]:
    """What the double's log-probabilities of a prompt must read like."""
    rows: list[Any] = [None]
    for token in ids[1:]:
        best = sorted(alternatives(token, k).items(), key=lambda pair: -pair[1])
        ranked = {other: (p, place) for place, (other, p) in enumerate(best[:k], 1)}
        ranked[token] = (logprob(token), 1)  # the double says so of every token
        rows.append({str(other): pair for other, pair in ranked.items()})
    return rows


@pytest.mark.parametrize("k", [0, 2])
def test_log_probabilities_of_a_prompt(door: Gateway, k: int) -> None:
    door.says("</think>yes")
    text = door.complete(prompt_logprobs=k, n=2).json()
    chat = door.chat(prompt_logprobs=k).json()
    for found, prompt in [
        *((choice["prompt_logprobs"], door.tokenizer.encode("Hi", special=True)) for choice in text["choices"]),
        (chat["prompt_logprobs"], door.asked()["prompt"]),
    ]:
        pairs = [row and {t: (e["logprob"], e["rank"]) for t, e in row.items()} for row in found]
        assert pairs == judged(door, prompt, k)
        for row in found[1:]:
            assert {t: e["decoded_token"] for t, e in row.items()} == {t: shown(door, int(t)) for t in row}
    assert door.asked()["prompt_logprobs"] == k and chat["choices"][0]["message"]["content"] == "yes"
    assert all("prompt_logprobs" not in body for body in (door.chat().json(), door.complete().json()["choices"][0]))


def shown(door: Gateway, token: int) -> str:
    data = door.tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def test_a_prompt_is_scored_without_generating(door: Gateway) -> None:
    answer = door.complete(prompt_logprobs=1, max_tokens=0).json()
    assert answer["choices"][0]["text"] == "" and answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    error = door.complete(prompt_logprobs=1, stream=True).json()["error"]
    assert error["param"] == "prompt_logprobs" and "stream false" in error["message"]


@pytest.mark.parametrize("chat", [False, True])
def test_prompt_log_probabilities_and_bias_outlast_a_break(tiny_folder: Path, chat: bool) -> None:
    """The line that computed them tells them, once; the next goes on with the same bias and is asked for no more."""

    async def test(made: Several) -> None:
        tokens = made.says("</think>one two three", "b")
        for after in (0, 1, len(tokens) - 1):
            made.supply.restarted(made.line("a"))
            made.doubles["a"].script = lambda request, after=after: Script(tokens, fault="reset", fault_after=after)
            fields: dict[str, Any] = {"prompt_logprobs": 1, "logit_bias": {"9": 2.5}, "max_tokens": len(tokens)}
            answer = (await (made.chat if chat else made.complete)(**fields)).json()
            choice = answer["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"].removeprefix("</think>")
            assert text == "one two three"
            scored = answer if chat else choice
            assert len(scored["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
            asked = made.asked("b")[-1]
            assert asked["output_prefix_ids"] == tokens[: len(asked["output_prefix_ids"])]
            assert asked["logit_bias"] == {"9": 2.5}
            assert asked["prompt_logprobs"] == (None if after else 1)

    run(tiny_folder, ["a", "b"], test)


@pytest.mark.parametrize("chat", [False, True])
def test_every_chunk_tells_what_was_used(door: Gateway, chat: bool) -> None:
    tokens = door.says("It is 你好.</think>\n\n👋 4")
    options = {"include_usage": True, "continuous_usage_stats": True}
    ask = door.chat if chat else door.complete
    text = ask(stream=True, n=2, max_tokens=len(tokens), stream_options=options).text
    *chunks, last = [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]
    prompt = len(door.asked()["prompt"])
    for index in (0, 1):
        usages = [chunk["usage"] for chunk in chunks if chunk["choices"][0]["index"] == index]
        made = [usage["completion_tokens"] for usage in usages]
        assert made == sorted(made) and made[-1] == len(tokens) and len(set(made)) > 5
        assert {usage["prompt_tokens"] for usage in usages} == {prompt}
        assert all(usage["total_tokens"] == prompt + usage["completion_tokens"] for usage in usages)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 2 * len(tokens)
    alone = ask(stream=True, max_tokens=len(tokens), stream_options={"continuous_usage_stats": True}).text
    assert '"usage"' not in alone  # as in vLLM, it needs include_usage


def test_a_prompt_is_cut_from_the_left(door: Gateway) -> None:
    ids = door.tokenizer.encode("one two three four", special=True)
    for prompt in ("one two three four", ids):
        answer = door.complete(prompt=prompt, truncate_prompt_tokens=3, echo=True, max_tokens=2).json()
        assert door.asked()["prompt"] == ids[-3:] and answer["usage"]["prompt_tokens"] == 3
        assert answer["choices"][0]["text"].startswith(door.tokenizer.decode(ids[-3:]))
        door.complete(prompt=prompt, truncate_prompt_tokens=300)
        assert door.asked()["prompt"] == ids
    long = "one two three four " * 5000
    assert door.complete(prompt=long).status_code == 400
    for asked in (door.complete, door.chat):
        given = {"prompt": long} if asked == door.complete else {"messages": [{"role": "user", "content": long}]}
        asked(**given, truncate_prompt_tokens=100)
        assert len(door.asked()["prompt"]) == 100
    door.complete(prompt=long, truncate_prompt_tokens=100)
    assert door.asked()["prompt"] == door.tokenizer.encode(long, special=False)[-100:]
    door.complete(prompt=[5] * 1000, truncate_prompt_tokens=-1, max_tokens=6)
    assert len(door.asked()["prompt"]) == MAX_MODEL_LEN - 6
    door.chat(truncate_prompt_tokens=4)
    assert len(door.asked()["prompt"]) == 4 and door.asked()["max_tokens"] == MAX_MODEL_LEN - 4
    assert door.complete(truncate_prompt_tokens=0).json()["error"]["param"] == "truncate_prompt_tokens"
    door.complete(add_special_tokens=False)
    assert door.asked()["prompt"] == door.tokenizer.encode("Hi", special=False)


def test_what_has_no_effect_is_told_by_a_header(door: Gateway) -> None:
    door.says("</think>x")
    for ask in (door.chat, door.complete):
        for stream in (False, True):
            given = ask(user="u", store=True, metadata={"a": "b"}, service_tier="flex", stream=stream)
            assert given.status_code == 200
            assert given.headers["warning"] == '299 twinline "ignored: user, store, metadata, service_tier"'
        plain = ask(store=False, metadata={}, service_tier="auto", user=None, unknown=1)
        assert plain.status_code == 200 and "warning" not in plain.headers
        refused = ask(store=True, top_p=7)
        assert refused.status_code == 400
    for name in IGNORED:
        assert door.chat(**{name: "high"}).headers["warning"] == f'299 twinline "ignored: {name}"'


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_would_change_an_answer_is_refused(door: Gateway, name: str) -> None:
    for ask in (door.chat, door.complete):
        error = ask(**{name: [7]}).json()["error"]
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        for harmless in (None, [], *(NOT_SUPPORTED[name] or (False,))):
            assert ask(**{name: harmless}).status_code == 200


def test_what_is_switched_off_would_change_an_answer_too(door: Gateway) -> None:
    for name in ("detokenize", "include_reasoning", "spaces_between_special_tokens"):
        assert door.chat(**{name: False}).json()["error"]["param"] == name


def test_what_only_completions_have_is_refused_in_chats(door: Gateway) -> None:
    for name in ("echo", "return_token_ids"):
        assert door.chat(**{name: True}).json()["error"]["param"] == name
