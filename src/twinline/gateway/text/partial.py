"""How much of a text's end could still become one of some words: what a streaming matcher must hold back."""

from __future__ import annotations

from collections.abc import Sequence


def open_end(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of one of `words`."""
    longest = max((len(word) for word in words), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        end = text[-size:]
        if any(len(word) > size and word.startswith(end) for word in words):
            return size
    return 0
