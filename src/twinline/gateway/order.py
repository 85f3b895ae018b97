"""From a planned request to choices that can be placed: what it needs of a line, and what it may come to.

Owns the join of a plan, a tenant and a supply. Must not know an endpoint's shape.
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from twinline.gateway.access import Access, Visit
from twinline.gateway.choice import Choice
from twinline.gateway.door import Target
from twinline.gateway.listener import Listener
from twinline.gateway.routing import Ask, block_keys
from twinline.gateway.sampling import Plan
from twinline.gateway.text.calls.parser import CallParser
from twinline.gateway.text.reasoning import ReasoningParser
from twinline.gateway.transcript import Transcript
from twinline.lines.protocol import TextSource


class Order:
    """One request, before it is choices. `bounded`: the client gave a limit, so a line must have room for all of it."""

    def __init__(self, target: Target, visit: Visit, plan: Plan, body: bytes, *, chat: bool, bounded: bool) -> None:
        self._target = target
        self._supply = target.served.supply
        self._plan = plan
        self._body = body
        self._chat = chat
        self._bounded = bounded
        self._output = self._supply.expected_output(plan.max_tokens)
        self._claim = visit.claim(plan.fields["priority"] or None)
        self._visit = visit

    async def admit(self, access: Access, prompt_tokens: int, choices: int) -> None:
        """Sets aside what the request may use of its key's limits. Raises ApiError."""
        tokens, cost = self._estimate(prompt_tokens, choices)
        await access.admit(self._visit, tokens, cost)

    def admit_at_once(self, access: Access, prompt_tokens: int, choices: int) -> bool:
        """The same without waiting: False, and nothing set aside, where `admit` would refuse or wait."""
        tokens, cost = self._estimate(prompt_tokens, choices)
        return access.admit_at_once(self._visit, tokens, cost)

    def _estimate(self, prompt_tokens: int, choices: int) -> tuple[int, float]:
        """Tokens and cost to set aside."""
        if self._visit.key is None:
            return 0, 0.0
        plan = self._plan
        # One that names no limit but forbids an end before it will have all that fits.
        whole = self._bounded or plan.fields["ignore_eos"]
        output = (plan.max_tokens if whole else max(self._output, plan.min_tokens)) * choices
        budgeted = self._visit.key.money_budget is not None
        cost = self._supply.expected_cost(prompt_tokens, output) if budgeted else 0.0
        return prompt_tokens + output, cost

    def ask(self, prompt: list[int]) -> Ask:
        limit = self._plan.max_tokens if self._bounded else 1
        return Ask(
            prompt_tokens=len(prompt),
            keys=block_keys(prompt),
            output_tokens=self._output,
            needs=self._plan.needs,
            context=len(prompt) + limit,
            key=self._claim.key,
            named=self._target.line is not None,
        )

    def choice(
        self,
        prompt: list[int],
        ask: Ask,
        index: int,
        step: int,
        reasoning: ReasoningParser | None,
        listener: Listener,
        calls: CallParser | None = None,
    ) -> Choice:
        """Choice `index` of the answer; the `step`th with that prompt, which has a seed of its own."""
        plan = self._plan
        served = self._target.served
        transcript = Transcript(served.tokenizer, plan.rules, reasoning, index, plan.min_tokens, calls)
        request = plan.for_choice(prompt, index, step)
        pinned = self._target.line
        choice = Choice(
            self._supply, request, transcript, ask, listener, index, self._claim, self._text, pinned, leads=step == 0
        )
        if self._visit.trace is not None:
            choice.trace = self._visit.trace.of_choice(index, "chat" if self._chat else "text_completion")
        return choice

    def _text(self) -> TextSource:
        return self._source

    @cached_property
    def _source(self) -> TextSource:
        return text_source(self._body, self._chat)


def text_source(body: bytes, chat: bool) -> TextSource:
    """A body as it was written, for a line that takes text. Raises ValueError: a field that the door passed over may
    hold what cannot be read, such as a number larger than any."""
    try:
        return TextSource(msgspec.json.decode(body), chat)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"one of its fields cannot be passed on: {error}") from error
