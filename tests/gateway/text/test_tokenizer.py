from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers

from twinline.gateway.text.tokenizer import Tokenizer

TEXTS = [
    "the fox",
    "  two leading spaces",
    "你好，世界！ 😀 👩‍🚀",
    "line\n\nline\ttab",
    "naïve café ▁ æøå",
    "",
    " ",
    "<think>x</think>",
]


@pytest.fixture
def copy(byte_level_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(byte_level_dir, tmp_path / "model"))


def edit(path: Path, **fields: object) -> None:
    value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**value, **fields}), "utf-8")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_the_librarys(model_dir: Path, text: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    ours = Tokenizer.load(model_dir)
    ids = ours.encode(text, special=False)
    assert ids == library.encode(text, add_special_tokens=False).ids
    with_bos = ours.encode(text, special=True)
    assert with_bos == [ours.bos_id, *ids]
    assert ours.decode(with_bos) == library.decode(with_bos)
    assert ours.decode(with_bos, skip_special=False) == library.decode(with_bos, skip_special_tokens=False)


def test_token_bytes_join_to_the_text(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    text = "the 你好 😀 café\n"
    joined = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text, special=False))
    assert joined.decode().removeprefix(" ") == text


def test_pieces_and_bytes(byte_level: Tokenizer, metaspace: Tokenizer) -> None:
    space = byte_level.encode(" ", special=False)[0]
    assert (byte_level.token(space), byte_level.token_bytes(space)) == ("Ġ", b" ")
    assert metaspace.token_bytes(3 + 0xE4) == b"\xe4"
    the = metaspace.encode("the", special=False)[0]
    assert (metaspace.token(the), metaspace.token_bytes(the), metaspace.opening_bytes(the)) == ("▁the", b" the", b"the")
    assert metaspace.token_bytes(1) == b"<s>"


def test_added_tokens_are_their_own_text(byte_level: Tokenizer) -> None:
    """The library's decoder gives U+FFFD for an added token in the letters of the byte alphabet."""
    ids = byte_level.encode("ú<｜tool▁calls▁begin｜>", special=False)
    assert len(ids) == 2
    assert byte_level.token_bytes(ids[0]) == "ú".encode()
    assert byte_level.token_bytes(ids[1]) == "<｜tool▁calls▁begin｜>".encode()
    assert byte_level.decode(ids) == "ú"


def test_an_id_outside_the_vocabulary_is_nothing(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    outside = tokenizer.vocab_size
    assert (tokenizer.token(outside), tokenizer.token_bytes(outside)) == ("", b"")
    assert tokenizer.token(outside - 1) != ""
    assert tokenizer.decode([outside, *tokenizer.encode("the", special=False)]) == "the"


def test_one_bos_however_it_comes(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    assert tokenizer.bos_id is not None
    text = tokenizer.token(tokenizer.bos_id) + "the"
    assert tokenizer.encode(text, special=True).count(tokenizer.bos_id) == 1
    assert tokenizer.encode("", special=True) == [tokenizer.bos_id]


def test_no_bos_unless_asked_for(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", add_bos_token=False)
    tokenizer = Tokenizer.load(copy)
    assert tokenizer.encode("the", special=True) == tokenizer.encode("the", special=False)
    edit(copy / "tokenizer_config.json", add_bos_token=True, bos_token=None)
    tokenizer = Tokenizer.load(copy)
    assert tokenizer.bos_id is None
    assert tokenizer.encode("the", special=True) == tokenizer.encode("the", special=False)


def test_named_tokens_of_the_special_tokens_map(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", bos_token=None, eos_token=None)
    edit(copy / "special_tokens_map.json", bos_token="<|begin|>", eos_token={"content": "<|end|>"})
    tokenizer = Tokenizer.load(copy)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, {1})


def test_eos_generation_config_then_config_then_name(copy: Path) -> None:
    assert Tokenizer.load(copy).eos_ids == {1}
    edit(copy / "config.json", eos_token_id=7)
    assert Tokenizer.load(copy).eos_ids == {7}
    edit(copy / "generation_config.json", eos_token_id=None)
    assert Tokenizer.load(copy).eos_ids == {7}
    edit(copy / "generation_config.json", eos_token_id=[8, 9])
    assert Tokenizer.load(copy).eos_ids == {8, 9}
    edit(copy / "generation_config.json", eos_token_id=8)
    assert Tokenizer.load(copy).eos_ids == {8}
    edit(copy / "generation_config.json", eos_token_id="8")
    with pytest.raises(ValueError, match="eos_token_id must be"):
        Tokenizer.load(copy)


def test_trap_31_every_end_token_of_a_list(copy: Path) -> None:
    """Qwen and GLM end in one of several: a line that is told of the first alone would not stop at the others."""
    edit(copy / "generation_config.json", eos_token_id=[9, 8, 1])
    tokenizer = Tokenizer.load(copy)
    assert (tokenizer.eos_ids, tokenizer.eos_list) == ({1, 8, 9}, [1, 8, 9])


def test_special_ids(byte_level: Tokenizer, tiny: Tokenizer, copy: Path) -> None:
    assert byte_level.special_ids == {0, 1, 2}
    assert {tiny.token(i) for i in tiny.special_ids} >= {"<｜User｜>", "<｜Assistant｜>"}
    assert all(tiny.token(i) not in ("<think>", "</think>") for i in tiny.special_ids)
    think = byte_level.encode("<think>", special=False)[0]
    edit(copy / "tokenizer_config.json", additional_special_tokens=["<think>"], pad_token="!")
    changed = Tokenizer.load(copy)
    assert changed.special_ids == {0, 1, 2, think}
    assert changed.decode(changed.encode("the!", special=False)) == "the!"


def test_an_eos_that_is_only_in_the_vocabulary_is_recognised(metaspace_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(metaspace_dir, tmp_path / "model"))
    document = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    edit(folder / "tokenizer.json", added_tokens=[t for t in document["added_tokens"] if t["content"] == "<s>"])
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("</s>", special=False)[-1] == 2
    assert 2 in tokenizer.special_ids


def test_training_settings_do_not_cut_or_fill_a_prompt(copy: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(copy / "tokenizer.json"))
    library.enable_truncation(4)
    library.enable_padding(length=8)
    library.save(str(copy / "tokenizer.json"))
    assert len(Tokenizer.load(copy).encode("1 2 3 4 5 6 7 8 9", special=False)) > 8
    assert len(Tokenizer.load(copy).encode("1", special=False)) == 1


def test_encoding_from_many_threads(byte_level: Tokenizer) -> None:
    expected = [byte_level.encode(text, special=True) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda i: byte_level.encode(TEXTS[i % len(TEXTS)], special=True), range(400)))
    assert all(ids == expected[i % len(TEXTS)] for i, ids in enumerate(many))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("tokenizer.json", None, "cannot read .*tokenizer.json"),
        ("tokenizer.json", '{"version": "1.0"}', "is not a tokenizer"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "is not a tokenizer"),
        ("tokenizer_config.json", None, "cannot read .*tokenizer_config.json"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token must be"),
        ("generation_config.json", "{", "is not valid JSON"),
        ("config.json", "[" * 100_000, "is not valid JSON"),
        ("config.json", '{"text_config": "a"}', "text_config must be an object"),
        ("tokenizer_config.json", '{"additional_special_tokens": 5}', "must be a list of tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "must be an object"),
    ],
)
def test_missing_and_corrupt_files_say_so_in_one_line(copy: Path, name: str, text: str | None, reason: str) -> None:
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text, "utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        Tokenizer.load(copy)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_binary_file(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        Tokenizer.load(tmp_path / "nowhere")
    (copy / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not UTF-8"):
        Tokenizer.load(copy)


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}])
def test_a_vocabulary_of_another_family_is_refused(copy: Path, decoder: object) -> None:
    edit(copy / "tokenizer.json", decoder=decoder)
    with pytest.raises(ValueError, match="cannot be used: it"):
        Tokenizer.load(copy)
