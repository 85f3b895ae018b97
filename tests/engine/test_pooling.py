"""Vectors of texts against `transformers` and a pooling by hand: alone, among others, in chunks, after a prefix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engine import checkpoints, embedders
from tests.engine.driving import Driven
from torch import Tensor

from twinline.engine.build import read_model
from twinline.engine.pooling import Pool
from twinline.engine.request import Request, SamplingParams
from twinline.engine.scheduler import TooLong
from twinline.facts.models import UnsupportedModel
from twinline.facts.pooling import MODES, PROMPTS, Mode, Pooling

TOLERANCE = 1e-5  # the vectors are of length 1, the model's arithmetic float32
SMALL = {"page_size": 8, "max_tokens_per_step": 40, "kv_tokens": 1024}


class Embedding(Driven):
    """An engine of vectors, and their reference."""

    def __init__(self, of: embedders.Embedder, **options: object) -> None:
        super().__init__(of.folder, **(SMALL | options))
        self.of = of

    def text(self, name: str, ids: Sequence[int]) -> Request:
        assert self.built.pooling is not None
        request = Request(name, list(ids), SamplingParams(max_tokens=1), pool=Pool(self.built.pooling))
        self.engine.submit(request)
        return request

    def vector(self, request: Request) -> Tensor:
        (output,) = self.outputs[request.id]
        assert output.finish == "stop" and not output.tokens and output.vector is not None
        return torch.from_numpy(np.frombuffer(output.vector, "<f4").copy())

    def far(self, request: Request) -> float:
        """The largest difference from the reference."""
        return float((self.vector(request).double() - self.of.vector(request.prompt)).abs().max())


def ids(seed: int, count: int, vocab: int = 331) -> list[int]:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> embedders.Embedder:
    """The layout of Qwen3-Embedding: the causal model's name, the backbone's tensors, the last token, normalized."""
    return embedders.save(tmp_path_factory.mktemp("qwen3-embedding"))


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> embedders.Embedder:
    """A Qwen2 with a head in its file that is of no use, and a mean over all tokens that is not normalized."""
    folder = tmp_path_factory.mktemp("qwen2-mean")
    return embedders.save(folder, "qwen2", "mean_tokens", normalize=False, bare=False)


def test_a_prompt_that_clients_have_to_write_is_warned_of(
    qwen3: embedders.Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in qwen3.folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    prompts = {"prompts": {"query": "Query: ", "document": ""}, "default_prompt_name": None}
    (tmp_path / PROMPTS).write_text(json.dumps(prompts))
    read_model(tmp_path)
    assert not caplog.records
    (tmp_path / PROMPTS).write_text(json.dumps(prompts | {"default_prompt_name": "query"}))
    read_model(tmp_path)
    assert "'Query: ' before each text" in caplog.text and PROMPTS in caplog.text


def test_one_text(qwen3: embedders.Embedder, order: tuple[str, ...]) -> None:
    engine = Embedding(qwen3)
    text = engine.text("one", ids(1, 21))
    engine.run()
    assert engine.far(text) < TOLERANCE
    assert abs(float(engine.vector(text).norm()) - 1) < 1e-6


def test_a_token_alone(qwen3: embedders.Embedder) -> None:
    """It is computed as a decode is."""
    engine = Embedding(qwen3)
    texts = [engine.text(str(i), ids(i, 1)) for i in range(5)]
    engine.run()
    assert max(map(engine.far, texts)) < TOLERANCE


def test_many_texts_in_one_batch_are_each_their_own(qwen3: embedders.Embedder) -> None:
    engine = Embedding(qwen3, max_running=16)
    texts = [engine.text(str(i), ids(i, 3 + 7 * i)) for i in range(12)]
    engine.run()
    assert max(map(engine.far, texts)) < TOLERANCE


def test_what_a_text_shares_the_batch_with_does_not_move_a_bit(qwen3: embedders.Embedder) -> None:
    alone, among = Embedding(qwen3), Embedding(qwen3)
    one = alone.text("one", ids(1, 30))
    alone.run()
    texts = [among.text(str(i), ids(50 + i, 9)) for i in range(3)]
    same = among.text("one", ids(1, 30))
    among.run()
    assert texts and torch.equal(alone.vector(one), among.vector(same))


@pytest.mark.parametrize("mode", embedders.FLAGS)
def test_every_mode_over_chunks(mode: str, qwen3: embedders.Embedder, tmp_path: Path) -> None:
    """A text of several chunks, whose first ones share their steps with others."""
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(qwen3.folder / file)
    normalize = mode in ("lasttoken", "mean_tokens")
    embedders.modules(tmp_path, mode, normalize=normalize)
    engine = Embedding(embedders.Embedder(tmp_path, qwen3.backbone, mode, normalize), max_running=4)
    texts = [engine.text("short", ids(3, 11)), engine.text("long", ids(4, 150)), engine.text("longer", ids(5, 190))]
    engine.run()
    assert engine.engine.counters.steps >= 8
    assert max(map(engine.far, texts)) < (TOLERANCE if normalize else 1e-4)


@pytest.mark.parametrize("family", ["qwen3", "mean"])
def test_texts_that_begin_alike(family: str, request: pytest.FixtureRequest) -> None:
    """The last token's state may stand on pages of an earlier text; a mean wants every state and takes none."""
    engine = Embedding(request.getfixturevalue(family))
    first = engine.text("first", ids(7, 80))
    engine.run()
    second = engine.text("second", ids(7, 64) + ids(8, 9))
    again = engine.text("again", ids(7, 80))
    engine.run()
    assert max(map(engine.far, (first, second, again))) < 1e-4
    hits = (second.cached_tokens, again.cached_tokens)
    assert hits == ((64, 72) if family == "qwen3" else (0, 0))


def test_a_mean_begins_anew_after_a_preemption(mean: embedders.Embedder) -> None:
    engine = Embedding(mean, max_tokens_per_step=20, max_running=4)
    text = engine.text("one", ids(9, 70))
    engine.step(2)
    assert 0 < text.computed < 70
    engine.engine.scheduler.preempt(text)
    engine.run()
    assert text.preemptions == 1 and engine.far(text) < 1e-4


def test_e5_mistral(tmp_path: Path) -> None:
    """MistralModel with a window: a text may be as long as it."""
    of = embedders.save(tmp_path, "mistral", architecture="MistralModel", sliding_window=96)
    engine = Embedding(of)
    assert engine.built.max_model_len == 96
    text = engine.text("one", ids(2, 96))
    engine.run()
    assert engine.far(text) < TOLERANCE


@pytest.mark.parametrize("weights", ["int8"])
def test_a_form_of_weights(weights: str, qwen3: embedders.Embedder) -> None:
    """Near, as a quantized model is; and the head that is not there is in nobody's way."""
    engine = Embedding(qwen3, weights=weights)
    text = engine.text("one", ids(1, 21))
    engine.run()
    cosine = float(engine.vector(text).double() @ qwen3.vector(text.prompt))
    assert 0.98 < cosine < 1 - 1e-9


def test_float16_without_a_head_keeps_the_size_of_its_states(tmp_path: Path) -> None:
    """The tied head would take back what the smaller residual stream loses; without one nothing may be added."""
    of = embedders.save(tmp_path, "qwen3", "mean_tokens", normalize=False)
    engine = Embedding(of, dtype="float16")
    text = engine.text("one", ids(1, 21))
    engine.run()
    wanted = of.vector(text.prompt)
    assert float((engine.vector(text).double() - wanted).norm() / wanted.norm()) < 0.02


def test_a_text_may_fill_the_context_and_no_more(mean: embedders.Embedder) -> None:
    engine = Embedding(mean, max_model_len=50)
    text = engine.text("one", ids(1, 50))
    with pytest.raises(TooLong, match="the text has 51 tokens and at most 50 are allowed: shorten it by 1"):
        engine.text("two", ids(1, 51))
    engine.run()
    assert engine.far(text) < 1e-4


def test_a_text_may_fill_the_cache_and_no_more(mean: embedders.Embedder) -> None:
    engine = Embedding(mean, kv_tokens=48)
    assert engine.built.max_model_len == 48
    text = engine.text("one", ids(1, 48))
    with pytest.raises(TooLong, match="at most 48"):
        engine.text("two", ids(1, 49))
    engine.run()
    assert engine.far(text) < 1e-4


def test_the_folder_may_allow_less_than_the_context(qwen3: embedders.Embedder, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(qwen3.folder / file)
    embedders.modules(tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 77}')
    assert Driven(tmp_path, **SMALL).built.max_model_len == 77


def test_states_that_are_not_numbers_fail_their_text_alone(qwen3: embedders.Embedder) -> None:
    engine = Embedding(qwen3, prefix_cache=False)
    poisoned = 5
    engine.model.embed.weight.data[poisoned] = float("nan")
    heard = []
    engine.engine.deliver = heard.extend
    engine.text("good", ids(1, 21, vocab=5))
    engine.text("bad", [1, 2, poisoned])
    engine.run()
    found = {output.request_id: output for output in heard}
    assert found["good"].vector is not None and found["good"].error is None
    assert found["bad"].vector is None and "hidden states are NaN or infinite for request bad" in found["bad"].error


def test_a_pool_copies_what_a_step_will_write_again() -> None:
    pool, rows = Pool(Pooling("lasttoken", normalize=False)), torch.ones(3, 4)
    pool.take(rows, 0)
    rows.zero_()
    assert pool.vector() == np.ones(4, "<f4").tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_holds_one_row_and_not_its_chunk(mode: Mode) -> None:
    pool = Pool(Pooling(mode, normalize=False))
    for start in (0, 50):
        pool.take(torch.ones(50, 4, dtype=torch.bfloat16), start)
        assert pool._state_X is not None and pool._state_X.dtype == torch.float32
        assert pool._state_X.untyped_storage().nbytes() == 4 * 4


def test_nothing_is_guessed_for_vectors(qwen3: embedders.Embedder) -> None:
    with pytest.raises(ValueError, match="speculation: this model gives vectors"):
        Driven(qwen3.folder, speculation="ngram")


def test_a_backbone_of_which_nothing_says_how_it_is_pooled(qwen3: embedders.Embedder, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(qwen3.folder / "model.safetensors")
    config = json.loads((qwen3.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3Model"]}))
    with pytest.raises(UnsupportedModel, match=r"has no modules.json: it can neither generate nor be pooled"):
        Driven(tmp_path)


def test_names_without_model_before_them_generate_too(tmp_path: Path) -> None:
    """Where the head is tied, the backbone's file is all there is."""
    of = embedders.save(tmp_path)
    (tmp_path / "modules.json").unlink()
    engine = Driven(tmp_path)
    prompt = ids(1, 12)
    states = of.backbone(torch.tensor([prompt])).last_hidden_state[0]
    wanted = (states @ of.backbone.embed_tokens.weight.T).detach()
    assert float((engine.logits(prompt) - wanted).abs().max()) < 1e-3
    assert checkpoints.FAMILIES["qwen3"][1]["tie_word_embeddings"]
