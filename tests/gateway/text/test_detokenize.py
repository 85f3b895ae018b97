from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from twinline.gateway.text.detokenize import Detokenizer
from twinline.gateway.text.tokenizer import Tokenizer


class Bytes:
    """A vocabulary in which token 0 is special and the others are given."""

    special_ids = frozenset({0})
    opens_plainly = True

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = (b"<special>", *tokens)

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token]

    opening_bytes = token_bytes

    def whole_text(self, token: int) -> str | None:
        try:
            return self.tokens[token].decode("utf-8")
        except UnicodeDecodeError:
            return None


def stream(detokenizer: Detokenizer, ids: list[int], cuts: list[int]) -> str:
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return "".join(detokenizer.push(ids[a:b]) for a, b in pairwise(edges)) + detokenizer.finish()


@settings(deadline=None)
@given(text=st.text(), cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_the_stream_is_the_librarys_decoding(model_dir: Path, text: str, cuts: list[int]) -> None:
    library, ours = _loaded(model_dir)
    ids = ours.encode(text, special=True)
    if any(ours.token(i) == "ú" for i in ids):  # the library's own defect, see test_tokenizer
        return
    assert stream(Detokenizer(ours), ids, cuts) == library.decode(ids) == ours.decode(ids)
    shown = Detokenizer(ours, skip_special=False)
    assert stream(shown, ids, cuts) == library.decode(ids, skip_special_tokens=False)


@settings(deadline=None)
@given(data=st.data())
def test_any_ids_of_a_byte_level_vocabulary(byte_level_dir: Path, data: st.DataObject) -> None:
    """Half characters and invalid bytes included."""
    library, ours = _loaded(byte_level_dir)
    ordinary = st.integers(0, ours.vocab_size + 3).filter(lambda i: ours.token(i) != "ú")
    ids = data.draw(st.lists(ordinary, max_size=30))
    cuts = data.draw(st.lists(st.integers(0, 1000), max_size=5))
    assert stream(Detokenizer(ours), ids, cuts) == library.decode(ids)


@given(st.lists(st.binary(max_size=5), max_size=12))
def test_invalid_bytes_as_the_whole_would_be_decoded(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer(Bytes(*pieces))
    text = "".join(detokenizer.push([i]) for i in range(1, len(pieces) + 1)) + detokenizer.finish()
    assert text == b"".join(pieces).decode("utf-8", "replace")


@given(st.lists(st.binary(max_size=5), max_size=12))
def test_what_was_sent_is_the_text_of_the_whole_tokens(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer(Bytes(*pieces))
    sent = ""
    for i in range(1, len(pieces) + 1):
        sent += detokenizer.push([i])
        assert sent == b"".join(pieces[: detokenizer.whole]).decode("utf-8", "replace")


def test_whole_counts_up_to_the_last_complete_character() -> None:
    detokenizer = Detokenizer(Bytes(b"a", b" \xe4", b"\xbd", b"\xa0", b"\xff"))
    seen = [(detokenizer.push([i]), detokenizer.whole) for i in (1, 2, 3, 0, 4, 0, 5, 2)]
    assert seen == [("a", 1), ("", 1), ("", 1), ("", 1), (" 你", 5), ("", 6), ("�", 7), ("", 7)]
    assert detokenizer.finish() == " �"
    assert detokenizer.finish() == ""
    assert detokenizer.whole == 7


def test_kept_special_tokens_are_shown(byte_level: Tokenizer) -> None:
    begin, end, tool = 0, 1, 2
    word = byte_level.encode("the", special=False)
    detokenizer = Detokenizer(byte_level, keep=frozenset({tool}))
    assert detokenizer.push([begin, *word, tool, end]) == "the<｜tool▁calls▁begin｜>"


@pytest.mark.parametrize("skip", [True, False])
def test_only_the_first_space_of_metaspace_text_goes(metaspace: Tokenizer, skip: bool) -> None:
    ids = metaspace.encode("the the", special=True)
    detokenizer = Detokenizer(metaspace, skip_special=skip)
    pieces = [detokenizer.push([i]) for i in ids]
    assert "".join(pieces) == ("the the" if skip else "<s> the the")


def test_an_invalid_byte_token_does_not_spoil_its_neighbours(metaspace: Tokenizer) -> None:
    """The library replaces every byte of the run; a stream cannot know where the run will end."""
    run = [3 + byte for byte in (0xFF, *"é".encode())]
    assert Detokenizer(metaspace).push(run) == "�é"
    assert metaspace.decode(run) == "�é"


_cache: dict[Path, tuple[tokenizers.Tokenizer, Tokenizer]] = {}


def _loaded(folder: Path) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    if folder not in _cache:
        _cache[folder] = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.load(folder)
    return _cache[folder]


def test_what_goes_on_from_a_prompt_keeps_its_first_space(metaspace: Tokenizer) -> None:
    ids = metaspace.encode("the cat", special=False)
    assert Detokenizer(metaspace).push(ids) == "the cat"
    assert Detokenizer(metaspace, opening=False).push(ids) == " the cat"
