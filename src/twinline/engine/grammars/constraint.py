"""One request's grammar as its output grows: which tokens may come next, and whether any may.

Owns where the grammar begins (after a model's reasoning), and how a matcher keeps up with an output that guesses run
ahead of. Follows what is in the output, wherever it came from: a continuation begins with tokens of another line, a
preempted request still has its own. Must not know what compiles grammars, nor logits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np

from twinline.engine.grammars.grammar import BadGrammar, Compiled, Grammar, words_of

# What a request's grammar may take of the thread: while it computes, everybody's step waits.
ONCE_SECONDS, TOKEN_SECONDS = 1.0, 0.002
FOLLOWED = 64  # tokens between two looks at the time, while an output is followed that came with the request


class Constraint:
    """`size`: of the vocabulary; `pieces`: the bytes of its tokens; `stops`: the tokens that end the request."""

    def __init__(
        self, compiled: Compiled, grammar: Grammar, pieces: Sequence[bytes], stops: frozenset[int], size: int
    ) -> None:
        self._matcher = compiled.matcher(stops)
        self._pieces = pieces
        self._after, opener = grammar.after.encode(), grammar.opener.encode()
        self._stops = words_of(size, (t for t in stops if t < size))
        self._ends_by_token = bool(stops)
        self._free = ~self._stops
        self._opener = pieces.index(opener) if opener and opener in pieces else None
        self._waits = bool(self._after) and not opener  # for `after`, unless it turns out otherwise
        self._taken: list[int] = []
        self._sure = 0  # of these, tokens of the output and no guesses
        self._begun: int | None = None if self._waits else 0  # tokens before the grammar
        self._accepted = 0
        self._words: tuple[int, np.ndarray] | None = None  # what may follow so many tokens
        self._spent = 0.0  # seconds

    def allowed(self, output: Sequence[int], guessed: Sequence[int] = ()) -> np.ndarray | None:
        """Which tokens may follow, in the form of `Matcher.allow`; None where the guesses break the grammar.

        `guessed` tokens follow the output; what is drawn after wrong ones is thrown away.
        Raises ValueError if the output itself breaks the grammar, BadGrammar if it takes too long to follow.
        """
        whole = len(output) + len(guessed)
        if not guessed and self._words is not None and self._words[0] == whole == self._sure:
            return self._words[1]
        if not self._follow(output, guessed):
            return None
        words = self._next()[0]
        if not guessed:
            self._words = (whole, words)
        return words

    def verdict(self, output: Sequence[int], token: int) -> Literal["stop", "error"] | None:
        """Whether the output ends when `token` follows it, because nothing may come after.

        "stop": the answer is whole, and there is no token to end it. "error": it is not, and no token fits; see `why`.
        """
        begun = time.thread_time()
        if not self._follow(output, (token,)):
            return None  # a stop token, which ends the request itself
        words, ends = self._next()
        self._sure = len(self._taken)  # the loop appends it
        self._words = (self._sure, words)
        self._spent += time.thread_time() - begun
        if words.any() and not self._slow:
            return None
        return "stop" if ends and not self._ends_by_token else "error"

    @property
    def why(self) -> str:
        """Why `verdict` said "error"."""
        if self._slow:
            return f"the grammar took {self._spent:.1f} s for {len(self._taken)} tokens, which is too long: simplify it"
        return "the grammar lets no token of this model's vocabulary follow"

    @property
    def _slow(self) -> bool:
        return self._spent > ONCE_SECONDS + TOKEN_SECONDS * len(self._taken)

    def _next(self) -> tuple[np.ndarray, bool]:
        """What may follow the tokens taken, and whether the answer may end there."""
        words = np.empty_like(self._stops)
        if self._begun is None:
            np.copyto(words, self._free)
            return words, False
        ends = self._matcher.allow(words)
        if ends:
            words |= self._stops
        if not self._taken and self._opener is not None:
            words[self._opener // 32] |= words_of(len(words) * 32, (self._opener,))[self._opener // 32]
        return words, ends

    def _follow(self, output: Sequence[int], guessed: Sequence[int]) -> bool:
        """Makes the tokens taken those of the output and the guesses, as far as the grammar lets them."""
        base, taken = len(output), self._taken
        whole, at = base + len(guessed), self._sure
        while at < min(len(taken), whole) and taken[at] == (output[at] if at < base else guessed[at - base]):
            at += 1
        self._back(at)
        begun = time.thread_time() if whole - at > FOLLOWED else 0.0
        while at < whole:
            if begun and at % FOLLOWED == 0 and time.thread_time() - begun > ONCE_SECONDS + TOKEN_SECONDS * at:
                raise BadGrammar(f"the grammar took more than {ONCE_SECONDS:g} s to follow {at} tokens: simplify it")
            token = output[at] if at < base else guessed[at - base]
            if not self._take(token):
                if at < base:
                    raise ValueError(f"output token {at} ({token}) breaks the grammar")
                return False
            at += 1
        self._sure = base
        return True

    def _take(self, token: int) -> bool:
        if not self._taken and token == self._opener:
            self._waits, self._begun = True, None
        elif self._begun is not None:
            if not self._matcher.accept(token):
                return False
            self._accepted += 1
        else:
            self._look_for_end(token)
        self._taken.append(token)
        return True

    def _look_for_end(self, token: int) -> None:
        """Begins the grammar where this token completes `after`."""
        last = [*self._taken[len(self._taken) - min(len(self._taken), len(self._after)) :], token]
        said = b"".join(self._pieces[t] if t < len(self._pieces) else b"" for t in last)
        end = said.find(self._after)
        if end < 0:
            return
        self._begun, self._accepted = len(self._taken) + 1, 0
        rest = said[end + len(self._after) :].lstrip()
        if rest and self._matcher.accept_bytes(rest):
            self._accepted = 1

    def _back(self, count: int) -> None:
        """Forgets all but the first `count` tokens taken."""
        gone = len(self._taken) - count
        if gone <= 0:
            return
        del self._taken[count:]
        if self._waits and (self._begun is None or count < self._begun):
            self._matcher.take_back(self._accepted)
            self._begun, self._accepted = None, 0
            if not count and self._opener is not None:
                self._waits, self._begun = False, 0
        else:
            self._matcher.take_back(gone)
            self._accepted -= gone
