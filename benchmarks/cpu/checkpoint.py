"""Writes random checkpoints, for speed only: their text means nothing, and kernels take the same time for any values.

Owns the file: safetensors written tensor by tensor, so that no checkpoint is ever held in memory, and a tokenizer that
every engine loads. Must not know what is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np
from benchmarks.cpu.shapes import CIRCLES, SHAPES, Config, tensors, values

DEVIATION = 0.02  # as models are initialised: nothing overflows, in any number of layers
FLOAT32 = ("e_score_correction_bias",)  # as DeepSeek publishes it
DRAWN = 2**24 + 43  # values drawn, and repeated: no period of a matrix's rows divides it
CIRCLE = 16  # tokens: each is followed by the next of its sixteen
END = "<|endoftext|>"  # as Qwen calls it: readers of its shape add it where it is missing, beyond the vocabulary


def make(shape: str, folder: Path) -> Path:
    """The checkpoint of a shape of SHAPES in `folder`; one that is whole stays as it is."""
    if (folder / "config.json").is_file():
        return folder
    config = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "model.unfinished"
    with unfinished.open("wb") as file:
        write(config, file, in_circles=shape in CIRCLES)
    unfinished.replace(folder / "model.safetensors")
    write_tokenizer(config["vocab_size"], folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))  # last: it says that all is there
    return folder


def write(config: Config, file: BinaryIO, in_circles: bool = False) -> None:
    """Header and values in safetensors' format: little-endian length, JSON of offsets, then the bytes in that order.

    What is said goes `in_circles` where the layers' norms are 0, so that they add nothing to a token's embedding, and a
    token's row of the head is the embedding of the one before it. All else is read and multiplied as ever.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors(config):
        wide = name.endswith(FLOAT32)
        size = values(shape) * (4 if wide else 2)
        header[name] = {"dtype": "F32" if wide else "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    drawn = bfloat16(np.random.default_rng(0).standard_normal(DRAWN, np.float32) * DEVIATION)
    begin = 0
    for name, shape in tensors(config):
        if name.endswith(FLOAT32):
            file.write(np.zeros(values(shape), "<f4").tobytes())
        elif len(shape) == 1:
            nothing = name.endswith("bias") or (in_circles and name.endswith("layernorm.weight"))
            file.write(bfloat16(np.full(values(shape), 0.0 if nothing else 1.0, np.float32)).tobytes())
        elif in_circles and name == "lm_head.weight":
            _follow(drawn, shape, file)
        else:
            begin = _repeat(drawn, begin, values(shape), file)


def _repeat(drawn: np.ndarray, begin: int, count: int, file: BinaryIO) -> int:
    """Writes `count` values that go round in `drawn` from `begin`; where the next matrix begins."""
    while count:
        part = drawn[begin : begin + count]
        file.write(part.tobytes())
        count -= len(part)
        begin = (begin + len(part)) % len(drawn)
    return begin


def _follow(drawn: np.ndarray, shape: tuple[int, ...], file: BinaryIO) -> None:
    """A head by which every token is followed by the next of its circle. Embeddings were drawn first."""
    tokens, hidden = shape
    for token in range(0, tokens, CIRCLE):
        count = min(CIRCLE, tokens - token)
        places = np.arange(token * hidden, (token + count) * hidden) % len(drawn)
        file.write(np.roll(drawn[places].reshape(count, hidden), 1, axis=0).tobytes())


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to bfloat16, to the nearest even; finite values only."""
    bits = values.view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")


def write_tokenizer(vocab: int, folder: Path) -> None:
    """A byte-level BPE trained on this package's own text, filled up to `vocab` entries that no text leads to."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
    tokenizer.train_from_iterator(texts, trainer)
    whole = json.loads(tokenizer.to_str())
    words = whole["model"]["vocab"]
    words.update({f"Ġ~{number:x}": number for number in range(len(words), vocab)})
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END, "pad_token": END})
    )
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
