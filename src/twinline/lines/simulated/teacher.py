"""What a simulated line says: a text that is a function of all tokens before it, so that any line can go on with it.

Owns the choice of the next token. Must not know requests, time, or where the passages come from.

An answer is made of passages, chosen one after the other by a hash that runs over the prompt and everything said so
far. A token that is not the expected one, because it is lost, doubled or from elsewhere, changes all that follows: a
mistake made in moving a stream cannot go unseen.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

_MASK = (1 << 64) - 1


def _mixed(state: int, value: int) -> int:
    """splitmix64 of both: the same on every machine, which Python's `hash` does not promise."""
    state = (state + value * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)


@dataclass(frozen=True, slots=True)
class Teacher:
    """All that can be said. `passages` are token ids, none empty; `preface` begins every answer that has one.

    `end` are the tokens that end an answer. `think` opens reasoning where a prompt ends in it; then reasoning comes
    first, closed by `close`. Raises ValueError without passages. `longest` is the most passages in one answer.
    """

    passages: Sequence[Sequence[int]]
    preface: Sequence[int] = ()
    end: frozenset[int] = frozenset()
    think: int | None = None
    close: Sequence[int] = ()
    longest: int = 5

    def __post_init__(self) -> None:
        if not self.passages or not all(self.passages):
            raise ValueError("a teacher needs at least one passage, and no passage may be empty")

    def answer(self, prompt: Sequence[int], seed: int = 0, output: Sequence[int] = ()) -> Answer:
        """The answer to `prompt` after `output`, wherever that was generated."""
        answer = Answer(self, prompt, seed)
        for token in output:
            answer.take(token)
        return answer


class Answer:
    """One answer on its way: `next` says what comes, `take` is told what came."""

    __slots__ = ("_at", "_current", "_left", "_reasons", "_state", "_teacher")

    def __init__(self, teacher: Teacher, prompt: Sequence[int], seed: int) -> None:
        self._teacher = teacher
        packed = struct.pack(f"<{len(prompt) + 1}q", seed, *prompt)
        self._state = int.from_bytes(blake2b(packed, digest_size=8).digest(), "little")
        self._reasons = teacher.think is not None and teacher.think in prompt[-3:]
        self._left = 1 + self._state % (2 if self._reasons else teacher.longest)
        self._at = 0
        self._current: Sequence[int] = teacher.preface
        if not self._current:
            self._turn()

    def next(self, ends: Collection[int] = ()) -> int:
        """The next token. It ends the answer only with one of `ends`; else a finished answer goes on."""
        if not self._current:
            end = min((token for token in self._teacher.end if token in ends), default=None)
            if end is not None:
                return end
            self._choose()
        return self._current[self._at]

    def take(self, token: int) -> None:
        if not self._current:
            if token in self._teacher.end:
                return
            self._choose()
        if token != self._current[self._at]:
            self._state = _mixed(self._state, token)
            self._choose()
            return
        self._at += 1
        if self._at == len(self._current):
            self._state = _mixed(self._state, self._at)
            self._turn()

    def _turn(self) -> None:
        """Another passage, the end of the reasoning, or the end of the answer."""
        teacher = self._teacher
        if self._left:
            self._left -= 1
            self._choose()
        elif self._reasons and teacher.close:
            self._reasons = False
            self._left = 1 + self._state % teacher.longest
            self._current, self._at = teacher.close, 0
        else:
            self._current = ()

    def _choose(self) -> None:
        self._state = _mixed(self._state, 1)
        passages = self._teacher.passages
        self._current, self._at = passages[self._state % len(passages)], 0
