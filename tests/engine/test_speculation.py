"""Guesses change how many steps a text takes, and nothing of the text."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import load_file, save_file
from tests.engine.driving import Driven
from tests.engine.predicting import patient
from tests.engine.tiny import VOCAB, write_checkpoint

from twinline.engine.ngram import LONGEST, MOST_LEARNT, Lookup
from twinline.engine.request import Request, SamplingParams
from twinline.engine.speculation import Speculation, agreed, ahead

RNG = random.Random(4)
LOOP = [5, 9, 31, 8, 77, 12]
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 0.3, "top_p": 0.9, "seed": 11},
    {"logprobs": 2},
    {"max_tokens": 23},
    {"repetition_penalty": 1.3},
    {"min_tokens": 30, "stop_token_ids": frozenset(range(0, VOCAB, 3))},
    {"stop_token_ids": frozenset(range(0, VOCAB, 7))},
    {"prompt_logprobs": 1},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("speculation"))


def ran(folder: Path, requests: list[dict[str, Any]], **options: Any) -> tuple[Driven, list[Request]]:
    driven = patient(Driven(folder, prefix_cache=False, **options))
    asked = [driven.submit(f"r{i}", **({"max_tokens": 60} | r)) for i, r in enumerate(requests)]
    driven.run()
    assert driven.engine.pool.free == driven.engine.pool.count
    return driven, asked


def prompts(count: int) -> list[dict[str, Any]]:
    """Prompts that repeat themselves, so that there is something to guess from; one that does not."""
    found = [LOOP[i % 3 :] * 4 + LOOP[: i % 5] for i in range(count - 1)]
    return [{"prompt": p} for p in [*found, [RNG.randrange(VOCAB) for _ in range(9)]]]


def said(driven: Driven, request: Request) -> tuple[Any, ...]:
    outputs = driven.outputs[request.id]
    logprobs = [(p.token, round(p.logprob, 4), p.rank) for o in outputs for p in o.logprobs]
    return [t for o in outputs for t in o.tokens], logprobs, outputs[-1].finish, outputs[-1].stop_token


@pytest.mark.parametrize("setting", SETTINGS, ids=[",".join(s) or "greedy" for s in SETTINGS])
def test_the_text_is_the_same(folder: Path, setting: dict[str, Any]) -> None:
    asked = [p | setting for p in prompts(3)]
    plain, before = ran(folder, asked)
    guessing, after = ran(folder, asked, speculation="ngram")
    for a, b in zip(before, after, strict=True):
        assert said(plain, a) == said(guessing, b)
        assert a.output == b.output
    counters = guessing.engine.counters
    assert counters.generated_tokens == plain.engine.counters.generated_tokens
    assert counters.accepted_tokens <= counters.draft_tokens
    if setting.get("repetition_penalty"):
        assert counters.draft_tokens == 0  # each token's logits depend on the one before


def test_a_text_in_a_circle_takes_few_steps(folder: Path, tmp_path: Path) -> None:
    """A model whose layers add nothing: a token follows from the one before, so a greedy text soon runs in a circle."""
    shutil.copytree(folder, tmp_path / "circle")
    file = tmp_path / "circle" / "model.safetensors"
    tensors = load_file(file)
    silent = {name: t * 0 for name, t in tensors.items() if name.endswith(("o_proj.weight", "down_proj.weight"))}
    save_file(tensors | silent, file, metadata={"format": "pt"})
    asked = [{"prompt": LOOP, "max_tokens": 200}]
    plain, before = ran(tmp_path / "circle", asked)
    guessing, after = ran(tmp_path / "circle", asked, speculation="ngram")
    counters = guessing.engine.counters
    assert before[0].output == after[0].output
    assert counters.steps == plain.engine.counters.steps - counters.accepted_tokens
    assert counters.steps < 80 and counters.accepted_tokens > 0.7 * counters.draft_tokens


def test_many_pages_preemptions_and_late_arrivals(folder: Path) -> None:
    """A cache so small that requests are sent back, and guesses must not take what others need."""
    asked = [p | {"seed": i, "temperature": 0.2} for i, p in enumerate(prompts(7))]
    plain, before = ran(folder, asked, kv_tokens=128, page_size=4, max_running=4, max_tokens_per_step=16)
    guessing, after = ran(folder, asked, kv_tokens=128, page_size=4, max_running=4, max_tokens_per_step=16,
                          speculation="ngram")  # fmt: skip
    assert [r.output for r in before] == [r.output for r in after]
    assert guessing.engine.scheduler.preemptions and plain.engine.scheduler.preemptions


def test_guesses_are_made_while_others_wait_for_a_place(folder: Path) -> None:
    """Who waits for a place takes no row of the step; who could enter it goes first."""
    driven = patient(Driven(folder, speculation="ngram", max_running=2))
    for i in range(3):
        driven.submit(f"r{i}", [*LOOP * 3, i], max_tokens=60)
    scheduler = driven.engine.scheduler
    driven.step(3)
    assert (scheduler.running, scheduler.waiting, len(scheduler.decoding)) == (2, 1, 2)
    driven.engine.abort("r0")
    driven.engine._end_aborted_and_late()
    assert (scheduler.running, scheduler.waiting, len(scheduler.decoding)) == (1, 1, 0)


def test_a_prefix_that_was_guessed_is_found_again(folder: Path) -> None:
    driven = patient(Driven(folder, speculation="ngram", page_size=4))
    first = driven.submit("first", LOOP * 3, max_tokens=60)
    driven.run()
    assert driven.engine.counters.accepted_tokens
    second = driven.submit("second", [*first.prompt, *first.output[:40]], max_tokens=20)
    driven.run()
    assert second.cached_tokens >= len(first.prompt) + 36
    assert second.output == first.output[40:60]


def test_wrong_guesses_become_short_and_rare() -> None:
    guesses, request = Speculation(8, Lookup()), Request("r", LOOP * 3, SamplingParams(max_tokens=1000))
    made = []
    for _ in range(200):
        draft = guesses.drafts([request], 10_000).get("r")
        made.append(len(draft or ()))
        if draft:
            guesses.heard(request, len(draft), 0)
    assert made[0] == 3 and made[-1] <= 1 and sum(map(bool, made)) < 12
    for _ in range(100):
        if draft := guesses.drafts([request], 10_000).get("r"):
            guesses.heard(request, len(draft), len(draft))
    assert draft is not None and len(draft) == LONGEST


def test_a_long_prompt_is_learnt_over_several_steps() -> None:
    """Others decode in those steps; a prompt of 120,000 tokens would hold one of them up for half a second."""
    others = list(range(1000, 1000 + 2 * MOST_LEARNT))  # no two alike
    request = Request("r", [5, 9, 31, 8, *others, 77, 12, 44, *others[:50], 31, 8, 77, 12], SamplingParams())
    source, asked = Lookup(), []

    def tokens(start: int, end: int) -> list[int]:
        asked.append(end - start)
        return Request.tokens(request, start, end)

    watched = cast(Request, SimpleNamespace(id="r", arrival=0, known=request.known, tokens=tokens))
    guesses = [source.guess(watched, 3) for _ in range(4)]
    assert guesses == [[], [], [44, *others[:2]], [44, *others[:2]]]
    assert max(asked) <= MOST_LEARNT + 4


def test_guesses_keep_to_the_room_that_is_left() -> None:
    def drafts(count: int, **params: Any) -> list[int]:
        guesses = Speculation(8, Lookup())
        asked = [Request(f"r{i}", LOOP * 5, SamplingParams(**({"max_tokens": 50} | params))) for i in range(count)]
        found = guesses.drafts(asked, 40)
        return [len(found.get(r.id, ())) for r in asked]

    assert drafts(1) == [3] and drafts(2) == [3, 3] and drafts(4) == [1] * 4 and drafts(5) == [0] * 5
    assert drafts(1, max_tokens=1) == [0] and drafts(1, max_tokens=3) == [2]
    assert drafts(1, max_tokens=1000) == [3]
    assert drafts(1, presence_penalty=0.1) == drafts(1, logit_bias=((1, 1.0),)) == drafts(1, min_tokens=1) == [0]


def test_what_holds_of_a_guess() -> None:
    assert agreed([], [7]) == 1 and agreed([7, 8], [7, 8, 9]) == 3
    assert agreed([7, 8], [7, 9, 9]) == 2 and agreed([7, 8], [6, 8, 9]) == 1
    request = Request("r", [1, 2], SamplingParams(seed=4), output=[3])
    assert ahead(request, ()) is request and ahead(request, (8, 9)).known == 5


def test_an_unknown_way_to_guess_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"speculation 'eagle' is not known: use off or ngram or mtp or ngram.mtp"):
        Driven(folder, speculation="eagle")
    with pytest.raises(ValueError, match="draft_depth must be between 1 and 7, not 8"):
        Driven(folder, speculation="mtp", draft_depth=8)
