"""Guesses by the model's own prediction layer (MTP): it follows what the model computes, and says what may come next.

Owns what the layer has seen of each request, and its guesses. Row p of the layer needs the model's hidden state at p
and the token at p + 1, so it runs after a step's tokens are drawn, over the step's own rows: prefill chunks as well as
decodes. Rows whose guess was refused are computed along and mean nothing; the next step writes over them, as the model
does with its own.

The layer's keys and values lie in the request's pages, beside the model's. A page that is shared through the prefix
cache may have been filled while the layer did not run; then the request that gets it is not guessed for. Where the
layer is idle for a while (too many requests, guesses that do not pay), hidden states of up to `LAG` tokens are kept,
and caught up with in one go.

A guess is drawn as the token itself will be, from the layer's logits with the same noise: so sampled text is guessed
about as well as greedy text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twinline.engine import batch as batches
from twinline.engine.batch import Batch
from twinline.engine.chains import Link
from twinline.engine.draw import COLDEST
from twinline.engine.request import Request
from twinline.engine.runner import Runner
from twinline.engine.sampler import BadLogits, Sampler
from twinline.engine.scheduler import Work
from twinline.engine.speculation import ahead, room

log = logging.getLogger(__name__)

LAG = 256  # tokens of a request whose hidden states are kept for the layer


@dataclass(slots=True)
class _Trail:
    """How far the layer has followed a request: its keys of the first `upto` positions are in `pages`."""

    request: Request
    pages: list[int]  # the request's own list: after a preemption it has another
    upto: int
    lost: bool = False  # there is a gap before `upto`, or will be
    pending: list[Tensor] = field(default_factory=list)  # hidden states of the positions from `upto` on
    waiting: int = 0  # positions that those are
    guess: list[int] = field(default_factory=list)
    known: int = 0  # of the request, when the guess was made


@dataclass(frozen=True, slots=True)
class _Ran:
    """A step that the layer is to follow. `rows`: of the last position that holds, by trail, where a token follows."""

    batch: Batch
    hidden_NX: Tensor
    next_ids: list[int]
    rows: list[tuple[_Trail, int]]


def _link(trail: _Trail, positions: range, next_ids: Sequence[int], last: int) -> Link:
    request, params = trail.request, trail.request.params
    return Link(
        trail.pages, positions, next_ids, last, trail.upto, request.known, params.seed,
        0.0 if params.greedy else max(params.temperature, COLDEST),
    )  # fmt: skip


class Prediction:
    """A source of guesses; see `speculation.Source`. `ran` and `think` are called in turn after each step."""

    def __init__(
        self, runner: Runner, sampler: Sampler, reserve: Callable[[Request, int], bool], most_rows: int, depth: int
    ) -> None:
        """`reserve` gets a request pages for tokens beyond those known. At most `depth` tokens are guessed, by the same
        layer again and again, and no more than fit into a step of `most_rows`."""
        self.runner, self.sampler, self.reserve = runner, sampler, reserve
        self.most_rows, self.depth = most_rows, depth
        self.failure: str | None = None
        self._trails: dict[str, _Trail] = {}
        self._whole = bytearray(runner.spare_page)  # per page: whether the layer's keys are there, each of its places
        self._ran: _Ran | None = None

    def guess(self, request: Request, most: int) -> list[int]:
        trail = self._trails.get(request.id)
        if trail is None or trail.request is not request or trail.known != request.known:
            return []
        return trail.guess[:most]

    def heard(self, request: Request, drafted: int, accepted: int) -> None:
        pass

    def forget(self, request_id: str) -> None:
        self._trails.pop(request_id, None)

    def ran(self, batch: Batch, hidden_NX: Tensor, new: Mapping[str, Sequence[int]], worth: bool) -> None:
        """Books a step. `new`: the tokens that it gave, all but each one's last in the output. `worth`: whether the
        layer is to follow it now."""
        self._ran = None
        next_ids: list[int] = []
        rows: list[tuple[_Trail, int]] = []
        kept: Tensor | None = None
        for w, end in zip(batch.work, batch.ends, strict=True):
            tokens = new.get(w.request.id, ())
            held = len(tokens) if w.draft else w.count
            trail = self._trail(w)
            if trail.upto + trail.waiting != w.start:  # a step between failed
                trail.pending, trail.waiting, trail.lost = [], 0, True
            follows = worth and not trail.lost and not trail.waiting
            if not follows and not trail.lost:
                kept = hidden_NX.clone() if kept is None else kept  # a replayed step's are written over by the next
                first = end + 1 - w.count
                trail.pending.append(kept[first : first + held])
                trail.waiting += held
                if trail.waiting > LAG:
                    trail.pending, trail.waiting, trail.lost = [], 0, True
            self._mark(w, trail, held, follows)
            if tokens and not trail.lost:
                rows.append((trail, end - w.count + held if follows else -1))
            if worth:
                known = tokens if w.draft else (*w.request.tokens(w.start + 1, w.end + 1), *tokens[-1:])
                next_ids += known
                next_ids += [0] * (w.count - len(known))
        if worth and not self.failure:
            self._ran = _Ran(batch, hidden_NX, next_ids, rows)

    def _trail(self, w: Work) -> _Trail:
        request = w.request
        trail = self._trails.get(request.id)
        if trail is None or trail.request is not request or trail.pages is not request.pages:
            found = request.pages[: w.start // self.runner.page_size]  # in the prefix cache
            lost = not all(self._whole[page] for page in found)
            trail = self._trails[request.id] = _Trail(request, request.pages, w.start, lost)
        return trail

    def _mark(self, w: Work, trail: _Trail, held: int, follows: bool) -> None:
        """Which pages are whole now. What is written without the layer is not, until it has caught up."""
        size = self.runner.page_size
        end = w.start + held
        for index in range(w.start // size, -(-w.end // size)):
            self._whole[trail.pages[index]] = follows and (index + 1) * size <= end
        if follows:
            trail.upto = end

    def think(self, useful: Callable[[Request], int]) -> None:
        """Follows the step that ran, and guesses for its requests; `useful`: how many tokens at most. A failure costs
        the guesses, never a request."""
        ran, self._ran = self._ran, None
        if ran is None:
            return
        try:
            self._follow(ran, useful)
        except Exception as error:
            log.exception("the prediction layer failed: no more guesses of it")
            self.failure = f"{type(error).__name__}: {error}"
            self._trails.clear()

    @torch.inference_mode()
    def _follow(self, ran: _Ran, useful: Callable[[Request], int]) -> None:
        batch = ran.batch
        if self._chained(ran, useful):
            return
        ids_N = torch.tensor(ran.next_ids, device=batch.ids_N.device)
        begins = any(w.start == 0 for w in batch.work)
        out_NX = self.runner.predicted(batch, ids_N, ran.hidden_NX, begins=begins)
        ready = [(trail, row) for trail, row in ran.rows if row >= 0]
        asked = [(trail, out_NX[row]) for trail, row in ready if self._trails.get(trail.request.id) is trail]
        late = [t for t, row in ran.rows if row < 0 and self._trails.get(t.request.id) is t]
        if late:
            asked = [(trail, state_X.clone()) for trail, state_X in asked]  # a replay writes over what it gave before
            asked += self._caught_up(late)
        most = min(self.depth, room(self.most_rows, len(asked)))
        wanted = [(trail, state_X, min(most, useful(trail.request))) for trail, state_X in asked]
        self._guess([one for one in wanted if one[2] > 0])

    def _chained(self, ran: _Ran, useful: Callable[[Request], int]) -> bool:
        """All in one replay, where every request of the step decodes and goes on."""
        works = ran.batch.work
        if not self._replays or len(ran.rows) != len(works) or ran.batch.plan.prefills:
            return False
        depth = min(self.depth, room(self.most_rows, len(works)))
        links, first = [], 0
        for w, (trail, row) in zip(works, ran.rows, strict=True):
            request = w.request
            if row < 0 or not w.start or self._trails.get(request.id) is not trail:
                return False
            if not 0 < depth <= useful(request) or not self.reserve(request, depth - 1):
                return False
            ids = ran.next_ids[first : first + w.count]
            links.append(_link(trail, range(w.start, w.end), ids, row - first))
            first += w.count
        return self._replayed([trail for trail, _ in ran.rows], links, ran.hidden_NX, depth)

    @property
    def _replays(self) -> bool:
        return self.runner.chains is not None and not self.runner.chains.why_not

    def _replayed(self, trails: Sequence[_Trail], links: Sequence[Link], states_NX: Tensor, depth: int) -> bool:
        """False where it cannot be recorded."""
        assert self.runner.chains is not None
        found = self.runner.chains.guesses(links, states_NX, depth)
        if found is None:
            return False
        for trail, guess in zip(trails, found, strict=True):
            trail.guess, trail.known = guess, trail.request.known
        return True

    def _caught_up(self, trails: Sequence[_Trail]) -> list[tuple[_Trail, Tensor]]:
        """Follows what has waited, each request's as one chunk; the last state of each."""
        runner, size, done = self.runner, self.runner.page_size, []
        for trail in trails:
            w = Work(trail.request, trail.upto, trail.waiting)
            device = runner.device.torch_device
            batch = batches.build((w,), size, device, runner.spare_page, blocked=runner.gathers)
            ids_N = torch.tensor(trail.request.tokens(w.start + 1, w.end + 1), device=device)
            states_NX = runner.predicted(batch, ids_N, torch.cat(trail.pending), begins=w.start == 0)
            trail.pending, trail.waiting, trail.upto = [], 0, w.end
            for index in range(w.start // size, w.end // size):
                self._whole[trail.pages[index]] = True
            done.append((trail, states_NX[-1].clone()))
        return done

    def _guess(self, asked: list[tuple[_Trail, Tensor, int]]) -> None:
        """A token for each from its state, then by the layer's own states as many more as are asked for."""
        for trail, _, _ in asked:
            trail.guess, trail.known = [], trail.request.known
        if not asked or self._guessed_at_once(asked):
            return
        place = 0
        while asked:
            states_DX = torch.stack([state_X for _, state_X, _ in asked])
            requests = [ahead(trail.request, tuple(trail.guess)) for trail, _, _ in asked]
            try:
                tokens = self.sampler.guess(self.runner.logits(states_DX, range(len(asked))), requests)
            except BadLogits as error:
                log.warning("no guesses: the prediction layer's %s", error)
                return
            for (trail, _, _), token in zip(asked, tokens, strict=True):
                trail.guess.append(token)
            place += 1
            asked = [one for one in asked if one[2] > place and self.reserve(one[0].request, place)]
            if asked:
                asked = self._next_states(asked, place)

    def _guessed_at_once(self, asked: list[tuple[_Trail, Tensor, int]]) -> bool:
        """All in one replay, where as many tokens are asked for each."""
        depth, trails = asked[0][2], [trail for trail, _, _ in asked]
        if not self._replays or any(most != depth for _, _, most in asked):
            return False
        if not all(self.reserve(trail.request, depth - 1) for trail in trails):
            return False
        links = [_link(trail, range(0), (), 0) for trail in trails]
        return self._replayed(trails, links, torch.stack([state_X for _, state_X, _ in asked]), depth)

    def _next_states(self, asked: list[tuple[_Trail, Tensor, int]], place: int) -> list[tuple[_Trail, Tensor, int]]:
        """The layer's states one position on, from its own and the tokens just guessed."""
        runner = self.runner
        where = [(trail.request.pages, trail.upto + place - 1) for trail, _, _ in asked]
        device = runner.device.torch_device
        batch = batches.rows_at(where, runner.page_size, device, runner.spare_page, blocked=runner.gathers)
        ids_D = torch.tensor([trail.guess[-1] for trail, _, _ in asked], device=device)
        out_DX = runner.predicted(batch, ids_D, torch.stack([state_X for _, state_X, _ in asked]), begins=False)
        return [(trail, state_X, most) for (trail, _, most), state_X in zip(asked, out_DX.clone(), strict=True)]
