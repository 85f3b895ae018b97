"""Tokens that are no whole characters: their bytes, and how they are found again from a text."""

from __future__ import annotations

import json
import random
import struct
from importlib.resources import files
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from twinline.lines.drivers.llamacpp import LONGEST_UNASKED, default_context
from twinline.lines.drivers.pieces import Pieces, byte_alphabet, pieces

TINY = Path(str(files("twinline") / "models" / "tiny-r1"))


def gguf(path: Path, tokens: list[str], kind: str, types: list[int] | None = None) -> Path:
    """A GGUF file of metadata alone: version 3, no tensors, values of several types before the tokens."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("a.number") + struct.pack("<If", 6, 1.5),
        text("llama.context_length") + struct.pack("<II", 4, 2048),
        text("some.flags") + struct.pack("<IIQ", 9, 7, 3) + b"\1\0\1",
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text(kind),
        text("tokenizer.ggml.merges") + struct.pack("<IIQ", 9, 8, 2) + text("a b") + text("c d"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)) + b"".join(map(text, tokens)),
    ]
    if types:
        entries.append(text("tokenizer.ggml.token_type") + struct.pack(f"<IIQ{len(types)}i", 9, 5, len(types), *types))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return path


def test_a_folder_and_a_gguf_of_its_vocabulary_give_the_same(tmp_path: Path) -> None:
    names = json.loads((TINY / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    ordered = [name for name, _ in sorted(names.items(), key=lambda item: item[1])]
    assert pieces(gguf(tmp_path / "m.gguf", ordered, "gpt2")) == pieces(TINY)


def test_the_alphabet_is_the_tokenizers() -> None:
    """Every one-byte token of tiny-r1 stands where its byte says."""
    names = json.loads((TINY / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert all(name in names for name in alphabet)


def test_any_character_is_found_again_from_its_last_token() -> None:
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    table, rng, tried = pieces(TINY), random.Random(3), 0
    for _ in range(2000):
        character = chr(rng.choice((rng.randrange(0x4E00, 0x9FFF), rng.randrange(0x1F300, 0x1FAFF), 0xE9, 0x3A9)))
        ids = tokenizer.encode(character, add_special_tokens=False).ids
        if len(ids) == 1:
            continue
        tried += 1
        found = table.missing(character.encode(), ids[-1], len(ids) - 1)
        assert found is not None
        spelt = b"".join(table.bytes_of[token] for token in (*found, ids[-1]))
        assert spelt == character.encode()
        if all(len(table.bytes_of[token]) == 1 for token in ids):
            assert found == ids[:-1]
    assert tried > 500


def test_text_before_the_character_belongs_to_the_tokens_too() -> None:
    table = Pieces({1: b" \xe4", 2: b"\xbd", 3: b"\xa0"}, {b" \xe4": 1, b"\xbd": 2, b"\xa0": 3})
    assert table.missing(" 你".encode(), 3, 2) == [1, 2]
    assert table.missing(" 你".encode(), 3, 1) is None
    assert table.missing(" 你".encode(), 2, 2) is None
    assert table.missing(" 你".encode(), 99, 2) is None


def test_of_several_ways_one_that_fits_the_count_is_found() -> None:
    spelt = {1: b"\xf0\x9f", 2: b"\xf0", 3: b"\x9f", 4: b"\x98", 5: b"\x80", 6: b"\x9f\x98"}
    table = Pieces(spelt, {value: token for token, value in spelt.items()})
    assert table.missing("😀".encode(), 5, 3) == [2, 3, 4]
    two = table.missing("😀".encode(), 5, 2)
    assert two is not None and b"".join(spelt[token] for token in two) == b"\xf0\x9f\x98"


def test_bytes_of_sentencepiece_vocabularies(tmp_path: Path) -> None:
    table = pieces(gguf(tmp_path / "m.gguf", ["<unk>", "▁the", "<0xE4>", "<0xBD>", "<0xA0>", "<0x41>"], "llama"))
    assert table.bytes_of == {2: b"\xe4", 3: b"\xbd", 4: b"\xa0"}


def test_added_tokens_are_no_pieces(tmp_path: Path) -> None:
    """An added token `é` is two bytes, not the byte that stands for it in the alphabet."""
    table = pieces(gguf(tmp_path / "m.gguf", ["é", "é", "é"], "gpt2", [4, 1, 3]))
    assert (table.bytes_of, table.token_of) == ({1: b"\xe9"}, {b"\xe9": 1})


def test_the_context_a_model_was_trained_for(tmp_path: Path) -> None:
    assert default_context(gguf(tmp_path / "m.gguf", ["a"], "gpt2")) == 2048
    assert default_context(tmp_path / "absent.gguf") == LONGEST_UNASKED


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", ["<0xE4>"], "llama")
    assert pieces(path).bytes_of == {0: b"\xe4"}
    other = gguf(tmp_path / "n.gguf", ["<0xE5>"], "llama")
    other.replace(path)
    assert pieces(path).bytes_of == {0: b"\xe5"}


def test_what_is_no_vocabulary_is_said(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer"):
        pieces(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="no GGUF"):
        pieces(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 5))
    with pytest.raises(ValueError, match="no readable metadata"):
        pieces(tmp_path / "y.gguf")
    with pytest.raises(OSError, match="absent"):
        pieces(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    "model",
    [
        '{"vocab": 5}',
        '{"vocab": [[]]}',
        '{"vocab": {"a": 1, "b": null}}',
        '{"vocab": {"a": 1e999}}',
        "5",
        "[" * 100_000,
    ],
)
def test_a_vocabulary_of_another_shape_is_said(tmp_path: Path, model: str) -> None:
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {model}}}')
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        pieces(tmp_path)


def test_a_gguf_of_another_shape_is_said(tmp_path: Path) -> None:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    tokens, kinds = text(b"tokenizer.ggml.tokens"), text(b"tokenizer.ggml.token_type")
    two = struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b")
    for number, (entries, reason) in enumerate(
        [
            ([text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000], "no readable metadata"),
            ([tokens + struct.pack("<II", 4, 7)], "no texts"),
            ([tokens + struct.pack("<IIQI", 9, 4, 1, 7)], "no texts"),
            ([tokens + two, kinds + struct.pack("<IIQi", 9, 5, 1, 1)], "a type for each"),
            ([tokens + two, kinds + struct.pack("<Ii", 5, 1)], "a type for each"),
        ]
    ):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
        with pytest.raises(ValueError, match=reason):
            pieces(path)
