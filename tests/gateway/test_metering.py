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
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uvloop
from tests.gateway.metered import FOLDER, MODEL, Asked, Mix, Worker, ask, compare, draw, fetch, free_port, records

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
        await asyncio.wait_for(self.process.wait(), 30)


@contextlib.asynccontextmanager
async def running(home: Path) -> AsyncIterator[tuple[Running, list[Worker]]]:
    workers = [Worker("simulated", decode_tokens_per_second=300.0) for _ in range(2)]
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


def midway(asked: list[Asked], worker: Worker) -> list[str]:
    """Requests that stay, and of which the worker has given some tokens and has many still to give."""
    stays = {one.name: one.body["max_tokens"] for one in asked if one.leave is None and one.body.get("ignore_eos")}
    given = {name.partition("-")[0]: len(attempt.ids) for name, attempt in worker.relay.attempts.items()}
    return [name for name, most in stays.items() if 2 <= given.get(name, 0) <= most - 20]


def test_metered_tokens_are_the_engines_own(tmp_path: Path) -> None:
    async def main() -> None:
        lot = random.Random(5)
        mix = Mix(left=0.1, several=0.15, stops=0.2, leave=0.2, tokens=(8, 80))
        asked = [draw(lot, number, ["alice"], mix) for number in range(260)]
        waiting = iter(asked)

        async def work(gateway: Running) -> None:
            for one in waiting:
                await ask(gateway.url, one, gateway.secret)

        async with running(tmp_path) as (gateway, workers):
            loading = [asyncio.create_task(work(gateway)) for _ in range(24)]
            while len(midway(asked, workers[0])) < 5:
                await asyncio.sleep(0.005)
            await workers[0].kill()
            await workers[0].start()
            await asyncio.gather(*loading)
            for worker in workers:
                await worker.idle()
            generated = sum([await worker.generated() for worker in workers])
            await gateway.kill(signal.SIGTERM)
            found = compare(asked, records(tmp_path), [worker.relay for worker in workers], generated)
        assert not found.wrong, found.wrong[:5]
        assert found.requests["finished"] > 180 and found.requests["left"] > 5, found.requests
        assert found.moved >= 1  # of five in mid-answer, some clients may leave before they go on
        # What came while the gateway had not yet seen that a client was gone may count, and what came just before not.
        assert -3 * found.requests["left"] <= found.metered - found.owed.tokens <= found.owed.after_leaving
        metered, sent = found.plain
        assert metered == sent > 5000
        # An engine that was killed is not asked what it had made and not sent.
        assert found.unsent >= 0
        due = (found.prompt * PRICE_IN + found.metered * PRICE_OUT) / 1e6
        assert abs(found.cost - due) < 1e-6

    uvloop.run(main())


def test_a_gateway_killed_under_load_loses_and_doubles_no_finished_request(tmp_path: Path) -> None:
    async def main() -> None:
        lot = random.Random(6)
        asked: list[Asked] = []
        stopping = False
        mix = Mix(left=0.05, tokens=(4, 24))

        async def work(gateway: Running) -> None:
            while not stopping:
                one = draw(lot, len(asked), ["alice"], mix)
                asked.append(one)
                await ask(gateway.url, one, gateway.secret)
                if not one.status:
                    await asyncio.sleep(0.05)  # nobody listens

        async with running(tmp_path) as (gateway, workers):
            loading = [asyncio.create_task(work(gateway)) for _ in range(16)]
            for _ in range(2):
                await asyncio.sleep(lot.uniform(0.2, 0.6))
                await gateway.kill()
                await gateway.start()
            end = time.monotonic() + 20
            while not any(one.finished for one in asked[-100:]) and time.monotonic() < end:
                await asyncio.sleep(0.05)
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
