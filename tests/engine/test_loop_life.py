"""Random lives of whole engines with far too few pages: every request gets the tokens that it would get alone."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from tests.engine.tiny import VOCAB, alone, ask, drain, heard, load_tiny, make_engine, write_checkpoint
from torch import Tensor

from twinline.engine import loop
from twinline.engine.batch import Batch
from twinline.engine.build import Built
from twinline.engine.request import Output, Request, SamplingParams, TokenLogprob
from twinline.engine.scheduler import QueueFull

STEPS = 60  # in which requests arrive
ROUNDING = 1e-4  # by which a logit may differ between a row computed alone and in a batch


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    torch.set_num_threads(1)
    return load_tiny(write_checkpoint(tmp_path_factory.mktemp("tiny")))


def settings(rng: random.Random, carried: int) -> SamplingParams:
    """Any mix of what a request may ask for."""
    chosen: dict[str, Any] = {"max_tokens": carried + rng.randint(1, 20), "seed": rng.getrandbits(63)}
    chosen["temperature"] = rng.choice([0.0, 0.0, 0.3, 1.0])
    if rng.random() < 0.3:
        chosen |= rng.choice([{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}])
    if rng.random() < 0.4:
        chosen |= rng.choice([{"repetition_penalty": 1.3}, {"frequency_penalty": 0.7, "presence_penalty": -0.4}])
    if rng.random() < 0.2:
        chosen["logit_bias"] = ((rng.randrange(VOCAB), 3.0), (rng.randrange(VOCAB), -100.0))
    if rng.random() < 0.4:
        chosen["stop_token_ids"] = frozenset(rng.sample(range(VOCAB), 12))
        chosen["min_tokens"] = rng.randint(0, min(carried + 4, chosen["max_tokens"]))
    if rng.random() < 0.3:
        chosen["logprobs"] = rng.choice([0, 3])
    if rng.random() < 0.3:
        chosen["prompt_logprobs"] = rng.choice([0, 3])
    return SamplingParams(**chosen)


class Life:
    """An engine whose model is interrupted: requests arrive and are aborted between steps and in the midst of them."""

    def __init__(self, built: Built, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        size = rng.choice([1, 2, 4])
        max_running = rng.randint(3, 7)
        self.max_model_len = rng.choice([36, 48])
        self.engine = make_engine(
            built,
            size=size,
            pages=rng.randint(48, 72) // size,
            prefix_cache=rng.random() < 0.8,
            max_running=max_running,
            max_waiting=8,
            max_tokens_per_step=max_running + rng.randint(1, 24),
            max_model_len=self.max_model_len,
        )
        self.stems = [[rng.randrange(VOCAB) for _ in range(26)] for _ in range(3)]
        self.requests: dict[str, Request] = {}
        self.ended: Counter[str] = Counter()
        self.now = 0.0
        self.real_hidden, self.engine.runner.hidden = self.engine.runner.hidden, self.hidden  # type: ignore[method-assign]
        self.engine.observe = lambda request, now: self.ended.update([request.id])
        self.forgotten: list[str] = []
        self.engine.sampler.forget = self.forgotten.append  # type: ignore[method-assign,assignment]
        self.arriving = True

    def monotonic(self) -> float:
        return self.now

    def hidden(self, batch: Batch) -> Tensor:
        """The model's pass, with other threads at work meanwhile."""
        if self.rng.random() < 0.3:
            thread = threading.Thread(target=self.disturb)
            thread.start()
            thread.join(10)
            assert not thread.is_alive(), "submit or abort waits for a step to end"
        return self.real_hidden(batch)

    def disturb(self) -> None:
        rng = self.rng
        while self.arriving and rng.random() < 0.25:
            self.arrive()
        if self.requests and rng.random() < 0.04:
            self.engine.abort(rng.choice(list(self.requests)))

    def arrive(self) -> None:
        rng = self.rng
        prompt = rng.choice(self.stems)[: rng.choice([0, 3, 8, 8, 16, 25])]
        prompt = prompt + [rng.randrange(VOCAB) for _ in range(rng.randint(1, 4))]
        output = [rng.randrange(VOCAB) for _ in range(rng.choice([0, 0, 0, 1, 5]))]
        request = Request(
            f"r{len(self.requests)}",
            prompt,
            settings(rng, len(output)),
            output=output,
            priority=rng.choice([0, 0, 0, 1, 2]),
            deadline=self.now + rng.randint(1, 60) if rng.random() < 0.1 else None,
        )
        try:
            self.engine.submit(request)
        except (QueueFull, ValueError):
            assert request not in self.engine.scheduler
        else:
            self.requests[request.id] = request

    def step(self) -> None:
        running = [r for r in self.requests.values() if r.pages]
        if running and self.rng.random() < 0.1:
            self.engine.scheduler.preempt(self.rng.choice(running))
        self.now += 1
        self.engine.step()
        self.engine.scheduler.check_integrity()

    def run(self) -> None:
        for _ in range(STEPS):
            self.disturb()
            self.step()
        self.arriving = False
        # The first running request computes a token in every step, and loses them at most once for each before it.
        live = [r for r in self.requests.values() if r in self.engine.scheduler]
        bound = sum(len(r.prompt) + r.params.max_tokens for r in live) * max(1, len(live))
        for _ in range(bound):
            if not self.engine.scheduler.has_work:
                break
            self.step()
        assert not self.engine.scheduler.has_work, "somebody starved"


def rounding_explains(built: Built, request: Request, index: int, token: int) -> bool:
    """Whether the token at `index` of the output could be `token` if two logits were off by ROUNDING."""
    given = ask("again", request.prompt)
    given.output, given.params = request.output[:index], request.params
    engine = make_engine(built, prefix_cache=False, max_running=1)
    rows: list[Tensor] = []
    real = engine.runner.logits

    def logits(hidden: Tensor, wanted: Sequence[int]) -> Tensor:
        rows.append(real(hidden, wanted))
        return rows[-1]

    engine.runner.logits = logits  # type: ignore[method-assign,assignment]
    engine.submit(given)
    while given.known == len(request.prompt) + index:
        engine.step()
    row = rows[-1][-1:].clone()
    row[0, given.output[-1]] -= ROUNDING
    row[0, token] += ROUNDING
    del given.output[index:]
    return engine.sampler.sample(row, [given]).tokens == [token]


def close(a: TokenLogprob | None, b: TokenLogprob | None) -> bool:
    if a is None or b is None:
        return a is b
    values = [(x, y) for (_, x), (_, y) in zip(a.top, b.top, strict=True)]
    return a.token == b.token and all(abs(x - y) < 1e-3 for x, y in [*values, (a.logprob, b.logprob)])


def check_as_alone(built: Built, request: Request, got: list[Output], max_model_len: int) -> None:
    want = alone(built, request, max_model_len=max_model_len)
    tokens, expected = ([t for o in outputs for t in o.tokens] for outputs in (got, want))
    for i, (a, b) in enumerate(zip(tokens, expected, strict=False)):
        if a != b:
            assert rounding_explains(built, request, request.carried + i, a), f"token {i} is {a}, alone {b}"
            return
    assert len(tokens) <= len(expected)
    if got[-1].finish not in ("abort", "deadline"):
        assert len(tokens) == len(expected)
        assert (got[-1].finish, got[-1].stop_token) == (want[-1].finish, want[-1].stop_token)
    pairs = zip((p for o in got for p in o.logprobs), (p for o in want for p in o.logprobs), strict=False)
    assert all(close(a, b) for a, b in pairs)
    if request.params.logprobs is not None:
        assert all(len(o.logprobs) == len(o.tokens) for o in got)
    if request.params.prompt_logprobs is not None and tokens:
        ours, theirs = got[0].prompt_logprobs, want[0].prompt_logprobs
        assert ours is not None and theirs is not None
        assert len(ours) == len(theirs) == len(request.prompt)
        assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert [o.prompt_logprobs for o in got[1:]] == [None] * (len(got) - 1)


@pytest.mark.parametrize("seed", range(14))
def test_every_request_gets_what_it_would_get_alone(built: Built, seed: int) -> None:
    life = Life(built, seed)
    with mock.patch.object(loop, "time", life):
        life.run()
    engine = life.engine
    assert engine.pool.free == engine.pool.count, "pages leaked"
    assert engine.failure is None and engine.counters.finished["error"] == 0
    assert set(life.ended) == set(life.requests) == set(heard(engine).outputs)
    assert set(life.ended.values()) <= {1}
    assert sorted(life.forgotten) == sorted(life.requests)
    for name, request in life.requests.items():
        got = heard(engine).outputs[name]
        assert [o.finish is None for o in got] == [True] * (len(got) - 1) + [False]
        check_as_alone(built, request, got, life.max_model_len)
    assert engine.scheduler.preemptions > 0


def test_prompt_logprobs_survive_a_preemption(built: Built) -> None:
    """Thrown out between two chunks of its prompt, a request computes again and reports each place once."""
    engine = make_engine(built, max_tokens_per_step=9)
    request = ask("a", 30, prompt_logprobs=2, logprobs=1)
    engine.submit(request)
    for chunks in (1, 2):
        for _ in range(chunks):
            engine.step()
        engine.scheduler.preempt(request)
    drain(engine)
    assert request.preemptions == 2
    check_as_alone(built, ask("a", 30, prompt_logprobs=2, logprobs=1, output=[]), heard(engine).outputs["a"], 256)
