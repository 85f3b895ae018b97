"""One choice of an answer, from its first line to its last: placed, asked, broken, moved, ended.

Owns where an answer is being made and the budget of moves. Must not know HTTP towards the client, nor how a line is
chosen. One attempt owns the client: the call of an earlier one is cancelled before the next is made, and says nothing
any more. The client sees a pause.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from twinline.gateway.closing import caught, cut_short, end_attempt, last_words, sane
from twinline.gateway.deadline import NEVER, Deadline
from twinline.gateway.errors import ApiError, cannot_continue, deadline_passed, from_line, internal, not_asked
from twinline.gateway.faults import is_fault, is_full, of_request, reason_of, unreachable
from twinline.gateway.listener import Listener
from twinline.gateway.reasons import why_left, why_refused
from twinline.gateway.routing import Ask, Placement, Ticket, block_keys
from twinline.gateway.segment import Claim, Segment, answered, asked_of, resumed
from twinline.gateway.spoken import Spoken, said
from twinline.gateway.transcript import Around, Transcript
from twinline.lines.client import Call
from twinline.lines.line import Line
from twinline.lines.protocol import LineBroken, LineError, LineRefused, TextSource, TokenRequest
from twinline.lines.wire import Delta

if TYPE_CHECKING:
    from twinline.gateway.supply import Supply
    from twinline.gateway.tracing import ChoiceTrace

log = logging.getLogger(__name__)

MOVES = 3  # after breaks with less than GETS_ON tokens between them; a drain does not count
GETS_ON = 32
REFUSALS = 8  # lines that may refuse before the client is told


class Choice:
    """A sink for its call. `journal` and `segments` tell how far it came. `kept_to`: from the first it may be
    made by lines of this weights class only."""

    kept_to: str | None = None
    __slots__ = (
        "_call", "_deadline", "_finished", "_listener", "_moves", "_refusals", "_reported", "_supply", "_text",
        "ask", "claim", "error", "excluded", "index", "leads", "over", "paused", "pinned", "plain",
        "request", "segments", "ticket", "trace", "transcript", "waits_since", "weights_class",
    )  # fmt: skip

    def __init__(
        self,
        supply: Supply,
        request: TokenRequest,
        transcript: Transcript,
        ask: Ask,
        listener: Listener,
        index: int,
        claim: Claim,
        text: Callable[[], TextSource],
        pinned: str | None,
        leads: bool = True,
    ) -> None:
        self._supply = supply
        self._listener = listener
        self._text = text
        self._call: Call | None = None
        self._finished = self.over = False
        self.paused = False  # its client does not read: the line is silent because it is held
        self._moves = self._refusals = 0
        self._reported: ApiError | None = None
        self._deadline = NEVER if request.timeout_s is None else Deadline(request.timeout_s)
        self.request = request
        self.transcript = transcript
        self.ask = ask
        self.index = index
        self.claim = claim
        self.pinned = pinned  # the line that the client named
        self.leads = leads  # the first of its prompt, which counts once
        self.weights_class: str | None = None  # of the line that gave the first token
        self.excluded: set[str] = set()  # lines that failed this choice
        self.segments: list[Segment] = []
        self.ticket: Ticket[Choice] | None = None
        self.error: ApiError | None = None  # with which it ended
        self.trace: ChoiceTrace | None = None
        self.plain: tuple[Around, Callable[[bytes], None]] | None = None  # how its listener has text alone written
        self.waits_since = 0.0

    @property
    def journal(self) -> list[int]:
        return self.transcript.journal

    @property
    def prompt_tokens(self) -> int:
        """As the line counts them where it has a template of its own, else ours."""
        first = answered(self.segments)
        usage = first.usage if first is not None and first.line.text_only else None
        return (0 if usage is None else usage.prompt_tokens) or len(self.request.prompt)

    @property
    def completion_tokens(self) -> int:
        """Given out so far."""
        return len(self.journal) or sum(segment.tokens for segment in self.segments)

    @property
    def cached_tokens(self) -> int | None:
        first = answered(self.segments)
        return None if first is None else first.cached

    @property
    def begun(self) -> bool:
        """Something was given out: from now on it can only be continued."""
        return self.transcript.shown

    def start(self) -> None:
        self._deadline.watch(self._late)
        self._supply.place(self)

    @caught
    def _late(self) -> None:
        """A line keeps to the deadline itself; while none has the choice, it is kept here."""
        if self._call is None:
            self._fail(deadline_passed())

    def _close(self) -> None:
        self.over = True
        self._deadline.forget()

    def lost(self) -> None:
        """The gateway itself failed at it: nobody else would tell who waits."""
        self._close()
        with suppress(Exception):
            self._leave()
        self.error = internal()
        self._listener.failed(self, self.error)

    def abort(self) -> None:
        """The client left, or another choice failed: the line stops, the listener hears nothing more."""
        if self.over:
            return
        self._close()
        self._supply.withdraw(self)
        self._leave()

    def pause(self) -> None:
        self.paused = True
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        self.paused = False
        if self._call is not None:
            self._call.resume()

    # What the supply calls.

    @caught
    def placed(self, line: Line, placement: Placement) -> None:
        """The choice is `line`'s now."""
        if self.over:
            placement.end(ok=False)
            return
        now = time.monotonic()
        waste = self.ask.prompt_tokens if self.begun else 0
        queued = now - self.waits_since if self.waits_since and not self.segments else 0.0
        self.segments.append(Segment(line, placement, now, len(self.journal), waste, queued))
        if self.trace is not None:
            self.trace.placed(self.segments)
        try:
            deadline = self._deadline.at if len(self.segments) > 1 or queued > 0 else None  # it has waited
            request = asked_of(line, self.request, len(self.segments), self.journal, deadline, now)
            words = said(self._text(), self.transcript.spoken if self.begun else None) if line.text_only else None
            self._call = line.call(request, words, self)
        except Exception as error:
            self._not_asked(line, error)
            return
        line.calls[self._call] = self
        if self.paused:
            self._call.pause()

    @caught
    def refused(self, error: ApiError) -> None:
        """No line takes it."""
        self._fail(error if self.begun else self._reported or error)

    @caught
    def move(self, reason: str, *, drained: bool = False) -> None:
        """On purpose, from a line that goes out of service or is silent: the same as a break, but nobody's fault."""
        if self.over or self._finished or self._call is None:
            return
        self.segments[-1].left = "drained" if drained else "stalled"
        self._leave(drained=drained)
        self._go_on(LineBroken(reason, "moved"), counted=not drained)

    # What the call calls.

    def tokens(self, tokens: list[int]) -> bool:
        """Tokens that came alone, if they are text and nothing else; False: they must come by `delta`."""
        segment, transcript = self.segments[-1], self.transcript
        if self.plain is None or segment.placement.waits or self._finished:
            return False
        around, write = self.plain
        ends = len(transcript.journal) + len(tokens) >= self.request.max_tokens
        data = None if ends else transcript.event(tokens, around)
        if data is None:
            return False
        self._supply.meter.gap(segment, len(tokens))
        segment.deltas += 1
        write(data)
        return True

    def delta(self, delta: Delta) -> None:
        segment = self.segments[-1]
        if delta.usage is not None and sane(delta.usage):
            segment.usage = delta.usage
            segment.cached = delta.usage.cached_tokens
        finish = delta.finish_reason
        if self._finished or not (
            delta.tokens or finish or delta.text or delta.reasoning or delta.prompt_logprobs or delta.tool_calls
        ):
            return
        if finish is not None and finish in ("abort", "error", "deadline"):
            self._unhappy(finish)
            return
        room = self.request.max_tokens - self.transcript.tokens
        if len(delta.tokens) > room:
            delta, finish = cut_short(delta, room), None
        if segment.placement.waits:
            self._first(segment)
        else:
            self._supply.meter.gap(segment, len(delta.tokens))
        segment.deltas += 1
        piece = self.transcript.push(delta)
        if piece.finish is not None:
            self._finished = True
        self._listener.piece(self, piece)
        if self._finished and finish is None and not self.over:  # a stop string, or the limit: it need not go on
            self._leave(ok=True)
            self._complete()

    def _first(self, segment: Segment) -> None:
        segment.placement.first_token()
        if self.begun:  # it went on here, after the last that gave anything
            before = answered(self.segments[-2::-1])
            self._supply.meter.moved(segment.line.name, before or segment)
        self.weights_class = segment.line.spec.weights_class
        self._supply.first_token(self, segment)

    def _unhappy(self, finish: str) -> None:
        if finish == "deadline":
            return self._fail(deadline_passed())
        if self._call is not None:
            self._call.cancel()  # else its proper end would be taken for the end of the next attempt
        self.failed(LineBroken(f"it finished with {finish}"))

    @caught
    def finished(self) -> None:
        end_attempt(self._supply, self, ok=True)
        self._call_gone()
        self._complete()

    @caught
    def failed(self, error: LineError) -> None:
        """The call ended badly: told to the circuit if it was the line's own doing, then the choice goes on."""
        segment, fault = self.segments[-1], is_fault(error)
        line = segment.line
        self._call_gone()
        if self._finished:  # all of the text is here; what broke is only the end
            end_attempt(self._supply, self, ok=True, fault=fault)
            return self._complete()
        segment.left = why_left(error)
        end_attempt(self._supply, self, ok=False, fault=fault)
        if fault:
            self._supply.fault(line, reason_of(error), unreachable=unreachable(error))
        if isinstance(error, LineRefused) or (is_full(error) and not segment.deltas):
            told = from_line(error)
            if told.status == 400 and not self.begun:  # else one line took it: what another says is that one's affair
                self._fail(told)
            else:
                self._retry(line, told)
        elif isinstance(error, LineBroken) and error.code == "deadline":
            self._fail(deadline_passed())
        elif of_request(error) and not self.begun:
            self._fail(from_line(error))
        else:
            self._go_on(error)

    # How it goes on.

    def _not_asked(self, line: Line, error: Exception) -> None:
        """The line's dialect cannot say this, or the fault is ours; its books must not keep what it never got."""
        if isinstance(error, LineRefused):
            return self.failed(error)
        if not isinstance(error, ValueError):
            log.exception("%s cannot be put to line %s", self.request.request_id, line.name)
        self.segments[-1].left = "refused"
        end_attempt(self._supply, self, ok=False)
        self._retry(line, not_asked(line.name, error))

    def _retry(self, line: Line, told: ApiError) -> None:
        """A line did not take it; nothing was generated there."""
        self.excluded.add(line.name)
        self._reported = told
        if self._deadline.passed:
            return self._fail(deadline_passed())
        if told.status == 429:
            self.excluded.discard(line.name)
            self._supply.full(line, told.headers.get("retry-after"))
        else:
            self._refusals += 1
        if self._refusals > REFUSALS:
            self._fail(told)
        elif self.begun:
            self._supply.resume(self, refused=True)
        elif told.status == 429 or self._supply.has_fresh(self):
            self._supply.place(self)
        else:
            self._fail(told)

    def _go_on(self, error: LineError, *, counted: bool = True) -> None:
        """An attempt broke. What it left behind the journal is made again."""
        line = self.segments[-1].line
        self.excluded.add(line.name)
        tokens = len(self.journal)
        log.info("%s leaves line %s after %d tokens: %.200s", self.request.request_id, line.name, tokens, error)
        self._reported = told = from_line(error)
        if counted:
            # One that gets on is no request that breaks every line: its breaks are counted anew.
            self._moves = 1 if self.segments[-1].tokens >= GETS_ON else self._moves + 1
            if self._moves > self._supply.bounds.moves:
                broke = cannot_continue(f"it broke {self._moves} times, {told.message}")
                return self._fail(broke if self.begun else told)
        if self._deadline.passed:
            return self._fail(deadline_passed())
        if not self.begun:
            self.transcript.cut()  # a part of a character may have come
            return self._supply.place(self)
        spoken = self.transcript.spoken
        if spoken is not None:
            return self._go_on_speaking(spoken, told)
        if not self._ends_here():
            self.transcript.cut()
            journal = self.journal
            keys = block_keys([*self.request.prompt, *journal])
            self.ask = resumed(self.ask, len(self.request.prompt), len(journal), keys)
            self._supply.resume(self)

    def _go_on_speaking(self, spoken: Spoken, told: ApiError) -> None:
        """The same for an answer that is text: only where the fleet says how a line goes on after one."""
        if not spoken.resumable or not self._supply.speaks_on(self):
            return self._fail(cannot_continue(f"its line gives text only, {told.message}"))
        spoken.cut()
        self._supply.resume(self)

    def _ends_here(self) -> bool:
        """The break came between the last token and its finish reason: nothing is left to be made."""
        words = last_words(self.transcript, self.request)
        if words is None:
            return False
        piece = self.transcript.push(words)
        self._finished = True
        self._listener.piece(self, piece)
        if not self.over:
            self._complete()
        return True

    # The end of an attempt, and of all.

    def _leave(self, *, ok: bool = False, drained: bool = False) -> None:
        """Cancels the call, if there is one."""
        if self._call is None:
            return
        self._call.cancel()
        self._call_gone()
        if drained:
            self.segments[-1].placement.moved(len(self.journal) - self.segments[-1].tokens_before)
        end_attempt(self._supply, self, ok=ok)

    def _call_gone(self) -> None:
        if self._call is not None:
            self.segments[-1].line.calls.pop(self._call, None)
            self._call = None

    def _complete(self) -> None:
        if not self.over:
            self._close()
            self._listener.over(self)

    def _fail(self, error: ApiError) -> None:
        if not self.over:
            self._close()
            self.error = error
            self._supply.meter.refused(why_refused(error))
            self._supply.withdraw(self)
            self._leave()
            self._listener.failed(self, error)
