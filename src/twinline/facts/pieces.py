"""What bytes a vocabulary's piece stands for, as the folder's tokenizer.json declares by its decoder.

Owns the two families of vocabularies: byte-level (GPT-2's alphabet, a letter per byte) and metaspace with byte fallback
(sentencepiece's `▁` and `<0xNN>`). Knows no token ids and does not decode UTF-8.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's printable letter of each byte, reversed (openai/gpt-2, src/encoder.py, bytes_to_unicode)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


@dataclass(frozen=True, slots=True)
class PieceRule:
    """How pieces become bytes.

    `strip_space`: one space at the very start of a decoded text is dropped. `first_drops`: this letter is dropped from
    the first piece of a decoded text (what the library's Metaspace decoder does). A *literal* piece is its own text.
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip_space: bool = False
    first_drops: str = ""

    @classmethod
    def of(cls, decoder: Mapping[str, Any] | None) -> PieceRule:
        """From the `decoder` object of a tokenizer.json. Raises ValueError for one that cannot be followed exactly."""
        if decoder is None:
            raise ValueError("it has no decoder")
        rule, fused = cls(), False
        for step in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
            rule = rule._with(step, fused)
            fused = fused or step["type"] == "Fuse"
        return rule

    def _with(self, step: Mapping[str, Any], fused: bool) -> PieceRule:
        match step:
            case {"type": "ByteLevel"}:
                return replace(self, byte_level=True)
            case {"type": "ByteFallback"}:
                return replace(self, byte_fallback=True)
            case {"type": "Fuse"}:
                return self
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                return replace(self, replacements=(*self.replacements, (old, new)))
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0} if fused:
                return replace(self, strip_space=start == 1)
            case {"type": "Metaspace", "replacement": str(mark)} if not fused:
                kept = step.get("prepend_scheme") == "never" or step.get("add_prefix_space") is False
                spaced = (*self.replacements, (mark, " "))
                return replace(self, replacements=spaced, first_drops="" if kept else mark)
        raise ValueError(f"its decoder step {step.get('type')} is neither byte-level nor metaspace with byte fallback")

    def to_bytes(self, piece: str, literal: bool = False) -> bytes:
        """The exact bytes of a piece anywhere but at the start of a text."""
        if literal:
            return piece.encode()
        if self.byte_level:
            byte_of = _byte_of_letter()
            if all(letter in byte_of for letter in piece):
                return bytes(byte_of[letter] for letter in piece)
            return piece.encode()
        if self.byte_fallback and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        for old, new in self.replacements:
            piece = piece.replace(old, new)
        return piece.encode()

    def opening_bytes(self, piece: str, literal: bool = False) -> bytes:
        """The bytes of a piece that opens a text: the space that encoding put there is taken away."""
        if self.first_drops and not literal:
            piece = piece.replace(self.first_drops, "")
        data = self.to_bytes(piece, literal)
        return data.removeprefix(b" ") if self.strip_space else data
