"""A line as the gateway sees it: a name, a life, and a stream of deltas per request.

Owns what every line shares: it serves only after it was verified. Must not know how the line was started.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from twinline.lines.protocol import Delta, LineClient, LineError, LineRefused, TokenRequest
from twinline.lines.state import Life, LineState

VERIFY_SECONDS = 120.0


class VerificationFailed(LineError):
    """A line did not answer its test request as it should, or stopped over it."""


class Line:
    """One running supply of a model. `model` is the name under which the line itself knows it."""

    def __init__(self, name: str, model: str, url: str | None = None) -> None:
        self.name = name
        self.model = model
        self.life = Life(name)
        self._client = LineClient(url) if url else None

    @property
    def client(self) -> LineClient:
        """Raises LineRefused while the line has no address yet."""
        if self._client is None:
            raise self._not_up()
        return self._client

    @property
    def state(self) -> LineState:
        return self.life.state

    def stream(self, request: TokenRequest) -> AsyncGenerator[Delta, None]:
        """`LineClient.stream`, for a line that takes requests. Raises LineRefused at once when it does not."""
        if not self.life.state.takes_requests:
            raise self._not_up()
        return self.client.stream(request)

    def _not_up(self) -> LineRefused:
        return LineRefused(503, f"line {self.name} is {self.state}: {self.life.reason}", "line_not_serving")

    async def verify(self) -> None:
        """Takes the line from starting or quarantined to serving: one greedy token of a test prompt must come back.

        Raises VerificationFailed when it does not; the line is quarantined then, unless it stopped meanwhile.
        """
        self.life.to(LineState.VERIFYING, "a test request is under way")
        try:
            async with asyncio.timeout(VERIFY_SECONDS):
                fault = await self._test()
        except LineError as error:
            fault = str(error)
        except TimeoutError:
            fault = f"no token within {VERIFY_SECONDS:g} s"
        if self.life.state is not LineState.VERIFYING:
            raise VerificationFailed(f"line {self.name} is {self.state} after its test request: {self.life.reason}")
        if fault is not None:
            self.life.to(LineState.QUARANTINED, f"its test request failed: {fault}")
            raise VerificationFailed(f"line {self.name} failed its test request: {fault}")
        self.life.to(LineState.SERVING, "its test request was answered")

    async def _test(self) -> str | None:
        """What was wrong with the answer to one greedy token, or None."""
        request = TokenRequest(
            model=self.model, prompt=[0], request_id="verify", max_tokens=1, temperature=0.0, ignore_eos=True
        )
        tokens: list[int] = []
        async with aclosing(self.client.stream(request)) as deltas:
            async for delta in deltas:
                tokens += delta.tokens
                if delta.finish_reason in ("error", "abort", "deadline"):
                    return f"it finished with {delta.finish_reason}"
        return None if len(tokens) == 1 else f"it gave {len(tokens)} tokens instead of 1"
