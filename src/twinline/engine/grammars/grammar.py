"""What a request's answer must look like, and what the engine needs of whoever can hold it to that.

Owns the words: a grammar as it comes, a grammar compiled, a matcher that follows one answer. Knows no library that
compiles one and no way in which text travels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np

Kind = Literal["json_schema", "regex", "ebnf", "structural_tag"]
KINDS: tuple[str, ...] = get_args(Kind)

LONGEST_TEXT = 2**18  # characters
LONGEST_MARKER = 64


class BadGrammar(ValueError):
    """A grammar that nobody can be held to: malformed, unsupported, too large, or too slow to compile."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """`kind` says how `text` is to be read: a JSON schema, a regular expression that matches the whole answer, an EBNF
    grammar whose first rule is `root` (GGML's notation), or xgrammar's structural tag (JSON).

    `after`: the grammar begins when the output has said this text, such as `</think>`; empty: at once. `opener`: it
    waits for `after` only where the output opens with this token's text, such as `<think>`; empty: in any case.
    Raises BadGrammar for a kind that is not known, an empty text or one that is too long.
    """

    kind: str
    text: str
    after: str = ""
    opener: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadGrammar(f"grammar.kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not self.text:
            raise BadGrammar("grammar.text is empty")
        if len(self.text) > LONGEST_TEXT:
            raise BadGrammar(f"grammar.text has {len(self.text)} characters, at most {LONGEST_TEXT} are allowed")
        if "\0" in self.text:
            raise BadGrammar("grammar.text holds the character U+0000")
        for name, marker in (("after", self.after), ("opener", self.opener)):
            if len(marker) > LONGEST_MARKER:
                raise BadGrammar(f"grammar.{name} has {len(marker)} characters, at most {LONGEST_MARKER} are allowed")
        if self.opener and not self.after:
            raise BadGrammar("grammar.opener says where text before the answer begins: give grammar.after, its end")


class Matcher(Protocol):
    """One answer as it grows. Every token accepted can be taken back."""

    def accept(self, token: int) -> bool:
        """Goes on by a token; false, and nothing has changed, if the grammar does not let it follow."""

    def accept_bytes(self, data: bytes) -> bool:
        """The same for text that is no whole token; it counts as one token for `take_back`."""

    def take_back(self, count: int) -> None:
        """Forgets the last `count` accepted."""

    def allow(self, words: np.ndarray) -> bool:
        """Writes which tokens may follow: int32, bit i of word i // 32 for token i, no stop tokens among them.

        True where the answer may end.
        """


class Compiled(Protocol):
    """A grammar ready for any number of answers."""

    def matcher(self, stops: frozenset[int]) -> Matcher:
        """For an answer that these tokens end; they are no text of it."""


def words_of(size: int, tokens: Iterable[int]) -> np.ndarray:
    """A set of tokens in the form of `Matcher.allow`, for a vocabulary of `size`."""
    bits = np.zeros(-(-size // 32) * 32, dtype=np.uint8)
    bits[np.fromiter(tokens, dtype=np.int64)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
