"""A line as the gateway sees it: a name, a life, what it can do, and calls that it answers.

Owns what every line shares: it serves only after it was verified. Must not know how the line was started.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeGuard

from twinline.lines.client import Call, LineClient, Sink
from twinline.lines.drivers import driver
from twinline.lines.drivers.driver import RESTS_ON
from twinline.lines.drivers.vectors import VectorDialect
from twinline.lines.gathered import Queue
from twinline.lines.protocol import LineError, LineRefused, TextSource, TokenRequest, VectorRequest
from twinline.lines.spec import LineSpec
from twinline.lines.state import Life, LineState
from twinline.lines.vectors import ask as ask_vectors
from twinline.lines.vectors import test_request
from twinline.lines.wire import Delta, VectorDelta

VERIFY_SECONDS = 120.0
BAD_ENDS = ("error", "abort", "deadline")
SIMULATED = "simulated"  # the engine that plays chips


class VerificationFailed(LineError):
    """A line did not answer its test request as it should, or stopped over it."""


class Line:
    """One running supply of a model. `model` is the name under which the line itself knows it.

    `calls` are the requests under way and whose they are, `facts` what the engine said of itself, `born` when it
    started, `lent` the features that whoever asks adds to an engine of tokens, `vectors` how it is asked for vectors if
    it gives them, and then it gives nothing else. `context` is how many tokens it can hold of one request, None while
    nobody says.
    """

    def __init__(self, name: str, spec: LineSpec, url: str | None = None) -> None:
        """Raises ValueError for an engine that nobody drives or a secret that is not there."""
        self.name = name
        self.spec = spec
        self.model = spec.known_as
        self.driver = driver(spec.engine)
        self.vectors: VectorDialect | None = None
        self.life = Life(name)
        self.lent: frozenset[str] = frozenset()
        self.declare(spec, {})
        self.born = 0.0
        self.calls: dict[Call, Any] = {}
        self._client: LineClient | None = None
        self._url: str | None = None
        self.at(url or spec.url)

    def declare(self, spec: LineSpec, facts: Mapping[str, Any]) -> None:
        """What is said of it now; how it is spoken to must be the same."""
        self.spec = spec
        self.facts = facts

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    @facts.setter
    def facts(self, facts: Mapping[str, Any]) -> None:
        """`lacks` in it are features that this line's engine has in general, and this one has not. A length that none
        can be tells nothing: some say 0 or -1 of what they do not know."""
        self._facts = facts
        limits = [limit for limit in (self.spec.context, facts.get("max_model_len")) if is_size(limit)]
        self.context: int | None = min(limits, default=None)
        self.vectors = self.driver.vectors(self.spec) if self.spec.embeds else None
        if self.vectors is not None:
            self._has(self.vectors.features - self.spec.lacks)
            return
        lacks = facts.get("lacks")
        told = lacks if isinstance(lacks, list | tuple) else ()
        own = self.driver.features - self.spec.lacks - {each for each in told if isinstance(each, str)}
        lent = self.lent - self.spec.lacks if "token_ids" in own else frozenset()
        self._has(own | {feature for feature in lent if RESTS_ON.get(feature, "token_ids") in own})

    def _has(self, features: frozenset[str]) -> None:
        self.features = features
        self.text_only = "token_ids" not in features

    def lend(self, features: frozenset[str]) -> None:
        """What is done here with the tokens of any line counts as the line's own."""
        self.lent = features
        self.facts = self._facts

    def at(self, url: str | None) -> None:
        """The line listens there from now on; None: nowhere."""
        if self._client is not None:
            self._client.close()
        self._client, self._url = None, url
        if url is not None:
            self._client = LineClient(url, self.driver.dialect(self.spec), self.driver.headers(self.spec, os.environ))

    @property
    def client(self) -> LineClient:
        """Raises LineRefused while the line has no address yet."""
        if self._client is None:
            raise self._not_up()
        return self._client

    @property
    def url(self) -> str | None:
        return None if self._client is None else self._url

    @property
    def state(self) -> LineState:
        return self.life.state

    @property
    def simulated(self) -> bool:
        """No silicon computes its answers: the engine plays a chip, or says that its device is one in software."""
        return self.spec.engine == SIMULATED or self.facts.get("simulated") is True

    def call(self, request: TokenRequest, text: TextSource | None, sink: Sink) -> Call:
        """`LineClient.call`, for a line that takes requests. Raises LineRefused when it does not, or ValueError."""
        if not self.life.state.takes_requests:
            raise self._not_up()
        if isinstance(request, VectorRequest):
            return ask_vectors(self, request, sink)
        return self.client.call(request, text, sink)

    def stream(self, request: TokenRequest, text: TextSource | None = None) -> AsyncGenerator[Delta, None]:
        """`LineClient.stream`, for a line that takes requests. Raises LineRefused at once when it does not."""
        if not self.life.state.takes_requests:
            raise self._not_up()
        return self.client.stream(request, text)

    def _not_up(self) -> LineRefused:
        return LineRefused(503, f"line {self.name} is {self.state}: {self.life.reason}", "line_not_serving")

    async def verify(self) -> None:
        """Takes the line from starting or quarantined to serving: one greedy token of a test prompt must come back, or
        one vector.

        Raises VerificationFailed when it does not; the line is quarantined then, unless it stopped meanwhile.
        """
        self.life.to(LineState.VERIFYING, "a test request is under way")
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                fault = await fault_of(self)
        except LineError as error:
            fault = str(error)
        except ValueError as error:
            fault = f"it cannot be asked: {error}"
        except TimeoutError:
            fault = f"no answer within {VERIFY_SECONDS:g} s"
        if self.life.state is not LineState.VERIFYING:
            raise VerificationFailed(f"line {self.name} is {self.state} after its test request: {self.life.reason}")
        if fault is not None:
            self.life.to(LineState.QUARANTINED, f"its test request failed: {fault}")
            raise VerificationFailed(f"line {self.name} failed its test request: {fault}")
        self.life.to(LineState.SERVING, "its test request was answered")


def is_size(told: object) -> TypeGuard[int]:
    """Whether what a line tells can be a number of tokens at all."""
    return type(told) is int and 0 < told < 2**31


async def fault_of(line: Line) -> str | None:
    """Asks for one greedy token of a test prompt, or for one vector; what was wrong with the answer, or None. One whose
    engine says that it gives the other is not asked: what a fleet holds to be alike is told from specs alone. Raises
    LineError, or ValueError where the line cannot be asked."""
    embeds = line.facts.get("embeds")
    if isinstance(embeds, bool) and embeds is not line.spec.embeds:
        what = "vectors and generates nothing" if embeds else "no vectors: it generates"
        return f"its engine gives {what}; say embeds: {str(embeds).lower()} of this line in the fleet file"
    client, model, text_only = line.client, line.model, line.text_only
    name = f"verify-{secrets.token_hex(4)}"  # its own: an engine may still be at an earlier test that was given up
    if line.vectors is not None:
        return await _fault_of_vector(line, test_request(model, name))
    request = TokenRequest(model=model, prompt=[0], request_id=name, max_tokens=1, temperature=0.0, ignore_eos=True)
    if text_only:
        return await _fault_of_text(client, request)
    tokens: list[int] = []
    counted = 0  # by an engine that holds back a token which is no whole character
    async with aclosing(client.stream(request)) as deltas:
        async for delta in deltas:
            tokens += delta.tokens
            counted = counted or (delta.usage.completion_tokens if delta.usage is not None else 0)
            if delta.finish_reason in BAD_ENDS:
                return f"it finished with {delta.finish_reason}"
    return None if len(tokens) == 1 or counted == 1 else f"it gave {len(tokens)} tokens instead of 1"


async def _fault_of_text(client: LineClient, request: TokenRequest) -> str | None:
    """The same by a text. Asked once more with no field that may be refused: OpenAI's models that reason take neither
    `max_tokens` nor a temperature. Raises LineError."""
    said: dict[str, Any] = {"model": request.model, "messages": [{"role": "user", "content": "Hello"}]}
    try:
        return await _end_of(client, request, said | {"max_tokens": 1, "temperature": 0})
    except LineRefused as error:
        if error.status not in (400, 422):
            raise
    return await _end_of(client, request, said)


async def _end_of(client: LineClient, request: TokenRequest, body: dict[str, Any]) -> str | None:
    finished = False
    async with aclosing(client.stream(request, TextSource(body, chat=True))) as deltas:
        async for delta in deltas:
            finished = finished or delta.finish_reason is not None
            if delta.finish_reason in BAD_ENDS:
                return f"it finished with {delta.finish_reason}"
    return None if finished else "it gave no finish reason"


async def _fault_of_vector(line: Line, request: VectorRequest) -> str | None:
    """The same by one vector, which must not be nothing but zeros. Raises LineError."""
    queue = Queue()
    call = ask_vectors(line, request, queue)
    try:
        while (item := await queue.items.get()) is not None:
            if isinstance(item, LineError):
                raise item
            if not (isinstance(item, VectorDelta) and any(item.vectors[0])):
                return "it gave a vector of zeros"
        return None
    finally:
        call.cancel()
