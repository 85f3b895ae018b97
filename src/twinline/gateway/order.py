"""From a planned request to choices that can be placed: what it needs of a line, and what it may come to.

Owns the join of a plan, a tenant and a supply. Must not know an endpoint's shape.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from twinline.gateway.access import Access, Visit
from twinline.gateway.choice import Choice, Listener
from twinline.gateway.door import Target
from twinline.gateway.routing import Ask
from twinline.gateway.sampling import Plan
from twinline.gateway.text.reasoning import ReasoningParser
from twinline.gateway.transcript import Transcript
from twinline.lines.protocol import TextSource, TokenRequest

NOTHING: frozenset[str] = frozenset()


class Order:
    """One request, before it is choices. `bounded`: the client gave a limit, so a line must have room for all of it."""

    def __init__(self, target: Target, visit: Visit, plan: Plan, body: bytes, *, chat: bool, bounded: bool) -> None:
        self._target = target
        self._supply = target.served.supply
        self._plan = plan
        self._body = body
        self._chat = chat
        self._bounded = bounded
        base = plan.base
        self._output = self._supply.expected_output(base.max_tokens)
        self._claim = visit.claim(base.priority or None)
        self._needs = needs_of(base) | plan.passed_on
        self._visit = visit

    async def admit(self, access: Access, prompt_tokens: int, choices: int) -> None:
        """Sets aside what the request may use of its key's limits. Raises ApiError."""
        if self._visit.key is None:
            return
        output = (self._plan.base.max_tokens if self._bounded else self._output) * choices
        cost = self._supply.expected_cost(prompt_tokens, output)
        await access.admit(self._visit, prompt_tokens + output, cost)

    def ask(self, prompt: list[int]) -> Ask:
        limit = self._plan.base.max_tokens if self._bounded else 1
        return Ask(
            prompt_tokens=len(prompt),
            keys=self._supply.keys_of(prompt),
            output_tokens=self._output,
            needs=self._needs,
            context=len(prompt) + limit,
            key=self._claim.key,
        )

    def choice(
        self,
        prompt: list[int],
        ask: Ask,
        index: int,
        step: int,
        reasoning: ReasoningParser | None,
        listener: Listener,
    ) -> Choice:
        """Choice `index` of the answer; the `step`th with that prompt, which has a seed of its own."""
        plan = self._plan
        served = self._target.served
        transcript = Transcript(served.tokenizer, plan.rules, reasoning, index, plan.base.min_tokens)
        request = plan.for_choice(prompt, index, step)
        return Choice(
            self._supply, request, transcript, ask, listener, index, self._claim, self._text, self._target.line
        )

    def _text(self) -> TextSource:
        return self._source

    @cached_property
    def _source(self) -> TextSource:
        return TextSource(msgspec.json.decode(self._body), self._chat)


def needs_of(request: TokenRequest) -> frozenset[str]:
    """Features (`lines/drivers/driver.py`) that a line must have for it."""
    if (
        request.logprobs is None
        and request.prompt_logprobs is None
        and not request.logit_bias
        and not request.top_k
        and not request.min_p
        and not request.min_tokens
        and request.repetition_penalty == 1
    ):
        return NOTHING
    needs = set()
    if request.logprobs is not None:
        needs.add("logprobs")
    if request.prompt_logprobs is not None:
        needs.add("prompt_logprobs")
    if request.logit_bias:
        needs.add("logit_bias")
    if request.top_k or request.min_p or request.min_tokens or request.repetition_penalty != 1:
        needs.add("sampling")
    return frozenset(needs)
