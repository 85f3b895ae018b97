"""A chat's pieces as a response: its items, its events when streamed, and how a stream says that it broke.

Owns how they are written. Must not know lines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from twinline.gateway.api_types import ReasoningTokens
from twinline.gateway.choice import Choice
from twinline.gateway.dialects.responses_in import named_here
from twinline.gateway.dialects.responses_tools import spaced_names
from twinline.gateway.dialects.responses_types import (
    Cached,
    CallItem,
    Failure,
    Incomplete,
    MessageItem,
    OutputText,
    Reasoning,
    ReasoningItem,
    ReasoningText,
    ResponseOut,
    ResponsesRequest,
    ResponseUsage,
    Status,
    TextConfig,
    TextFormat,
)
from twinline.gateway.dialects.runs import Run, Runs
from twinline.gateway.dialects.sealed import ASKED, sealed
from twinline.gateway.errors import ApiError, OpenAIWording
from twinline.gateway.reply import usage_of
from twinline.gateway.transcript import Piece

_encode = msgspec.json.Encoder().encode
_PREFIXES = {"content": "msg", "reasoning": "rs", "call": "fc"}
_CUT: Mapping[str | None, Literal["max_output_tokens", "content_filter"]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",  # a remote's
}
_DELTAS = {
    "content": "response.output_text",
    "reasoning": "response.reasoning_text",
    "call": "response.function_call_arguments",
}


class ResponsesWording(OpenAIWording):
    """Names the client's own fields, not those of the chat behind them."""

    def body(self, error: ApiError, request_id: str | None) -> bytes:
        error.param = named_here(error.param)
        return super().body(error, request_id)


class Whole:
    """Gathers the pieces."""

    def __init__(self, request: ResponsesRequest, request_id: str, mark: Sequence[int] = ()) -> None:
        """`mark`: the token ids that end reasoning."""
        self._mark = mark
        self.runs = Runs()
        self._request_id = request_id
        self._spaced = spaced_names(request.tools or ())
        self._seals = isinstance(request.include, list) and ASKED in request.include
        text = request.text or TextConfig()
        self._blank = ResponseOut(
            id=f"resp_{request_id}",
            created_at=int(time.time()),
            status="in_progress",
            model=request.model,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            reasoning=request.reasoning or Reasoning(),
            temperature=request.temperature,
            text=TextConfig(text.format or TextFormat("text"), text.verbosity),
            tool_choice="auto" if request.tool_choice is None else request.tool_choice,
            tools=request.tools or [],
            top_p=request.top_p,
        )

    def news(self, piece: Piece) -> bytes:
        self.runs.push(piece)
        return b""

    def end(self, choices: Sequence[Choice]) -> bytes:
        return _encode(self.finished(choices))

    def finished(self, choices: Sequence[Choice]) -> ResponseOut:
        cut = _CUT.get(self.runs.finish)
        used = usage_of(choices, mark=self._mark)
        details = used.prompt_tokens_details
        usage = ResponseUsage(
            input_tokens=used.prompt_tokens,
            input_tokens_details=Cached(0 if details is None else details.cached_tokens),
            output_tokens=used.completion_tokens,
            output_tokens_details=used.completion_tokens_details or ReasoningTokens(0),
            total_tokens=used.total_tokens,
        )
        return self.response(
            "incomplete" if cut else "completed",
            output=[self.item(run, self.status_of(run)) for run in self.runs.runs],
            incomplete_details=Incomplete(cut) if cut else None,
            usage=usage,
        )

    def response(self, status: Status, **fields: Any) -> ResponseOut:
        return msgspec.structs.replace(self._blank, status=status, **fields)

    def status_of(self, run: Run) -> Status:
        """At its end: only the last run can have been cut short, or have broken off."""
        cut = self.runs.finish is None or self.runs.finish in _CUT
        return "incomplete" if cut and run is self.runs.runs[-1] else "completed"

    def id_of(self, run: Run) -> str:
        return f"{_PREFIXES[run.kind]}_{self._request_id}_{run.place}"

    def item(self, run: Run, status: Status) -> MessageItem | ReasoningItem | CallItem:
        """Of a run that was just opened: without any text."""
        name = self.id_of(run)
        if run.kind == "call":
            space, called = self._spaced.get(run.name, (msgspec.UNSET, run.name))
            return CallItem(
                id=name, status=status, call_id=run.call_id, name=called, arguments=run.text, namespace=space
            )
        if run.kind == "content":
            return MessageItem(id=name, status=status, content=[OutputText(run.text)] if run.texts else [])
        if not run.texts:
            return ReasoningItem(id=name, status=status, content=[])
        kept = sealed(run.text) if self._seals else msgspec.UNSET
        return ReasoningItem(id=name, status=status, content=[ReasoningText(run.text)], encrypted_content=kept)


class Streamed(Whole, ResponsesWording):
    """Nothing is sent before the first piece, so that a refusal is still an HTTP status. It words its own breaking off,
    for events are numbered."""

    def __init__(self, request: ResponsesRequest, request_id: str, mark: Sequence[int] = ()) -> None:
        super().__init__(request, request_id, mark)
        self._number = 0

    def news(self, piece: Piece) -> bytes:
        data = self._start()
        for what, run, text in self.runs.push(piece):
            if what == "more":
                place = {"content_index": 0} if run.kind != "call" else {}
                more: dict[str, object] = {"logprobs": []} if run.kind == "content" else {}
                data += self._of(run, f"{_DELTAS[run.kind]}.delta", delta=text, **place, **more)
            elif what == "open":
                data += self._open(run)
            else:
                data += self._close(run)
        return data

    def end(self, choices: Sequence[Choice]) -> bytes:
        response = self.finished(choices)
        return self._start() + self._event(f"response.{response.status}", response=response)

    def event(self, error: ApiError, request_id: str) -> bytes:
        """The response as failed, then the error that makes OpenAI's client raise."""
        error.param = named_here(error.param)
        output = [self.item(run, self.status_of(run)) for run in self.runs.runs]
        failed = self.response("failed", output=output, error=Failure("server_error", error.message))
        inner = msgspec.json.decode(error.body())["error"]
        return self._event("response.failed", response=failed) + self._event(
            "error", code=error.code, message=error.message, param=error.param, error=inner
        )

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return b"event: %b\ndata: %b\n\n" % (
            kind.encode(),
            _encode({"type": kind, "sequence_number": number, **fields}),
        )

    def _of(self, run: Run, kind: str, **fields: object) -> bytes:
        return self._event(kind, item_id=self.id_of(run), output_index=run.place, **fields)

    def _start(self) -> bytes:
        if self._number:
            return b""
        response = self.response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _open(self, run: Run) -> bytes:
        empty = Run(run.kind, run.place, run.call_id, run.name)
        item = self.item(empty, "in_progress")
        data = self._event("response.output_item.added", output_index=run.place, item=item)
        if run.kind != "call":
            part = OutputText("") if run.kind == "content" else ReasoningText("")
            data += self._of(run, "response.content_part.added", content_index=0, part=part)
        return data

    def _close(self, run: Run) -> bytes:
        text = run.text
        kind = f"{_DELTAS[run.kind]}.done"
        if run.kind == "call":
            data = self._of(run, kind, arguments=text, name=self._spaced.get(run.name, ("", run.name))[1])
        else:
            more: dict[str, object] = {"logprobs": []} if run.kind == "content" else {}
            part = OutputText(text) if run.kind == "content" else ReasoningText(text)
            data = self._of(run, kind, content_index=0, text=text, **more)
            data += self._of(run, "response.content_part.done", content_index=0, part=part)
        done = self.item(run, self.status_of(run))
        return data + self._event("response.output_item.done", output_index=run.place, item=done)
