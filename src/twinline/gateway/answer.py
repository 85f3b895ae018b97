"""All choices of one request, from the first line asked to the last byte sent.

Owns their common life: started a few at a time, aborted together, paused together, booked before the end is sent. Must
not know how an endpoint shapes its answer: that is its `Shape`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from twinline.gateway.access import Access, Visit
from twinline.gateway.choice import Choice
from twinline.gateway.errors import ApiError, internal
from twinline.gateway.exchange import Exchange
from twinline.gateway.transcript import COMPILED, Piece
from twinline.store.usage import Status

log = logging.getLogger(__name__)
AT_ONCE = 64  # choices of one request that lines work on


class Shape(Protocol):
    """How an endpoint writes an answer. Streamed or not is its own affair: it says nothing until it has to.

    One may also have `around(index) -> Around | None`: how an event of text alone is written, but for the first.
    """

    def news(self, piece: Piece) -> bytes:
        """Events for a piece; empty when there is nothing to send yet, as always when the answer is not streamed."""

    def end(self, choices: Sequence[Choice]) -> bytes:
        """The last events, or the whole body."""


class Answer:
    """Listens to its choices and is the source of its exchange."""

    __slots__ = (
        "_access", "_choices", "_exchange", "_left", "_model", "_next", "_over", "_shape", "_streamed", "_visit",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, access: Access, visit: Visit, model: str, shape: Shape, streamed: bool
    ) -> None:
        self._exchange = exchange
        self._access = access
        self._visit = visit
        self._model = model
        self._shape = shape
        self._streamed = streamed
        self._choices: list[Choice] = []
        self._next = self._left = 0
        self._over = False

    async def run(self, choices: list[Choice]) -> None:
        """Until all is sent, or the client left, or it was told of a failure."""
        try:
            self.begin(choices)
            await self._exchange.answered()
        finally:
            self.release()

    def begin(self, choices: list[Choice]) -> None:
        """`release` is due when the exchange is over."""
        self._choices = choices
        self._left = len(choices)
        self._next = min(AT_ONCE, len(choices))
        around = getattr(self._shape, "around", None)
        if COMPILED and around is not None:
            for choice in choices:
                written = around(choice.index)
                choice.plain = None if written is None else (written, self._exchange.events)
        for choice in choices[: self._next]:
            if not self._over:
                choice.start()
        self._exchange.answer_by(self)

    def release(self) -> None:
        """Nothing is made any more."""
        if not self._over:  # the server is stopping, or the gateway failed; whoever caught it tells the client
            self._stop("aborted", None)
        self._choices = []  # each knows its answer: without this only the collector could free them

    # What the choices call.

    def piece(self, choice: Choice, piece: Piece) -> None:
        data = self._shape.news(piece)
        if data:
            self._exchange.events(data)

    def over(self, choice: Choice) -> None:
        self._left -= 1
        if self._left:
            if self._next < len(self._choices):
                self._next += 1
                self._choices[self._next - 1].start()
            return
        self._over = True
        self._name_lines()
        body, error = self._end()
        self._access.book(
            self._visit, self._exchange, self._model, self._choices, "finished" if error is None else "failed"
        )
        if error is not None:
            self._exchange.error(error)
        elif self._streamed:
            self._exchange.events(body, last=True)
        else:
            self._exchange.json(body)

    def _end(self) -> tuple[bytes, ApiError | None]:
        """What the shape makes of the end: it may find that the line left something out."""
        try:
            return self._shape.end(self._choices), None
        except ApiError as error:
            return b"", error
        except Exception:
            log.exception("the end of answer %s cannot be written", self._exchange.request_id)
            return b"", internal()

    def failed(self, choice: Choice, error: ApiError) -> None:
        if self._over:  # it failed at its own end: who has not had it must not wait for it
            self._exchange.error(error)
        else:
            self._stop("failed" if choice.begun else "refused", error)

    # What the exchange calls.

    def left(self) -> None:
        if not self._over:
            self._stop("aborted", None)

    def pause(self) -> None:
        for choice in self._choices:
            choice.pause()

    def resume(self) -> None:
        for choice in self._choices:
            choice.resume()

    def _stop(self, status: Status, error: ApiError | None) -> None:
        self._over = True
        for choice in self._choices:
            choice.abort()
        self._name_lines()
        if status == "refused" and any(choice.segments and choice.segments[0].last for choice in self._choices):
            status = "failed"
        self._access.book(self._visit, self._exchange, self._model, self._choices, status)
        if error is not None:
            self._exchange.error(error)

    def _name_lines(self) -> None:
        segments = [segment for choice in self._choices for segment in choice.segments]
        if len(segments) == 1:
            self._exchange.lines = segments[0].line.name
        else:
            self._exchange.lines = ",".join(dict.fromkeys(segment.line.name for segment in segments)) or "-"
