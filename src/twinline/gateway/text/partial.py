"""How much of a text's end could still become one of some words: what a streaming matcher must hold back."""

from __future__ import annotations

from collections.abc import Sequence


def open_end(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of one of `words`."""
    longest = 0
    for word in words:
        size = len(word) - 1
        tail = text[-size:] if size else ""
        at = tail.find(word[0])
        while at >= 0:  # the first that fits is the longest
            if word.startswith(tail[at:]):
                longest = max(longest, len(tail) - at)
                break
            at = tail.find(word[0], at + 1)
    return longest
