"""Model folders for the text layer's tests: byte-level, sentencepiece-like, and the project's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from twinline.gateway.text.tokenizer import Tokenizer
from twinline.train.tokenizer import build

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def main():\n    return [x for x in range(10)]\n\n",
    "一个端点，两条平行的算力供应线；同样的答案，不同的价格。",
    "你好，世界！你好，模型！",
    "emoji: 😀 👩‍🚀 🇨🇳 ❤️ café naïve Ελληνικά",
] * 4


def write(directory: Path, tokenizer: tokenizers.Tokenizer, **config: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return directory


@pytest.fixture(scope="session")
def byte_level_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>", "<｜tool▁calls▁begin｜>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think>", "</think>", "ú"])
    folder = tmp_path_factory.mktemp("byte_level")
    return write(folder, tokenizer, add_bos_token=True, bos_token="<|begin|>", eos_token={"content": "<|end|>"})


@pytest.fixture(scope="session")
def metaspace_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Llama 2's: `▁` for a space, bytes for what the vocabulary lacks, one leading space added and taken away."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("你", "好"), ("▁▁", "▁▁")]
    for piece in [*"▁abcdefghijklmnopqrstuvwxyz.,!你好世界", *("".join(pair) for pair in merges)]:
        vocab.setdefault(piece, len(vocab))
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("metaspace")
    return write(folder, tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_r1")
    build(folder)
    return folder


@pytest.fixture(scope="session", params=["byte_level_dir", "metaspace_dir", "tiny_dir"])
def model_dir(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def byte_level(byte_level_dir: Path) -> Tokenizer:
    return Tokenizer.load(byte_level_dir)


@pytest.fixture(scope="session")
def metaspace(metaspace_dir: Path) -> Tokenizer:
    return Tokenizer.load(metaspace_dir)


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> Tokenizer:
    return Tokenizer.load(tiny_dir)
