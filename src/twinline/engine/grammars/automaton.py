"""Deterministic automata over characters, and their rules in xgrammar's EBNF: one for each state.

Owns what is matched, exactly, which xgrammar does not for parts with repeats in them (`(?:a+b)?` lets "a" through in
0.2.8): in such rules nothing is left for it to build. Must not know how a client writes a pattern, nor schemas.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from twinline.engine.grammars.characters import Ranges
from twinline.engine.grammars.grammar import BadGrammar

MOST_STATES = 20_000
MOST_WORK = 500_000  # places in a pattern, over all states: about three seconds
MOST_ROUNDS = 200  # in which states are told apart
LAST = 0x10FFFF

S = TypeVar("S")

Edges = list[tuple[int, int, int]]  # of a state: the first and the last character, and where they lead


@dataclass(frozen=True, slots=True)
class Automaton:
    """`edges` and `ends` by state; it begins in the first, and every state leads to an end. Raises BadGrammar for one
    without texts."""

    edges: list[Edges]
    ends: list[bool]

    def both(self, other: Automaton) -> Automaton:
        """Of the texts that both match."""

        def follow(pair: tuple[int, int]) -> tuple[list[tuple[int, int, tuple[int, int]]], bool]:
            one, two = pair
            common = [
                (max(low, low_2), min(high, high_2), (to, to_2))
                for low, high, to in self.edges[one] for low_2, high_2, to_2 in other.edges[two]
                if low <= high_2 and low_2 <= high
            ]  # fmt: skip
            return common, self.ends[one] and other.ends[two]

        return _explored((0, 0), follow)

    def rules(self, name: str, write: Callable[[Ranges], Iterable[str]]) -> str:
        """Named by `name` and a state's number, the first is all of it; `write` gives the options for characters."""
        lines = []
        for state, edges in enumerate(self.edges):
            places: dict[int, list[tuple[int, int]]] = {}
            for low, high, to in edges:
                places.setdefault(to, []).append((low, high))
            options = [f"{option} {name}{to}" for to, ranges in places.items() for option in write(tuple(ranges))]
            if self.ends[state]:
                options.append('""')
            lines.append(f"{name}{state} ::= {' | '.join(options)}")
        return "\n".join(lines)


class Builder:
    """Makes states from the end to the beginning: each method gives the state from which a text goes on to `then`."""

    def __init__(self) -> None:
        self._on: list[tuple[int, ...]] = [()]  # states that are reached by no character
        self._by: list[tuple[Ranges, int] | None] = [None]

    end = 0

    def _state(self, on: Iterable[int] = (), by: tuple[Ranges, int] | None = None) -> int:
        self._on.append(tuple(on))
        self._by.append(by)
        return len(self._on) - 1

    def character(self, ranges: Ranges, then: int) -> int:
        return self._state(by=(ranges, then))

    def either(self, options: Iterable[int]) -> int:
        return self._state(options)

    def repeated(self, part: Callable[[int], int], least: int, most: int | None, then: int) -> int:
        if most is None:
            again = self._state()
            self._on[again] = (part(again), then)
            at = again
        else:
            at = then
            for _ in range(most - least):
                at = self._state((part(at), then))
        for _ in range(least):
            at = part(at)
        return at

    def automaton(self, begin: int) -> Automaton:
        work = 0
        letters = self._letters()
        within = {ranges: [letter for letter, has in enumerate(letters) if _has(ranges, has[0][0])]
                  for ranges, _ in filter(None, self._by)}  # fmt: skip

        def follow(states: frozenset[int]) -> tuple[list[tuple[int, int, frozenset[int]]], bool]:
            nonlocal work
            work += len(states)
            if work > MOST_WORK:
                raise BadGrammar("the pattern can be read in too many ways at once: simplify its repeated groups")
            places: dict[int, set[int]] = {}
            for ranges, to in filter(None, (self._by[state] for state in states)):
                for letter in within[ranges]:
                    places.setdefault(letter, set()).add(to)
            return [(letter, letter, self._reached(to)) for letter, to in places.items()], self.end in states

        made = _explored(self._reached((begin,)), follow)
        edges = [[(low, high, to) for first, last, to in each for letter in letters[first : last + 1]
                  for low, high in letter] for each in made.edges]  # fmt: skip
        return Automaton([_joined(each) for each in edges], made.ends)

    def _letters(self) -> list[Ranges]:
        """Sets of characters that each class of the pattern has all or none of: in them there is nothing to tell
        apart."""
        classes = {ranges for ranges, _ in filter(None, self._by)}
        cuts = sorted({cut for ranges in classes for low, high in ranges for cut in (low, high + 1)})
        letters: dict[frozenset[Ranges], list[tuple[int, int]]] = {}
        for low, above in pairwise(cuts):
            if having := frozenset(ranges for ranges in classes if _has(ranges, low)):
                letters.setdefault(having, []).append((low, above - 1))
        return [tuple(letter) for letter in letters.values()]

    def _reached(self, states: Iterable[int]) -> frozenset[int]:
        """Those that matter among the states reached from these by no character."""
        seen, waiting = set(states), list(states)
        while waiting:
            for state in self._on[waiting.pop()]:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        return frozenset(state for state in seen if state == self.end or self._by[state] is not None)


def _has(ranges: Ranges, point: int) -> bool:
    at = bisect_right(ranges, (point, LAST)) - 1
    return at >= 0 and point <= ranges[at][1]


def of_length(least: int, most: int | None) -> Automaton:
    """Of all texts of so many characters."""
    whole = ((0, 0xD7FF), (0xE000, LAST))
    count = least if most is None else most
    edges = [[(low, high, state + 1) for low, high in whole] for state in range(count)]
    edges.append([] if most is not None else [(low, high, count) for low, high in whole])
    return Automaton(edges, [state >= least for state in range(count + 1)])


def _explored(begin: S, follow: Callable[[S], tuple[Sequence[tuple[int, int, S]], bool]]) -> Automaton:
    """The automaton of all states that are reached and lead to an end."""
    numbers = {begin: 0}
    found: list[tuple[Sequence[tuple[int, int, S]], bool]] = []
    waiting = [begin]
    for state in waiting:
        found.append(follow(state))
        for _, _, to in found[-1][0]:
            if to not in numbers:
                numbers[to] = len(numbers)
                waiting.append(to)
        if len(numbers) > MOST_STATES:
            raise BadGrammar(f"the pattern needs more than {MOST_STATES} states: simplify it")
    alive = _alive([[numbers[to] for _, _, to in edges] for edges, _ in found], [ends for _, ends in found])
    if 0 not in alive:
        raise BadGrammar("no text fits the pattern")
    kept = {state: number for number, state in enumerate(sorted(alive))}
    edges = [_joined([(low, high, kept[numbers[to]]) for low, high, to in found[state][0] if numbers[to] in kept])
             for state in kept]  # fmt: skip
    return _smallest(edges, [found[state][1] for state in kept])


def _smallest(edges: list[Edges], ends: list[bool]) -> Automaton:
    """With one state for all from which the same texts go on; as it is where that takes too many rounds."""
    kinds = [int(end) for end in ends]
    count = 0
    for _ in range(MOST_ROUNDS):
        said = [(kinds[state], tuple(_joined([(low, high, kinds[to]) for low, high, to in each])))
                for state, each in enumerate(edges)]  # fmt: skip
        numbers: dict[object, int] = {}
        kinds = [numbers.setdefault(each, len(numbers)) for each in said]
        if len(numbers) == count:
            firsts = [kinds.index(kind) for kind in range(count)]
            return Automaton(
                [_joined([(low, high, kinds[to]) for low, high, to in edges[state]]) for state in firsts],
                [ends[state] for state in firsts],
            )
        count = len(numbers)
    return Automaton(edges, ends)


def _alive(follows: Sequence[Sequence[int]], ends: Sequence[bool]) -> set[int]:
    before: list[list[int]] = [[] for _ in follows]
    for state, places in enumerate(follows):
        for to in places:
            before[to].append(state)
    alive = {state for state, end in enumerate(ends) if end}
    waiting = list(alive)
    while waiting:
        for state in before[waiting.pop()]:
            if state not in alive:
                alive.add(state)
                waiting.append(state)
    return alive


def _joined(edges: Edges) -> Edges:
    made: Edges = []
    for low, high, to in sorted(edges):
        if made and made[-1][2] == to and made[-1][1] + 1 == low:
            made[-1] = made[-1][0], high, to
        else:
            made.append((low, high, to))
    return made
