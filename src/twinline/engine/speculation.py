"""Guesses of what a request will say next: where they come from, for whom, and whether they are worth their time.

Owns the choice of a source for each request, the count of what became of its guesses, and the times of steps. Knows no
model. A guess costs rows of a step and never a token: the guessed tokens are computed as decodes one position apart,
each position's token is drawn as it always is (its noise depends on the position alone), and a guess is taken as far as
it equals what was drawn. So the text is the same with guesses and without, greedy or sampled, and nothing has to be
rejected by chance: what is drawn has the model's distribution whatever was guessed.

On a machine where a step reads every weight once, whatever its rows, tokens that are guessed right cost nearly nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from twinline.engine.grammars.constraint import Constraint
from twinline.engine.payoff import Payoff
from twinline.engine.request import Request, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from twinline.engine.batch import Batch
    from twinline.engine.prediction import Prediction


class Source(Protocol):
    """Who guesses. `guess` gives at most `most` tokens that follow what is known, or none; `heard` how many of them
    held."""

    def guess(self, request: Request, most: int) -> list[int]: ...
    def heard(self, request: Request, drafted: int, accepted: int) -> None: ...
    def forget(self, request_id: str) -> None: ...


@dataclass
class Fared:
    """What became of one source's guesses. Only grows. `by_place`: of the guesses that held, how many were the first
    token of theirs, the second, and so on."""

    drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    by_place: list[int] = field(default_factory=list)

    def count(self, drafted: int, accepted: int) -> None:
        self.drafts += 1
        self.draft_tokens += drafted
        self.accepted_tokens += accepted
        self.by_place += [0] * (drafted - len(self.by_place))
        for place in range(accepted):
            self.by_place[place] += 1


class Speculation:
    """Guesses for the requests of one engine. A step that guesses has at most `most_rows` rows."""

    def __init__(
        self,
        most_rows: int,
        lookup: Source | None = None,
        prediction: Prediction | None = None,
        *,
        payoff: Payoff | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The lookup is asked before the prediction layer. Guesses are never given up where there is no `payoff`."""
        self.most_rows, self.prediction, self.payoff, self._clock = most_rows, prediction, payoff, clock
        found: dict[str, Source | None] = {"ngram": lookup, "mtp": prediction}
        self.sources = {name: source for name, source in found.items() if source is not None}
        self.fared = {name: Fared() for name in self.sources}
        self._source: dict[str, str] = {}  # of the guess that a request's step computes now
        self._asked, self._decoding, self._began, self._ended, self._tokens = 0, 0, 0.0, 0.0, 0

    def drafts(self, requests: Sequence[Request], max_model_len: int) -> dict[str, list[int]]:
        """Guessed tokens for some of the requests that decode, by id. Begins a step, which `ran` ends."""
        self._began, self._asked, self._decoding = self._clock(), len(requests), 0
        self._source.clear()
        most = room(self.most_rows, len(requests))
        if not requests or most < 1 or (self.payoff is not None and not self.payoff.wanted(len(requests))):
            return {}
        found = {}
        for request in requests:
            left = most_useful(request, max_model_len)
            if left > 0 and _drawn_plainly(request):
                for name, source in self.sources.items():
                    if guess := source.guess(request, min(most, left)):
                        found[request.id], self._source[request.id] = guess, name
                        break
        return found

    def heard(self, request: Request, drafted: int, accepted: int) -> None:
        """How far the guess of this step went."""
        name = self._source.get(request.id)
        if name is not None:
            self.fared[name].count(drafted, accepted)
            self.sources[name].heard(request, drafted, accepted)

    def forget(self, request_id: str) -> None:
        for source in self.sources.values():
            source.forget(request_id)

    def ran(self, batch: Batch, hidden_NX: Tensor, new: Mapping[str, Sequence[int]], running: int) -> None:
        """A step has run: its hidden states, and the tokens that hold, by request, of which all but the last are in its
        output. `running` requests were in the batch or wait for their next chunk."""
        self._ended, self._decoding, self._tokens = self._clock(), self._asked, sum(map(len, new.values()))
        if self.prediction is not None:
            worth = room(self.most_rows, running) > 0 and (self.payoff is None or self.payoff.worth(running))
            self.prediction.ran(batch, hidden_NX, new, worth)

    def think(self, max_model_len: int) -> None:
        """Prepares the next step's guesses, when the last step's tokens are on their way."""
        began = self._clock()
        if self.prediction is not None:
            self.prediction.think(lambda request: most_useful(request, max_model_len) if _drawn_plainly(request) else 0)
        if self.payoff is not None and self._decoding:
            thought = self._clock() - began
            self.payoff.heard(self._decoding, bool(self._source), self._tokens, self._ended - self._began, thought)


def room(most_rows: int, requests: int) -> int:
    """How many tokens of a guess each of so many requests may compute in a step of `most_rows`."""
    return max(0, most_rows // max(1, requests) - 1)


def most_useful(request: Request, max_model_len: int) -> int:
    """How many guessed tokens can hold at most: a step gives one token more than it was given guesses."""
    return min(request.params.max_tokens - len(request.output), max_model_len - request.known) - 1


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
    if not guessed or (request.params.greedy and request.constraint is None):
        return request  # no noise to key, and nothing to look back at
    known = request.known + len(guessed)
    seen = _Ahead(request.id, request.params, request.output, request.arrival, known, request.constraint, guessed)
    return cast(Request, seen)


def agreed(draft: Sequence[int], drawn: Sequence[int]) -> int:
    """How many of the drawn tokens hold: those of a guess that they equal, and the one after."""
    count = 0
    while count < len(draft) and draft[count] == drawn[count]:
        count += 1
    return count + 1
