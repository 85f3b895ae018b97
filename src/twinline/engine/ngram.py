"""Guesses from what a request has said and was told: n-gram speculation (prompt lookup).

Owns the guesses and how long they are. Knows no model. Costs no time to speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from twinline.engine.request import Request

GRAMS = (4, 2)  # a guess follows the last place where so many tokens stood that stand at the end now, longest first
LONGEST = 7  # tokens of one guess
LONGEST_PAUSE = 64  # steps of a request without a guess, after guesses that were wrong
MOST_LEARNT = 2048  # tokens of a request at each guess: a long prompt is learnt over some steps


@dataclass(slots=True)
class _History:
    """Where each n-gram of a request was last followed by something, and how its guesses fared."""

    arrival: int  # a new request under an old id is not the old request
    follows: dict[tuple[int, ...], int] = field(default_factory=dict)
    indexed: int = 0  # tokens whose n-grams are known
    length: int = 3
    misses: int = 0
    pause: int = 0

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """`tokens` from position `start` on; n-grams that end before the last token are followed by something."""
        for end in range(max(self.indexed, 1), start + len(tokens)):
            for n in GRAMS:
                if end - n >= start:
                    self.follows[tuple(tokens[end - n - start : end - start])] = end
        self.indexed = start + len(tokens)


class Lookup:
    """A source of guesses; see `speculation.Source`."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    def guess(self, request: Request, most: int) -> list[int]:
        history = self._histories.get(request.id)
        if history is None or history.arrival != request.arrival or history.indexed > request.known:
            history = self._histories[request.id] = _History(request.arrival)
        if history.indexed < request.known:
            start = max(0, history.indexed - GRAMS[0])
            history.learn(request.tokens(start, min(request.known, history.indexed + MOST_LEARNT)), start)
        if history.pause:
            history.pause -= 1
            return []
        ending = request.tokens(max(0, request.known - GRAMS[0]), request.known)
        for n in GRAMS:
            at = history.follows.get(tuple(ending[-n:]))
            if at is not None:
                return _from(request, at, min(history.length, most))
        return []

    def heard(self, request: Request, drafted: int, accepted: int) -> None:
        """How far a guess went; wrong ones make the next shorter, and then rarer."""
        history = self._histories.get(request.id)
        if history is None:
            return
        if accepted:
            history.misses = 0
            history.length = min(LONGEST, 2 * history.length if accepted == drafted else accepted + 1)
        else:
            history.misses += 1
            history.length = max(1, history.length - 1)
            history.pause = min(LONGEST_PAUSE, 2**history.misses)

    def forget(self, request_id: str) -> None:
        self._histories.pop(request_id, None)


def _from(request: Request, at: int, count: int) -> list[int]:
    """`count` tokens from position `at` on; past the end it goes on with what it has guessed, as a text in a circle."""
    found = request.tokens(at, min(at + count, request.known))
    while len(found) < count:
        found.append(found[at + len(found) - request.known])
    return found
