"""What requests have in common: a client sends the same fields again and again, and only its prompt is another.

Owns the memory of forms, and what a request of a known form takes from it: all that its fields mean was found out and
checked for the first of them. Must not know how a prompt is read nor how an answer is shaped: an endpoint's own form
does. A request that is not surely of a known form is nobody's here, and its endpoint reads all of it.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

import msgspec

from twinline.gateway.answer import Shape
from twinline.gateway.api_types import Common
from twinline.gateway.exchange import Exchange
from twinline.gateway.sampling import TIMEOUT_HEADER, Plan, again
from twinline.gateway.text.reasoning import ReasoningParser

if TYPE_CHECKING:
    from twinline.gateway.door import Target
    from twinline.gateway.served import ServedModel

R = TypeVar("R", bound=Common)
LONGEST_REST_BYTES = 2048  # of a body without its prompt
MOST_FORMS = 256  # of one endpoint; a client that sends another with each request pushes out those that nobody sends


def _cannot_split(body: bytes, name: bytes, /) -> tuple[bytes, bytes] | None:
    return None


split: Callable[[bytes, bytes], tuple[bytes, bytes] | None] = _cannot_split
with contextlib.suppress(ImportError):
    from twinline.gateway._requests import split
COMPILED = split is not _cannot_split


class Asked(msgspec.Struct, eq=False):
    """What the prompt of one request comes to. `reasoning` parses its answer, where answers have such."""

    prompt: list[int]
    max_tokens: int
    reasoning: ReasoningParser | None = None


def decoder_of(shape: type[Common], name: str) -> msgspec.json.Decoder[Any]:
    """Reads one field as the endpoint's decoder reads it within a body."""
    return msgspec.json.Decoder(get_type_hints(shape, include_extras=True)[name])


def has_form(request: Common, plan: Plan, exchange: Exchange) -> bool:
    """Whether further requests may be like it: one choice each, and no grammar, which is told how the prompt ends."""
    return (
        COMPILED
        and request.n in (None, 1)
        and plan.fields["grammar"] is None
        and exchange.header(TIMEOUT_HEADER) is None
    )


class Form(ABC, Generic[R]):
    """One endpoint's requests of one form. `told`: header lines that each answer has."""

    def __init__(self, request: R, target: Target, plan: Plan, told: bytes, *, chat: bool, bounded: bool) -> None:
        """`request` and `plan` are the first's."""
        self.request, self.target, self.told = request, target, told
        self._plan = plan
        self.max_tokens, self.min_tokens, self.rules = plan.max_tokens, plan.min_tokens, plan.rules
        self.chat, self.bounded = chat, bounded
        self.streamed = bool(request.stream)

    @abstractmethod
    def read(self, part: bytes) -> Asked | None:
        """What the field says that differs; None where something is wrong or unusual about it."""

    @abstractmethod
    def shape(self, asked: Asked, request_id: str) -> Shape: ...

    def plan(self, asked: Asked, request_id: str) -> Plan:
        return again(self._plan, self.request, asked.max_tokens, request_id)


class Forms:
    """Those of one endpoint, whose requests differ in the field `name`."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._known: dict[bytes, Form[Any]] = {}

    def find(self, body: bytes) -> tuple[Form[Any], bytes] | None:
        """The form of that body and the bytes in which it differs, if one is known."""
        if not self._known:
            return None
        parts = split(body, self._name)
        if parts is None:
            return None
        form = self._known.pop(parts[0], None)
        if form is None:
            return None
        self._known[parts[0]] = form  # the oldest is the one that was not asked for longest
        return form, parts[1]

    def keep(self, body: bytes, form: Form[Any]) -> None:
        """A request with that body was answered, and others may follow."""
        parts = split(body, self._name)
        if parts is None or len(parts[0]) > LONGEST_REST_BYTES:
            return
        if len(self._known) >= MOST_FORMS and parts[0] not in self._known:
            del self._known[next(iter(self._known))]
        self._known[parts[0]] = form

    def forget(self, served: ServedModel) -> None:
        """That model is not there any more."""
        self._known = {rest: other for rest, other in self._known.items() if other.target.served is not served}
