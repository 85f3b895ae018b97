"""Who asks, what they may, and what they used: keys, limits and the journal, as one door sees them.

Owns the order of the checks and the record of a request. Must not know how keys or limits are kept (`store/`), nor how
a request is answered. A gateway without keys lets everybody in as nobody, and records usage all the same if it has a
journal.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

import msgspec

from twinline.gateway.choice import Choice
from twinline.gateway.errors import ApiError, forbidden, not_admitted, unauthorized
from twinline.gateway.exchange import Exchange, header_in
from twinline.gateway.pages import refuse_names, refuse_pages
from twinline.gateway.reasons import why_refused
from twinline.gateway.segment import Claim
from twinline.store.journal import Journal
from twinline.store.keys import Key
from twinline.store.limits import NEEDS_LEASE, Limits
from twinline.store.refusal import Refusal
from twinline.store.ring import KeyRing
from twinline.store.usage import Segment, Status, Usage

if TYPE_CHECKING:
    from twinline.gateway.tracing import RequestTrace

log = logging.getLogger(__name__)
_BEARER = "bearer "
RETRY_SECONDS = 1.0  # after a disk has taken no record


class Visit(msgspec.Struct, eq=False):
    """One request of one tenant. `admitted` and the estimates are what its limits have set aside for it."""

    key: Key | None
    began: float
    admitted: float = 0.0
    tokens_estimate: int = 0
    cost_estimate: float = 0.0
    settled: bool = True
    # For observers.
    started: float = msgspec.field(default_factory=time.monotonic)
    model: str = "-"
    choices: Sequence[Choice] = ()
    outcome: Status | None = None  # None: it never came to a line
    refusal: str | None = None  # why its key or a limit stood against it
    trace: RequestTrace | None = None

    @property
    def tenant(self) -> str:
        return "-" if self.key is None else self.key.name

    def claim(self, asked_priority: int | None) -> Claim:
        """In the protocol a smaller priority is served first; in the queue a higher one."""
        if self.key is None:
            return Claim("", -(asked_priority or 0))
        return Claim(self.key.id, -self.key.priority(asked_priority), self.key.weight)


class Observer(Protocol):
    """Hears of each request twice, those included that are refused at once."""

    def began(self, exchange: Exchange, visit: Visit) -> None: ...

    def ended(self, exchange: Exchange, visit: Visit) -> None:
        """Its last byte was handed over, or the client left."""


class Access:
    """The checks of one gateway process. Without `ring` no key is needed; `admin` is the management key's secret."""

    def __init__(
        self,
        ring: KeyRing | None = None,
        limits: Limits | None = None,
        journal: Journal | None = None,
        admin: str | None = None,
        currency: str | None = None,
    ) -> None:
        self._ring, self._limits, self._journal = ring, limits, journal
        self._admin = sha256(admin.encode()).digest() if admin else None  # an empty key would be everybody's
        self._currency = currency
        self._booked: list[str] = []  # requests whose records this turn of the loop will write
        self._retry: asyncio.TimerHandle | None = None
        self.observers: list[Observer] = []
        self.on_refusal: Callable[[str, str], None] = lambda key, reason: None

    @property
    def needs_key(self) -> bool:
        return self._ring is not None

    @property
    def unrecorded(self) -> tuple[int, int]:
        """Records that wait for a disk that takes them, and those that were lost to it."""
        return (0, 0) if self._journal is None else (self._journal.waiting, self._journal.lost)

    def enter(self, exchange: Exchange) -> Visit:
        """Whose request it is. Raises ApiError 401, or 403."""
        visit = Visit(None, time.time())
        self._observe(exchange, visit)
        try:
            visit.key = self._bearer(exchange.header)
        except ApiError as error:
            raise self._refused(visit, error) from None
        exchange.tenant = visit.tenant
        return visit

    def key_in(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """Whose key the head of a request bears; None where no key is needed. Raises ApiError 401, or 403."""
        return self._bearer(lambda name: header_in(headers, name))

    def knows(self, key: Key | None) -> bool:
        """Whether a key that was found before would be found again."""
        return key is None if self._ring is None else key is not None and self._ring.holds(key)

    def observe(self, exchange: Exchange, visit: Visit) -> None:
        """The rest of `enter`, for who has a visit already."""
        self._observe(exchange, visit)
        if visit.key is not None:
            exchange.tenant = visit.key.name

    def _observe(self, exchange: Exchange, visit: Visit) -> None:
        if not self.observers:
            return
        observers = tuple(self.observers)
        for observer in observers:
            try:
                observer.began(exchange, visit)
            except Exception:
                log.exception("request %s is not told of", exchange.request_id)

        def over() -> None:
            for observer in observers:
                try:
                    observer.ended(exchange, visit)
                except Exception:
                    log.exception("request %s is not told of", exchange.request_id)
            visit.choices = ()  # they know their answer, and it the visit

        exchange.afterwards.append(over)

    def _refused(self, visit: Visit, error: ApiError) -> ApiError:
        visit.refusal = why_refused(error)
        self.on_refusal(visit.tenant, visit.refusal)
        return error

    def key_of(self, headers: Mapping[str, str]) -> Key | None:
        """Whose key a plain question bears; None where no key is needed. Raises ApiError 401, or 403."""
        if self._ring is None:
            refuse_names(headers.get)
            return None
        return self._bearer(headers.get)

    def _bearer(self, header: Callable[[str], str | None]) -> Key | None:
        if self._ring is None:
            refuse_pages(header)
            return None
        secret = secret_of(header)
        if secret is None:
            raise unauthorized("A key is needed: send it as `Authorization: Bearer KEY`.")
        key = self._ring.find(secret)
        if key is None:
            raise unauthorized(self._ring.why_not(secret))
        return key

    def manages(self, headers: Mapping[str, str]) -> None:
        """Raises ApiError 401 or 403 unless the request bears the management key, or a key of an administrator."""
        secret = secret_of(headers.get)
        if secret is None:
            raise unauthorized("The management API needs its key: send it as `Authorization: Bearer KEY`.")
        presented = sha256(secret.encode("utf-8", "surrogatepass")).digest()
        if self._admin is not None and hmac.compare_digest(presented, self._admin):
            return
        key = None if self._ring is None else self._ring.find(secret)
        if key is None or not key.admin:
            raise forbidden("This key may not use the management API.")

    def allow(self, visit: Visit, model: str) -> None:
        """Raises ApiError 403 if the key is not for that model."""
        if visit.key is not None and not visit.key.allows(model):
            told = f"The key {visit.key.name} is not allowed to use the model `{model}`."
            raise self._refused(visit, forbidden(told, "model_not_allowed"))

    async def admit(self, visit: Visit, tokens: int, cost: float) -> None:
        """Sets aside what the request may use. Raises ApiError 429, or 503 when limits cannot be checked."""
        key = visit.key
        if key is None or self._limits is None:
            return
        if not self._counts(key, cost):
            told = f"The budget of key {key.name} is in {key.currency}, and costs are counted in {self._currency} here."
            raise self._refused(visit, forbidden(told, "budget_currency"))
        now = time.time()
        verdict = self._limits.admit(key, tokens, now, cost)
        if verdict is NEEDS_LEASE:
            verdict = await self._limits.ensure(key, tokens, cost)
            now = time.time()
        if isinstance(verdict, Refusal):
            refusal = not_admitted(verdict.reason, verdict.code, verdict.retry_after_seconds, verdict.status)
            raise self._refused(visit, refusal)
        visit.admitted, visit.tokens_estimate, visit.cost_estimate, visit.settled = now, tokens, cost, False

    def admit_at_once(self, visit: Visit, tokens: int, cost: float) -> bool:
        """False, and nothing set aside, where `admit` would refuse or wait."""
        key = visit.key
        if key is None or self._limits is None:
            return True
        if not self._counts(key, cost):
            return False
        now = time.time()
        if self._limits.admit(key, tokens, now, cost) is not None:
            return False
        visit.admitted, visit.tokens_estimate, visit.cost_estimate, visit.settled = now, tokens, cost, False
        return True

    def _counts(self, key: Key, cost: float) -> bool:
        """Whether the key's budget, if it has one, is in what costs are counted in: other money would be no limit."""
        return not cost or key.money_budget is None or key.currency == self._currency

    def book(self, visit: Visit, exchange: Exchange, model: str, choices: Sequence[Choice], status: Status) -> None:
        """Records what was used, before the client has its last byte, and settles the limits. Once per request.

        A disk that takes no record is told in the log: the answer is there, and refusing it would help nobody. The
        journal writes the record when there is room again.
        """
        if self.observers:
            visit.model, visit.choices, visit.outcome = model, choices, status
        segments = segments_of(choices)
        if visit.key is not None and self._limits is not None and not visit.settled:
            visit.settled = True
            used, cost = 0, 0.0
            for segment in segments:
                used += segment.prompt_tokens + segment.completion_tokens
                cost += segment.cost
            if used or status != "refused":
                self._limits.settle(
                    visit.key,
                    tokens_estimate=visit.tokens_estimate,
                    tokens=used,
                    admitted=visit.admitted,
                    cost=cost,
                    cost_estimate=visit.cost_estimate,
                )
            else:
                self._limits.refund(
                    visit.key,
                    tokens_estimate=visit.tokens_estimate,
                    admitted=visit.admitted,
                    cost_estimate=visit.cost_estimate,
                )
        if self._journal is None or not segments:
            return
        record = Usage(
            uid=self._journal.next_uid(),
            request_id=exchange.request_id,
            key=None if visit.key is None else visit.key.id,
            model=model,
            started=visit.began,
            seconds=time.time() - visit.began,
            status=status,
            segments=segments,
            choices=len(choices),
            currency=self._currency,
        )
        self._journal.add(record)
        if not self._booked:
            exchange.turn.before(self._commit)
        self._booked.append(exchange.request_id)

    def _commit(self) -> None:
        """All records of a turn of the event loop by one write, before the last bytes of their answers go out."""
        assert self._journal is not None
        booked, self._booked = self._booked, []
        try:
            self._journal.commit()
        except OSError as error:
            if booked:
                log.error("usage is not recorded yet, of some or all of requests %s: %s", ", ".join(booked), error)
            if self._retry is None:  # there may be no further request whose record would bring these along
                self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._commit_again)

    def _commit_again(self) -> None:
        self._retry = None
        self._commit()


def secret_of(header: Callable[[str], str | None]) -> str | None:
    """From OpenAI's header, or Anthropic's."""
    bearer = header("authorization")
    if bearer is not None and bearer[: len(_BEARER)].lower() == _BEARER:
        return bearer[len(_BEARER) :].strip()
    return header("x-api-key")


def segments_of(choices: Sequence[Choice]) -> list[Segment]:
    """What each line did. A prompt counts once however many choices it has, and is the first line's that answered."""
    segments = []
    for choice in choices:
        for number, part in enumerate(choice.segments, 1):
            if not part.tokens and not part.last:
                continue
            segments.append(
                Segment(
                    line=part.line.name,
                    chip=part.line.spec.chip,
                    attempt=number,
                    prompt_tokens=part.prompt_tokens,
                    cached_tokens=min(part.cached or 0, part.prompt_tokens),
                    completion_tokens=part.tokens,
                    seconds=round(part.seconds, 6),
                    cost=part.cost,
                    waste_tokens=part.waste,
                )
            )
    return segments
