"""Tokens that are no whole characters: their bytes, read from a GGUF file or a tokenizer.json.

Owns these tables and the search in them. llama.cpp's server leaves such tokens out of its streams (llamacpp.py); with
their bytes they can be put back. Must not know what a stream is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from twinline.lines.drivers.gguf import metadata

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TOKENS, _TYPES, _KIND = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.model"
_NORMAL, _BYTES = 1, 6


@dataclass(frozen=True, slots=True)
class Pieces:
    """Tokens whose bytes alone are not valid UTF-8. Of several tokens with the same bytes the lowest id stands."""

    bytes_of: Mapping[int, bytes]
    token_of: Mapping[bytes, int]

    def missing(self, text: bytes, last: int, count: int) -> list[int] | None:
        """`count` tokens that together with `last` spell `text`; None where there are none.

        There is nearly always one way only: most such tokens are single bytes. Of several the one with the longest
        first token is taken; its text is the same.
        """
        end = self.bytes_of.get(last)
        if end is None or not text.endswith(end):
            return None
        return self._spelt(text[: len(text) - len(end)], count)

    def _spelt(self, text: bytes, count: int) -> list[int] | None:
        if not count:
            return [] if not text else None
        for length in range(len(text) - count + 1, 0, -1):
            token = self.token_of.get(text[:length])
            if token is None:
                continue
            rest = self._spelt(text[length:], count - 1)
            if rest is not None:
                return [token, *rest]
        return None


def pieces(path: Path) -> Pieces:
    """From a GGUF file, or a model folder with tokenizer.json. Raises ValueError or OSError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    return _read(file, file.stat().st_mtime_ns)


@cache
def _read(file: Path, version: int) -> Pieces:
    """`version` tells a file that was replaced from the one that was read."""
    tokens, byte_level = _from_gguf(file) if file.suffix != ".json" else _from_json(file)
    bytes_of: dict[int, bytes] = {}
    token_of: dict[bytes, int] = {}
    for token, name in tokens:
        spelt = _spelling(name, byte_level)
        if spelt and not _whole(spelt):
            bytes_of[token] = spelt
            token_of.setdefault(spelt, token)
    return Pieces(bytes_of, token_of)


def _whole(spelt: bytes) -> bool:
    try:
        spelt.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's alphabet of byte-level tokens: printable bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_ALPHABET = byte_alphabet()


def _spelling(name: str, byte_level: bool) -> bytes | None:
    """A token's bytes; None for one that is not made of bytes, such as an added token."""
    if not byte_level:
        match = _BYTE.fullmatch(name)
        return bytes.fromhex(match[1]) if match else None
    try:
        return bytes(_ALPHABET[letter] for letter in name)
    except KeyError:
        return None


def _from_json(file: Path) -> tuple[Iterable[tuple[int, str]], bool]:
    try:
        model = json.loads(file.read_bytes())["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, list):  # unigram models: [piece, score]
            return [(token, str(entry[0])) for token, entry in enumerate(vocabulary)], False
        tokens = [(int(token), str(name)) for name, token in sorted(vocabulary.items(), key=lambda item: item[1])]
        return tokens, not model.get("byte_fallback", False)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} is no tokenizer.json: {error}") from error


def _from_gguf(file: Path) -> tuple[Iterable[tuple[int, str]], bool]:
    """Added tokens (special or not) are no pieces: only normal ones and single bytes are."""
    found = metadata(file, {_TOKENS, _TYPES, _KIND}.__contains__)
    if _TOKENS not in found:
        raise ValueError(f"{file} holds no tokenizer")
    names = found[_TOKENS]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} holds a tokenizer whose tokens are no texts")
    types = found.get(_TYPES) or [_NORMAL] * len(names)
    if not isinstance(types, list) or len(types) != len(names):
        raise ValueError(f"{file} does not hold a type for each of its {len(names)} tokens")
    tokens = [(token, name) for token, name in enumerate(names) if types[token] in (_NORMAL, _BYTES)]
    return tokens, found.get(_KIND) == "gpt2"
