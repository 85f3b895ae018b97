"""Token ids to text, a few at a time.

Owns the bytes that do not yet make a character. Must not know templates, tags or stop strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Vocabulary(Protocol):
    """What is needed of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def opens_plainly(self) -> bool:
        """Whether every token reads the same where it opens a text."""

    def token_bytes(self, token: int) -> bytes:
        """The token's exact bytes; empty for an id outside the vocabulary."""

    @property
    def texts(self) -> dict[int, str | None]:
        """What `whole_text` has given so far."""

    def whole_text(self, token: int) -> str | None:
        """The token's text if it is whole characters; None where it is a part of one or is not valid."""

    def opening_bytes(self, token: int) -> bytes:
        """Its bytes when it opens the text."""


class Detokenizer:
    """Text of the ids pushed so far, whole characters only.

    What `push` has returned is always the text of the first `whole` ids, no more: a stream can be continued from these
    ids on another line with nothing lost or doubled. So text waits for its token's last character, and a token that
    ends inside a character (`" "` and the first byte of `"你"`) gives nothing until that character is complete.

    The pieces joined equal `bytes.decode("utf-8", "replace")` over all the bytes. The `tokenizers` library gives the
    same, but for invalid UTF-8 in a byte-fallback vocabulary, where it replaces each byte of the whole run of byte
    tokens, its valid characters too.
    """

    def __init__(
        self,
        tokenizer: Vocabulary,
        skip_special: bool = True,
        keep: frozenset[int] = frozenset(),
        *,
        opening: bool = True,
    ) -> None:
        """`keep`: special ids shown nevertheless, such as those that mark a tool call.

        `opening`: the first id opens a text of its own (a message), so a metaspace vocabulary drops its space; False
        where the text goes on from a prompt.
        """
        self.whole = 0
        self._vocabulary = tokenizer
        special = tokenizer.special_ids
        self.skipped = (special - keep if keep else special) if skip_special else frozenset()
        self._decoder: codecs.IncrementalDecoder | None = None  # once a token comes that is not whole characters
        self._opening = self._opening_when_whole = opening and not tokenizer.opens_plainly
        self._waiting = ""
        self._pushed = 0

    @property
    def even(self) -> bool:
        """Whole characters have come, and nothing is waited for: nearly always."""
        return not self._waiting and not self._opening and self._pushed == self.whole

    def past(self, ids: int) -> None:
        """So many ids of whole characters were made text elsewhere; it must be even."""
        self._pushed = self.whole = self.whole + ids

    def push(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        if self.even:
            text_of = self._vocabulary.whole_text
            parts = []
            for token in ids:
                text = "" if token in self.skipped else text_of(token)
                if text is None:
                    break
                parts.append(text)
            else:
                self._pushed += len(parts)
                self.whole = self._pushed
                return "".join(parts)
        ready = ""
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = _new_decoder("replace")
        for token in ids:
            self._pushed += 1
            if token not in self.skipped:
                self._waiting += decoder.decode(self._bytes(token))
            if not decoder.getstate()[0]:
                ready += self._waiting
                self._waiting = ""
                self.whole = self._pushed
                self._opening_when_whole = self._opening
        return ready

    def cut(self) -> None:
        """Forgets the ids after the first `whole`: as if they had not been pushed."""
        if self._decoder is not None:
            self._decoder.reset()
        self._waiting = ""
        self._pushed = self.whole
        self._opening = self._opening_when_whole

    def finish(self) -> str:
        """The rest: bytes that no further id will complete become U+FFFD. `whole` stays where it was."""
        if self._decoder is None:
            return ""
        rest = self._waiting + self._decoder.decode(b"", True)
        self._waiting = ""
        return rest

    def _bytes(self, token: int) -> bytes:
        data = self._vocabulary.token_bytes(token)
        if self._opening and data:
            self._opening = False
            return self._vocabulary.opening_bytes(token)
        return data
