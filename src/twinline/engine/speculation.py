"""Guesses of what a request will say next, from what it has said and was told: n-gram speculation (prompt lookup).

Owns the guesses and when to stop guessing. Knows no model. A guess costs rows of a step and never a token: the guessed
tokens are computed as decodes one position apart, each position's token is drawn as it always is (its noise depends on
the position alone), and a guess is taken as far as it equals what was drawn. So the text is the same with guesses and
without, greedy or sampled.

On a machine where a step reads every weight once, whatever its rows, tokens that are guessed right cost nearly nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from twinline.engine.grammars.constraint import Constraint
from twinline.engine.request import Request, SamplingParams

GRAMS = (4, 2)  # a guess follows the last place where so many tokens stood that stand at the end now, longest first
LONGEST = 7  # tokens of one guess
LONGEST_PAUSE = 64  # steps of a request without a guess, after guesses that were wrong


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


class Speculation:
    """Guesses for the requests of one engine. A step that guesses has at most `most_rows` rows."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self._histories: dict[str, _History] = {}

    def drafts(self, requests: Sequence[Request], max_model_len: int) -> dict[str, list[int]]:
        """Guessed tokens for some of the requests that decode, by id."""
        room = self.most_rows // max(1, len(requests)) - 1
        if room < 1:
            return {}
        found = {}
        for request in requests:
            params = request.params
            left = min(params.max_tokens - len(request.output), max_model_len - request.known) - 1
            if left > 0 and _drawn_plainly(request) and (guess := self._guess(request, min(room, left))):
                found[request.id] = guess
        return found

    def _guess(self, request: Request, most: int) -> list[int]:
        history = self._histories.get(request.id)
        if history is None or history.arrival != request.arrival or history.indexed > request.known:
            history = self._histories[request.id] = _History(request.arrival)
        if history.indexed < request.known:
            start = max(0, history.indexed - GRAMS[0])
            history.learn(request.tokens(start, request.known), start)
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


def _drawn_plainly(request: Request) -> bool:
    """Whether a token's logits do not depend on the tokens before it but through the model, or through a grammar, which
    looks ahead itself."""
    params = request.params
    return not (params.penalised or params.logit_bias or len(request.output) < params.min_tokens)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A request as its sampler would see it some tokens on."""

    id: str
    params: SamplingParams
    output: list[int]
    arrival: int
    known: int
    constraint: Constraint | None
    guessed: tuple[int, ...]


def ahead(request: Request, guessed: tuple[int, ...]) -> Request:
    """The request as a sampler sees it when these tokens are known too. For requests that guesses are made for."""
    if not guessed:
        return request
    known = request.known + len(guessed)
    seen = _Ahead(request.id, request.params, request.output, request.arrival, known, request.constraint, guessed)
    return cast(Request, seen)


def agreed(draft: Sequence[int], drawn: Sequence[int]) -> int:
    """How many of the drawn tokens hold: those of a guess that they equal, and the one after."""
    count = 0
    while count < len(draft) and draft[count] == drawn[count]:
        count += 1
    return count + 1
