"""What is metered is what the engines made for answers: every request once, however it ended, whoever is killed.

Real processes: simulated lines behind relays that count, a gateway with keys. `benchmarks/metering.py` runs the same at
full size, over the native engine too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop
from tests.gateway.metered import (
    FOLDER,
    MODEL,
    Asked,
    Mix,
    Worker,
    ask,
    compare,
    draw,
    fetch,
    free_port,
    records,
    until,
)

from twinline.lines import roster
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState
from twinline.store.database import Database
from twinline.store.keys import Keys

PRICE_IN, PRICE_OUT = 2.0, 8.0  # per million tokens


@dataclass
class Running:
    """A gateway process that follows a roster, and can be killed and started again."""

    home: Path
    port: int
    secret: str
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        argv = [sys.executable, "-m", "twinline.gateway.process", "--run", str(self.home), "--log-level", "critical"]
        env = {**os.environ, "TWINLINE_HOME": str(self.home)}
        self.process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=asyncio.subprocess.PIPE)
        assert self.process.stdout is not None
        assert b'"ready":true' in await asyncio.wait_for(self.process.stdout.readline(), 60)

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        await asyncio.wait_for(self.process.wait(), 90)


@contextlib.asynccontextmanager
async def running(home: Path) -> AsyncIterator[tuple[Running, list[Worker]]]:
    workers = [Worker("simulated", decode_tokens_per_second=100.0) for _ in range(2)]
    database = Database(f"sqlite:///{home / 'twinline.db'}")
    _, secret = Keys(database).create("alice", requests_per_minute=1_000_000, token_budget=10**9)
    database.close()
    gateway = Running(home, free_port(), secret)
    try:
        await asyncio.gather(*(worker.start() for worker in workers))
        entries = tuple(
            roster.Entry(
                name=f"line{number}",
                spec=LineSpec(
                    name=f"line{number}", model=MODEL, engine="simulated", url=worker.url, chip=f"chip-{number}",
                    price_per_million_input=PRICE_IN, price_per_million_output=PRICE_OUT,
                ),
                state=LineState.SERVING, reason="the test says so", url=worker.url, facts={"max_model_len": 4096},
            )
            for number, worker in enumerate(workers, 1)
        )  # fmt: skip
        model = roster.ModelSpec(name=MODEL, text=str(FOLDER), policy="weighted")
        spec = roster.GatewaySpec(port=gateway.port, keys="required")
        told = roster.Roster(fleet="test", generation=1, gateway=spec, models=(model,), entries=entries)
        roster.write(home, told)
        await gateway.start()
        yield gateway, workers
    finally:
        if gateway.process is not None and gateway.process.returncode is None:
            await gateway.kill()
        await asyncio.gather(*(worker.end() for worker in workers))


def lasting(number: int) -> Asked:
    """A request whose client stays, and whose answer takes seconds on these lines, however fast the machine is."""
    body = {"model": MODEL, "max_tokens": 300, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"prompt": f"Go on from {number}.", "ignore_eos": True, "seed": number, "temperature": 1.0}
    return Asked(f"m{number}", "completion_lasting", "alice", None, body)


def midway(asked: list[Asked], worker: Worker) -> list[str]:
    """Requests of which the client has some, and of which the worker has many tokens still to give."""
    has = {one.name for one in asked if one.stays and one.came}
    given = worker.relay.by_client.items()
    return [name for name, attempts in given if name in has and any(each.midway(100) for each in attempts)]


@pytest.mark.timeout(600)
def test_metered_tokens_are_the_engines_own(tmp_path: Path) -> None:
    async def main() -> None:
        lot = random.Random(5)
        mix = Mix(left=0.1, several=0.15, stops=0.2, leave=24, tokens=(8, 80))
        asked = [draw(lot, number, ["alice"], mix) for number in range(260)]
        waiting = iter(list(asked))
        broken: list[str] = []

        async def work(gateway: Running, sent: Callable[[str], int]) -> None:
            for one in waiting:
                await ask(gateway.url, one, gateway.secret, sent)

        async def last(gateway: Running) -> None:
            while not broken:
                asked.append(lasting(len(asked)))
                await ask(gateway.url, asked[-1], gateway.secret)

        async with running(tmp_path) as (gateway, workers):

            def sent(name: str) -> int:
                return sum(worker.relay.sent(name) for worker in workers)

            loading = [asyncio.create_task(work(gateway, sent)) for _ in range(16)]
            loading += [asyncio.create_task(last(gateway)) for _ in range(8)]
            while not broken:  # what is midway has a second to go: one kill does, unless this process slept so long
                await until(lambda: len(midway(asked, workers[0])) >= 3)
                names = {name.partition("-")[0] for name in await workers[0].kill()}
                broken += [one.name for one in asked if one.stays and one.name in names]
                await workers[0].start()
            await asyncio.gather(*loading)
            for worker in workers:
                await worker.idle()
            generated = sum([await worker.generated() for worker in workers])
            await gateway.kill(signal.SIGTERM)
            booked = records(tmp_path)
            found = compare(asked, booked, [worker.relay for worker in workers], generated)
        assert not found.wrong, found.wrong[:5]
        # Who is to leave does so, but for those whose answers end before by a stop string or an end token.
        left = [one.name for one in asked if one.left]
        surely = [one for one in asked if one.leave is not None and "stop" not in one.body and one.body["ignore_eos"]]
        assert len(surely) > 5 and all(one.left for one in surely)
        assert found.requests == {"finished": len(asked) - len(left), "left": len(left)}
        # Every answer that the kill broke in its midst went on elsewhere, at the operator's cost.
        moved = {name for name in broken if booked[name][0].waste > 0 and len(booked[name][0].lines) > 1}
        assert moved == set(broken) and found.moved >= len(moved)
        assert found.waste > 10
        # What came while the gateway had not yet seen that a client was gone may count; what its client saw counts.
        assert found.metered - found.owed.tokens <= found.owed.after_leaving
        metered, engines = found.plain
        assert metered == engines > 5000
        # An engine that was killed is not asked what it had made and not sent.
        assert found.unsent >= 0
        due = (found.prompt * PRICE_IN + found.metered * PRICE_OUT) / 1e6
        assert abs(found.cost - due) < 1e-6

    uvloop.run(main())


@pytest.mark.timeout(600)
def test_a_gateway_killed_under_load_loses_and_doubles_no_finished_request(tmp_path: Path) -> None:
    async def main() -> None:
        lot = random.Random(6)
        asked: list[Asked] = []
        stopping = False
        mix = Mix(left=0.05, leave=8, tokens=(4, 24))

        async def work(gateway: Running) -> None:
            while not stopping:
                one = draw(lot, len(asked), ["alice"], mix)
                asked.append(one)
                await ask(gateway.url, one, gateway.secret, sent)
                if not one.status:
                    await asyncio.sleep(0.05)  # nobody listens

        def finished() -> int:
            return sum(one.finished for one in asked)

        def under_way() -> int:
            return sum(one.came > 0 and not one.over for one in asked)

        async with running(tmp_path) as (gateway, workers):

            def sent(name: str) -> int:
                return sum(worker.relay.sent(name) for worker in workers)

            loading = [asyncio.create_task(work(gateway)) for _ in range(16)]
            for _ in range(2):
                seen = finished()
                await until(lambda seen=seen: finished() >= seen + 20 and under_way() >= 3)  # type: ignore[misc]
                await gateway.kill()
                await gateway.start()
            seen = finished()
            await until(lambda: finished() >= seen + 20)
            stopping = True
            await asyncio.gather(*loading)
            alive = [await fetch(worker.url, "/health") for worker in workers]
            await gateway.kill(signal.SIGTERM)
        booked = records(tmp_path)
        finished = [one for one in asked if one.finished]
        assert len(finished) > 50 and len(finished) < len(asked)
        assert [one.name for one in finished if len(booked.get(one.name, ())) != 1] == []
        assert {name: len(found) for name, found in booked.items() if len(found) > 1} == {}
        for one in finished:
            assert one.usage is not None
            record = booked[one.name][0]
            assert (record.prompt, record.completion) == (one.usage["prompt_tokens"], one.usage["completion_tokens"])
        assert all(each["tokens_generated"] > 100 for each in alive)

    uvloop.run(main())
