"""Guesses by the prediction layer: they change no text, and its cache holds what one pass over the text would give,
whatever the way there: chunks, refused guesses, prefixes found again, preemption, text from another line, idle times.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import predicting
from tests.engine.checkpoints import weights, write
from tests.engine.driving import Driven, same
from tests.engine.predicting import CONFIG, HALF, VOCAB, Judge, patient, prediction
from tokenizers import Tokenizer

from twinline.cli.folder import embedded
from twinline.engine import batch as batches
from twinline.engine import chains, loop
from twinline.engine import prediction as prediction_module
from twinline.engine.metrics import Metrics
from twinline.engine.pages import Chain
from twinline.engine.payoff import Payoff
from twinline.engine.request import Request, SamplingParams
from twinline.engine.scheduler import Work
from twinline.facts.models import UnsupportedModel
from twinline.verify.problems import draw

RNG = random.Random(6)
PROMPTS = [[RNG.randrange(VOCAB) for _ in range(n)] for n in (37, 16, 1, 52, 33)]
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 9, "seed": 11},
    {"max_tokens": 1},
    {"max_tokens": 2},
    {"repetition_penalty": 1.3},
    {"min_tokens": 30, "stop_token_ids": frozenset(range(0, VOCAB, 3))},
    {"stop_token_ids": frozenset(range(0, VOCAB, 9)), "temperature": 0.8, "seed": 1},
    {"prompt_logprobs": 1},
)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predicting.folder(tmp_path_factory.mktemp("half") / "m", HALF)


@pytest.fixture(scope="module")
def certain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predicting.folder(tmp_path_factory.mktemp("certain") / "m", 0)


@pytest.fixture(scope="module")
def judge(half: Path) -> Judge:
    return Judge(half)


def said(line: Driven, request: Request) -> tuple[Any, ...]:
    outputs = line.outputs[request.id]
    logprobs = [(p.token, round(p.logprob, 3), p.rank) for o in outputs for p in o.logprobs]
    return [t for o in outputs for t in o.tokens], logprobs, outputs[-1].finish, outputs[-1].stop_token


def ran(folder: Path, asked: list[dict[str, Any]], **options: Any) -> tuple[Driven, list[Request]]:
    line = patient(Driven(folder, **options))
    requests = [line.submit(f"r{i}", **({"max_tokens": 40} | r)) for i, r in enumerate(asked)]
    line.run()
    assert line.engine.pool.free == line.engine.pool.count
    return line, requests


@pytest.mark.parametrize("how", ["mtp", "mtp 3", "ngram+mtp 2"])
@pytest.mark.parametrize("setting", SETTINGS, ids=[",".join(s) or "greedy" for s in SETTINGS])
def test_the_text_is_the_same(half: Path, setting: dict[str, Any], how: str) -> None:
    asked = [{"prompt": p} | setting for p in PROMPTS[:3]]
    source, _, depth = how.partition(" ")
    plain, before = ran(half, asked)
    guessing, after = ran(half, asked, speculation=source, draft_depth=int(depth or 1))
    for a, b in zip(before, after, strict=True):
        assert said(plain, a) == said(guessing, b)
    assert prediction(guessing).failure is None
    counters = guessing.engine.counters
    assert counters.generated_tokens == plain.engine.counters.generated_tokens
    if setting.get("repetition_penalty") or setting.get("max_tokens") == 1:
        assert counters.draft_tokens == 0  # each token's logits depend on the one before; nothing left to guess
    elif setting.get("max_tokens", 40) == 40 and not setting.get("stop_token_ids"):
        assert 0 < counters.accepted_tokens < counters.draft_tokens
        assert counters.steps < plain.engine.counters.steps


@pytest.mark.parametrize(("depth", "requests"), [(1, 1), (3, 1), (7, 1), (7, 2), (3, 4), (1, 5)])
def test_what_is_certain_is_guessed_right(certain: Path, depth: int, requests: int) -> None:
    """All guesses hold, sampled ones too, and a step gives one token and its guesses, as many as there is room for."""
    asked = [{"prompt": PROMPTS[3][i:], "temperature": 0.8, "seed": i, "max_tokens": 33} for i in range(requests)]
    line, _ = ran(certain, asked, speculation="mtp", draft_depth=depth)
    counters, each = line.engine.counters, 1 + min(depth, max(0, 8 // requests - 1))
    assert counters.accepted_tokens == counters.draft_tokens
    assert counters.steps == 1 + math.ceil(32 / each), counters  # the first token comes with the prompt


@pytest.mark.parametrize(("depth", "heat"), [(1, 0.4), (3, 0.4), (1, 0.0), (3, 0.0)])
def test_the_layers_cache_through_chunks_prefixes_and_preemption(
    half: Path, judge: Judge, depth: int, heat: float
) -> None:
    """Prompts in chunks of a few tokens, beginnings in common, text from another line, and too few pages for all."""
    line = patient(Driven(half, speculation="mtp", draft_depth=depth, kv_tokens=128, page_size=4, max_running=4,
                          max_tokens_per_step=13))  # fmt: skip
    start, seen = PROMPTS[0][:21], 0
    for i in range(7):
        own = [(i * 7 + n) % VOCAB for n in range(3 + i)]
        output = own if i % 3 == 2 else ()
        line.submit(f"r{i}", start[: 9 + 2 * i] + own, output=output, max_tokens=25 + len(output), temperature=heat * i,
                    seed=i)  # fmt: skip
    while line.engine.scheduler.has_work:
        line.step()
        seen += judge.looks(line)
    assert prediction(line).failure is None
    assert line.engine.scheduler.preemptions and line.engine.pool.hit_tokens and seen > 1000
    assert 0 < line.engine.counters.accepted_tokens < line.engine.counters.draft_tokens


def test_a_prefix_is_shared_only_where_the_next_token_is_the_same(half: Path, judge: Judge,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The layer's key of a page's last place depends on the token after the page."""
    start, at_once = PROMPTS[3][:32], {}

    def cached(name: str, rest: list[int], line: Driven) -> int:
        request = line.submit(name, start + rest, max_tokens=6)
        line.step(2)
        at_once[name] = judge.looks(line)
        line.run()
        return request.cached_tokens

    line = patient(Driven(half, speculation="mtp", page_size=16))
    assert cached("first", [1, 2, 3], line) == 0
    assert cached("same", [1, 2, 9], line) == 32
    assert cached("other", [4, 2, 3], line) == 16
    assert all(at_once.values())
    with monkeypatch.context() as m:
        m.setattr("twinline.engine.scheduler.Chain", lambda tokens, size, ahead: Chain(tokens, size))
        line = patient(Driven(half, speculation="mtp", page_size=16))
        assert cached("first", [1, 2, 3], line) == 0
        with pytest.raises(AssertionError, match="other"):
            cached("other", [4, 2, 3], line)


def test_a_page_is_known_one_token_later_and_no_page_of_a_plain_engine_is(half: Path) -> None:
    for speculation, cached in (("off", 16), ("mtp", 0)):
        line = Driven(half, speculation=speculation, page_size=16)
        line.submit("a", PROMPTS[1], max_tokens=1)
        line.run()
        again = line.submit("b", [*PROMPTS[1], 5], max_tokens=1)
        line.run()
        assert again.cached_tokens == cached, "the 17th token was never known"


def test_idle_times_are_caught_up_with(half: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than may be guessed for; then few again, and the layer takes up what it missed, unless that is too
    much."""
    line = patient(Driven(half, speculation="mtp", page_size=4))
    long = [line.submit(f"long{i}", PROMPTS[i], max_tokens=60) for i in range(2)]
    line.step(3)
    short = [line.submit(f"short{i}", PROMPTS[i], max_tokens=9, seed=i, temperature=0.5) for i in range(4)]
    guessed = line.engine.counters.draft_tokens
    line.step(4)
    trails = prediction(line)._trails
    assert line.engine.counters.draft_tokens == guessed and trails["long0"].waiting and trails["short3"].waiting
    while any(r.pages for r in short):
        line.step()
    line.step(2)
    assert line.engine.counters.draft_tokens > guessed and not trails["long0"].waiting
    assert judge.looks(line) >= sum(r.known for r in long) - 2
    line.run()
    _, again = ran(half, [{"prompt": PROMPTS[i], "max_tokens": 60} for i in range(2)])
    assert [r.output for r in long] == [r.output for r in again]

    monkeypatch.setattr(prediction_module, "LAG", 8)
    line = patient(Driven(half, speculation="mtp", page_size=4, prefix_cache=True))
    asked = [line.submit(f"r{i}", PROMPTS[0], max_tokens=9 + 20 * (i == 0), seed=i) for i in range(6)]
    line.run()
    assert line.engine.counters.draft_tokens == 0, "the prompts were too long to be kept"
    line.submit("same", PROMPTS[0], max_tokens=5)
    line.run()
    assert line.engine.counters.draft_tokens == 0, "its prefix was written while the layer was idle"
    line.submit("new", PROMPTS[3], max_tokens=5)
    line.step(2)
    assert judge.looks(line)
    line.run()
    assert line.engine.counters.draft_tokens and asked[0].output


def test_a_failing_layer_costs_no_request(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = patient(Driven(half, speculation="mtp"))
    request = line.submit("r", PROMPTS[0], max_tokens=20)
    line.step(3)

    def broken(*args: Any, **how: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(line.engine.runner, "predicted", broken)
    line.run()
    assert prediction(line).failure == "RuntimeError: no such kernel" and line.engine.failure is None
    assert request.output == ran(half, [{"prompt": PROMPTS[0], "max_tokens": 20}])[1][0].output


def test_guesses_that_are_not_numbers_are_none(half: Path) -> None:
    line = patient(Driven(half, speculation="mtp"))
    line.model.predictor.norm.weight.data.fill_(math.nan)
    request = line.submit("r", PROMPTS[0], max_tokens=20)
    line.run()
    assert line.engine.counters.draft_tokens == 0 and line.engine.failure is None
    assert request.output == ran(half, [{"prompt": PROMPTS[0], "max_tokens": 20}])[1][0].output


@pytest.mark.parametrize("heat", [0.0, 0.8])
@pytest.mark.parametrize(("depth", "requests"), [(1, 1), (3, 1), (3, 2), (1, 4)])
def test_a_chain_guesses_as_step_by_step(half: Path, judge: Judge, depth: int, requests: int, heat: float) -> None:
    """What one replay guesses, after the prompt too, and what it leaves in the cache, is what the plain way does."""
    asked = [
        {"prompt": PROMPTS[3][i:], "max_tokens": 50 - 9 * i, "temperature": heat * (i != 1), "seed": i}
        for i in range(requests)
    ]
    found = []
    for chained in (True, False):
        line = patient(Driven(half, speculation="mtp", draft_depth=depth, page_size=4))
        chains = line.engine.runner.chains
        assert chains is not None
        if not chained:
            chains.why_not = "to compare"
        elif chains.why_not is not None:
            pytest.skip(chains.why_not)
        for i, r in enumerate(asked):
            line.submit(f"r{i}", **r)
        guesses = []
        while line.engine.scheduler.has_work:
            line.step()
            guesses.append({name: trail.guess for name, trail in prediction(line)._trails.items()})
            if len(guesses) % 5 == 0:
                assert judge.looks(line)
        assert prediction(line).failure is None and bool(chains._recorded) == chained
        found.append((guesses, line.engine.counters))
    assert found[0] == found[1]


def test_chains_that_were_longest_not_asked_for_go(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"prompt": p, "max_tokens": 40 + 5 * i} for i, p in enumerate(PROMPTS[:3])]
    _, want = ran(half, asked)
    monkeypatch.setattr(chains, "MOST_RECORDED", 2)
    line, found = ran(half, asked, speculation="mtp", draft_depth=3, page_size=4)
    recorded = line.engine.runner.chains
    assert recorded is not None and (recorded.why_not or len(recorded._recorded) == 2)
    assert [r.output for r in found] == [r.output for r in want]


def test_a_replayed_prediction_gives_the_plain_ones_bits(half: Path) -> None:
    line = Driven(half, speculation="mtp")
    runner, pool = line.engine.runner, line.engine.pool
    if runner.predictor_graphs is None or runner.graphs.why_not:
        pytest.skip(str(runner.graphs.why_not))
    requests = [Request(f"r{i}", p, SamplingParams(), pages=pool.allocate(4) or []) for i, p in enumerate(PROMPTS[:2])]
    batch = batches.build(tuple(Work(r, len(r.prompt) - 1, 1) for r in requests), 16, line.device, pool.count)
    ids = torch.tensor([3, 4], device=line.device)
    previous = torch.randn(2, CONFIG["hidden_size"]).to(line.device)
    replayed = runner.predicted(batch, ids, previous, begins=False).clone()
    assert runner.predictor_graphs.why_not is None
    plain = runner.model.predict(ids, previous, batch.positions_N, batch.plan, runner.predictor_cache[0])
    assert same(replayed, plain)


def chi_square(folder: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> float:
    """How far sampled texts are from the model's distribution, in standard deviations of chi-square. The model's next
    token depends on the one before it alone, so the texts' pairs are independent draws of known probabilities."""
    line = patient(Driven(folder, speculation="mtp", threads=1))
    if monkeypatch is not None:
        monkeypatch.setattr(loop, "agreed", lambda draft, drawn: len(draft) + 1)
    texts: list[list[int]] = []
    for _ in range(6):
        asked = [
            line.submit(f"r{n}", [9, n], max_tokens=150, temperature=0.7, seed=n, logprobs=None)
            for n in range(len(texts), len(texts) + 4)
        ]
        line.run()
        texts += [[*r.prompt[-1:], *r.output] for r in asked]
    assert line.engine.counters.accepted_tokens > 900
    model = line.model
    with torch.inference_mode():
        logits = model.logits(model.norm(model.embed(torch.arange(VOCAB, device=line.device))))
        p_VV = (logits.cpu().double() / 0.7).softmax(-1)
    pairs = Counter(pair for text in texts for pair in itertools.pairwise(text))
    total, freedom = 0.0, 0
    for before, count in Counter(token for text in texts for token in text[:-1]).items():
        expected = p_VV[before] * count
        often = expected >= 5
        rest = expected[~often].sum().item()
        cells = [(pairs[before, t], expected[t].item()) for t in often.nonzero()[:, 0].tolist()]
        if rest >= 5:
            cells.append((count - sum(n for n, _ in cells), rest))
        if len(cells) > 1:
            total += sum((n - e) ** 2 / e for n, e in cells)
            freedom += len(cells) - 1
    assert freedom > 100
    return (total - freedom) / math.sqrt(2 * freedom)


def test_sampled_text_has_the_models_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over 3,600 tokens, of which guesses gave many and missed many; the same sees guesses believed."""
    tensors = predicting.tensors(0)
    p = "model.layers.3."
    noise = torch.randn(tensors[p + "eh_proj.weight"].shape, generator=torch.Generator().manual_seed(1))
    tensors[p + "eh_proj.weight"] += 0.12 * noise  # the layer's own opinion, near the model's
    folder = write(tmp_path / "m", CONFIG, tensors)
    assert abs(chi_square(folder)) < 3
    assert chi_square(folder, monkeypatch) > 10


def test_a_checkpoint_without_the_layer_is_refused(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    none = write(tmp_path / "none", CONFIG | {"num_nextn_predict_layers": 0}, tensors)
    with pytest.raises(ValueError, match=r"no prediction layer that can be loaded .*is 0.: use --speculation ngram"):
        Driven(none, speculation="mtp")
    lacking = {n: t for n, t in tensors.items() if not n.startswith("model.layers.3.")}
    folder = write(tmp_path / "lacking", CONFIG, lacking)
    with pytest.raises(UnsupportedModel, match=r"lacks .*model.layers.3.*: use --speculation ngram or off"):
        Driven(folder, speculation="mtp")
    Driven(folder, speculation="ngram")


def test_the_layer_counts_as_memory(half: Path) -> None:
    """Its cache beside the model's, and only where it is asked for."""
    plain, guessing = (Driven(half, speculation=s).engine.runner for s in ("off", "mtp"))
    assert not plain.predictor_cache and plain.model.predictor is None
    layers = [tensor for layer in guessing.cache for tensor in layer]
    assert [t.shape for layer in guessing.predictor_cache for t in layer] == [layers[0].shape]


def test_acceptance_by_source_in_the_metrics(certain: Path) -> None:
    line, _ = ran(certain, [{"prompt": PROMPTS[0]}], speculation="ngram+mtp", draft_depth=2)
    line.engine.speculation.payoff = Payoff()  # type: ignore[union-attr]
    line.engine.speculation.payoff.given_up = 3  # type: ignore[union-attr]
    metrics = Metrics("m")
    metrics.watch(line.built)
    found = {}
    for row in metrics.text().decode().splitlines():
        if "spec_decode" in row and not row.startswith("#"):
            name, value = row.rsplit(" ", 1)
            found[name] = float(value)
    sums = [0.0, 0.0, 0.0]
    for source in ("ngram", "mtp"):
        label = f'{{model_name="m",source="{source}"}}'
        for i, kind in enumerate(("drafts", "draft_tokens", "accepted_tokens")):
            sums[i] += found[f"vllm:spec_decode_num_{kind}_total{label}"]
        places = [v for n, v in found.items() if "_per_pos_total" in n and f'source="{source}"' in n]
        assert sum(places) == found[f"vllm:spec_decode_num_accepted_tokens_total{label}"] > 0
        assert places == sorted(places, reverse=True)
    counters = line.engine.counters
    assert sums[1:] == [counters.draft_tokens, counters.accepted_tokens] and 0 < sums[0] < sums[1]
    assert found['twinline:spec_decode_given_up_total{model_name="m"}'] == 3
    plain = Metrics("m")
    plain.watch(Driven(certain).built)
    assert 'vllm:spec_decode_num_draft_tokens_total{model_name="m",source="none"} 0.0' in plain.text().decode()


def test_the_embedded_models_layer_guesses_most_of_its_own_text() -> None:
    """A share of what `benchmarks/speculation.py` does over 10,000 tokens."""
    texts, steps = {}, {}
    for depth in (0, 1, 3):
        line = patient(Driven(embedded(), speculation="mtp" if depth else "off", draft_depth=depth or 1, dtype="auto"))
        tokenizer = Tokenizer.from_file(str(embedded() / "tokenizer.json"))
        found = []
        for i in range(3):
            problem = draw(random.Random(i), "add", held_out=True)
            text = f"<｜begin▁of▁sentence｜><｜User｜>{problem.question}<｜Assistant｜><think>\n"
            prompt = tokenizer.encode(text, add_special_tokens=False).ids
            found.append(line.submit(f"r{i}", prompt, max_tokens=90, stop_token_ids=frozenset([1])))
            line.run()
        texts[depth], steps[depth] = [r.output for r in found], line.engine.counters.steps
    assert texts[0] == texts[1] == texts[3] and steps[0] == sum(map(len, texts[0]))
    assert steps[0] > 1.75 * steps[1] and steps[0] > 2.7 * steps[3]
