"""A run: many cases through one gateway over several lines, each reply judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.gateway.exactness.cases import Case, Oracle
from tests.gateway.exactness.client import Reply, ask, read, verdict
from tests.gateway.exactness.under_test import MODEL, make_gateway
from tests.gateway.exactness.upstream import Script, Upstream

Gateway = Callable[[Sequence[str], Path, float, int], AbstractAsyncContextManager[str]]
MOVES = 8  # more than a case has faults: a busy machine may look like a stall, and that must not fail a test


@dataclass
class Outcome:
    """`wrong` are (case, what differs). `struck` counts the faults that were carried out, `retries` the attempts after
    a first one, `moves` those of them that carried tokens, `ended_in_error` the replies that did.
    """

    streams: int = 0
    tokens: int = 0
    moves: int = 0
    retries: int = 0
    ended_in_error: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    corpora: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Case, list[str]]] = field(default_factory=list)
    upstream_wrong: list[str] = field(default_factory=list)

    def told(self) -> str:
        """What went wrong, in a few lines, with what makes it again."""
        lines = [f"{len(self.wrong)} of {self.streams} wrong; upstreams saw {len(self.upstream_wrong)} wrong requests"]
        for case, faults in self.wrong[:10]:
            again = f"--root {case.root} --only {case.number}"
            lines.append(f"{again} ({case.form}, {case.corpus}, {'+'.join(case.faults)}): {'; '.join(faults[:4])}")
        return "\n".join([*lines, *self.upstream_wrong[:10]])


@dataclass
class Running:
    """A gateway over upstream doubles, ready for cases."""

    url: str
    script: Script
    oracle: Oracle
    upstreams: list[Upstream]

    async def reply(self, case: Case) -> Reply:
        self.script.cases[case.number] = case
        path = "/v1/chat/completions" if case.chat else "/v1/completions"
        return await ask(self.url, path, case.body(MODEL))

    async def all(self, cases: Iterable[Case], at_once: int) -> Outcome:
        """Every case, `at_once` at a time."""
        outcome = Outcome()
        waiting = iter(cases)

        async def work() -> None:
            for case in waiting:
                await self._one(case, outcome)

        await asyncio.gather(*(work() for _ in range(at_once)))
        outcome.struck = self.script.struck
        outcome.upstream_wrong = self.script.wrong
        return outcome

    async def _one(self, case: Case, outcome: Outcome) -> None:
        expected = self.oracle.expected(case)
        outcome.streams += 1
        outcome.forms[case.form] += 1
        outcome.corpora[case.corpus] += 1
        try:
            reply = await self.reply(case)
        except (TimeoutError, OSError) as error:
            outcome.wrong.append((case, [f"{type(error).__name__}: {error}"]))
            return
        wrong = verdict(reply, case, expected)
        if wrong:
            outcome.wrong.append((case, wrong))
        outcome.tokens += expected.completion_tokens
        outcome.ended_in_error += read(reply, case).error is not None
        for index in range(case.choices):
            carried = self.script.carried.pop(case.seed + index, [])
            outcome.moves += sum(length > 0 for length in carried)
            outcome.retries += max(0, len(carried) - 1)
            self.script.attempts.pop(case.seed + index, None)
        del self.script.cases[case.number]

    async def closed(self, seconds: float = 30.0) -> int:
        """Exchanges that upstreams still hold open after some time to end them: a gateway must abort what it leaves."""
        end = asyncio.get_running_loop().time() + seconds
        while (busy := sum(upstream.busy for upstream in self.upstreams)) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        return busy


@asynccontextmanager
async def running(
    folder: Path, stall_seconds: float, *, lines: int = 4, moves: int = MOVES, gateway: Gateway = make_gateway
) -> AsyncIterator[Running]:
    """`folder` holds the tokenizer and chat template of the model."""
    oracle = Oracle.load(folder)
    script = Script(oracle, stall_seconds)
    upstreams = [Upstream(script, MODEL) for _ in range(lines)]
    urls = [await upstream.start() for upstream in upstreams]
    try:
        async with gateway(urls, folder, stall_seconds, moves) as url:
            yield Running(url, script, oracle, upstreams)
    finally:
        for upstream in upstreams:
            await upstream.stop()
