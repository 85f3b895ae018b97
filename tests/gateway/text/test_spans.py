"""Remembered spans give exactly the library's ids, whatever stands around them and whatever was remembered before."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.gateway.text.spans import Spans

CORPUS = ["the fox jumps over the dog", "你好 世界", "def f(x):\n    return 10", "a\n\n b", "naïve café 😀"] * 20
ADDED = ["<|user|>", "<|user|>s", "<|end|>", "<think>", "</think>", "ú", "a<", "1"]
TEXT = st.lists(
    st.one_of(st.sampled_from([*ADDED, " ", "\n", "\n\n", "the fox", "<|us", "er|>", "你", "😀", "10", "é", "́"]),
              st.text(max_size=6)),
    max_size=12,
).map("".join)  # fmt: skip


def library(normalizer: bool, late: bool) -> tokenizers.Tokenizer:
    """A byte-level vocabulary with merges. `late`: half of its added tokens are looked for after normalizing."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    if normalizer:
        made.normalizer = tokenizers.normalizers.NFC()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet))
    made.add_tokens([
        tokenizers.AddedToken(text, normalized=late and number % 2 == 1) for number, text in enumerate(ADDED)
    ])  # fmt: skip
    return made


@pytest.mark.parametrize("normalizer", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_ids_are_the_librarys(normalizer: bool, late: bool) -> None:
    backend = library(normalizer, late)
    # Room for a few dozen spans: generations change all the time, and what was used is carried over.
    spans = Spans(backend, json.loads(backend.to_str()), 6000)

    @settings(max_examples=300, deadline=None)
    @given(TEXT)
    def same(text: str) -> None:
        assert spans.encode(text) == backend.encode(text, add_special_tokens=False).ids
        assert spans.encode(text) == backend.encode(text, add_special_tokens=False).ids

    same()


def test_a_turn_more_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = library(False, False)
    asked: list[str] = []

    class Counting:
        get_added_tokens_decoder = staticmethod(backend.get_added_tokens_decoder)

        @staticmethod
        def encode_batch_fast(texts: list[str], add_special_tokens: bool) -> list[tokenizers.Encoding]:
            asked.extend(texts)
            return list(backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens))

    spans = Spans(Counting(), json.loads(backend.to_str()))  # type: ignore[arg-type]
    first = "<|user|>the fox<|end|>a dog"
    spans.encode(first)
    spans.encode(first + "<|user|>and now<|end|>")
    assert asked == ["the fox", "a dog", "and now"]


def test_memory_is_bounded() -> None:
    backend = library(False, False)
    spans = Spans(backend, json.loads(backend.to_str()), 20_000)
    for number in range(2000):
        spans.encode(f"text {number}")
    spans.encode("x" * 100_000)
    kept = [*spans._young, *spans._old]
    assert 10 < len(kept) < 200
    assert all(len(text) < 1000 for text in kept)


def test_threads_share_it() -> None:
    backend = library(True, True)
    spans = Spans(backend, json.loads(backend.to_str()), 4000)
    texts = [f"<|user|>fox {number % 40}<|end|> dog {number % 7}" for number in range(400)]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(spans.encode, texts))
    assert got == [backend.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize("fault", ["lstrip", "rstrip", "single_word"])
def test_greedy_added_tokens_are_refused(fault: str) -> None:
    backend = library(False, False)
    backend.add_tokens([tokenizers.AddedToken("<greedy>", **{fault: True})])
    with pytest.raises(ValueError, match="beside"):
        Spans(backend, json.loads(backend.to_str()))


def test_pre_tokenizers_that_look_around_are_refused() -> None:
    backend = library(False, False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Metaspace(), tokenizers.pre_tokenizers.ByteLevel()]
    )
    with pytest.raises(ValueError, match="beyond"):
        Spans(backend, json.loads(backend.to_str()))


def test_the_projects_own_model_has_it(tiny_dir: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(tiny_dir / "tokenizer.json"))
    text = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>What is 17+25?<｜Assistant｜><think>\n"
    spans = Spans(backend, json.loads(backend.to_str()))
    assert spans.encode(text) == backend.encode(text, add_special_tokens=False).ids
