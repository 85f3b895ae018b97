"""An answer as runs: stretches of one kind, each opened, told piece by piece, and closed before the next begins.

Owns where a run begins and ends. Must not know how a dialect writes them.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal

from twinline.gateway.transcript import Piece

Kind = Literal["reasoning", "content", "call"]
What = Literal["open", "more", "close"]


@dataclass(slots=True, eq=False)
class Run:
    """`place` counts the runs from 0. A call's text are its arguments, as JSON."""

    kind: Kind
    place: int
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


Step = tuple[What, Run, str]


class Runs:
    """Of one choice. `runs` are those so far; `finish` and `stop_reason` are the last piece's."""

    def __init__(self, *, shows_reasoning: bool = True) -> None:
        """Without `shows_reasoning` there is no run of it."""
        self._shows = shows_reasoning
        self._open: Run | None = None
        self._call: object = None  # the index of the call that is open
        self.runs: list[Run] = []
        self.finish: str | None = None
        self.stop_reason: int | str | None = None

    @property
    def calls(self) -> bool:
        return any(run.kind == "call" for run in self.runs)

    def push(self, piece: Piece) -> list[Step]:
        """What the piece means, in order."""
        steps: list[Step] = []
        calls = list(piece.tool_calls or ())
        while calls and self._goes_on(calls[0]):  # before the text that follows the call
            self._called(calls.pop(0), steps)
        for kind, text in piece.parts:
            if kind == "reasoning" and not self._shows:
                continue
            run = self._open
            if run is None or run.kind != kind:
                run = self._begin(Run(kind, len(self.runs)), steps)
            self._more(run, text, steps)
        for delta in calls:
            self._called(delta, steps)
        if piece.finish is not None:
            self.finish, self.stop_reason = piece.finish, piece.stop_reason
            self._end(steps)
        return steps

    def _called(self, delta: dict[str, object], steps: list[Step]) -> None:
        """OpenAI's streamed call: the name comes once, the arguments in parts."""
        said = delta.get("function")
        function = said if isinstance(said, dict) else {}
        run = self._open
        if run is None or not self._goes_on(delta):
            call_id = delta.get("id") or f"call_{secrets.token_hex(12)}"
            run = Run("call", len(self.runs), str(call_id), str(function.get("name") or ""))
            self._call = delta.get("index", 0)
            self._begin(run, steps)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            self._more(run, arguments, steps)

    def _goes_on(self, delta: dict[str, object]) -> bool:
        """Whether it is more of the call that is open: engines differ in whether they say the index and id again."""
        run, said = self._open, delta.get("function")
        if run is None or run.kind != "call" or self._call != delta.get("index", 0):
            return False
        if call_id := delta.get("id"):  # whoever says it again may say the name again, too
            return call_id == run.call_id
        return not (isinstance(said, dict) and said.get("name") and run.texts)

    def _begin(self, run: Run, steps: list[Step]) -> Run:
        self._end(steps)
        self._open = run
        self.runs.append(run)
        steps.append(("open", run, ""))
        return run

    @staticmethod
    def _more(run: Run, text: str, steps: list[Step]) -> None:
        run.texts.append(text)
        steps.append(("more", run, text))

    def _end(self, steps: list[Step]) -> None:
        if self._open is not None:
            steps.append(("close", self._open, ""))
            self._open = None
