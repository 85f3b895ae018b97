from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import decoders, models

from twinline.facts.pieces import PieceRule

PIECES = ["▁", "▁a", "▁▁", "a", "你", "<0x20>", "<0x41>"]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence(LLAMA),
        decoders.Sequence(LLAMA[:3]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]),
        decoders.Metaspace(prepend_scheme="first"),
    ],
    ids=["llama", "gemma", "metaspace", "never", "bare"],
)
def test_metaspace_decoders_as_the_library_reads_them(decoder: decoders.Decoder) -> None:
    library = tokenizers.Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(PIECES)}, merges=[]))
    library.decoder = decoder
    rule = PieceRule.of(json.loads(library.to_str())["decoder"])
    for first in range(len(PIECES)):
        for second in range(len(PIECES)):
            ours = rule.opening_bytes(PIECES[first]) + rule.to_bytes(PIECES[second])
            assert ours.decode() == library.decode([first, second])


def test_every_byte_has_its_letter() -> None:
    rule = PieceRule.of({"type": "ByteLevel"})
    pieces = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    assert sorted(rule.to_bytes(piece) for piece in pieces) == [bytes([byte]) for byte in range(256)]
    assert rule.to_bytes("<｜a｜>") == "<｜a｜>".encode()


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""},
        {"type": "CTC"},
    ],
)
def test_a_decoder_that_cannot_be_followed_exactly_is_refused(step: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"step {step['type']}"):
        PieceRule.of({"type": "Sequence", "decoders": [step]})
