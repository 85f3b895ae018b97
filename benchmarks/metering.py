"""Metered tokens against the engines' own counts, and a gateway that is killed while it serves.

    .venv/bin/python benchmarks/metering.py                          # 10,000 requests, native and simulated in turn
    .venv/bin/python benchmarks/metering.py --requests 0 --kills 50  # only the kills

A fleet of two lines by `twinline up`, keys with limits. Requests of every form: streamed or whole, chat or completion,
up to four choices, stop strings; some clients leave in the midst of an answer; lines are killed -9 and stopped while
they answer. Then three counts are compared, in all and request by request: what the engines say they made, what their
connections carried (by relays), what `twinline usage` says.

What an engine made that no tenant is counted for is the operator's: tokens made after a client had left, behind a stop
string that the gateway found, behind the last whole character when an answer moved, or in an engine that was killed.
Each kind is counted. A request that nothing of this befell must agree to the token; all together within 0.1 %.

The second part kills the gateway with -9 at random moments, the control side starts it again, engines go on. Every
request whose client saw its end has to be in the usage, once; no request twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]  # the load and its judge are the tests' own

from tests.gateway.metered import (  # noqa: E402
    MODEL,
    Asked,
    Mix,
    Verdict,
    Worker,
    ask,
    compare,
    draw,
    fetch,
    free_port,
    records,
)

from twinline.lines.circuit import LONGEST_WAIT_SECONDS  # noqa: E402

CLI = (sys.executable, "-m", "twinline.cli")
APART = 0.001
LIMITS = {
    "alice": ["--rpm", "1000000", "--tpm", "1000000000", "--money-budget", "1000000USD"],
    "bob": ["--tokens-budget", "1000000000", "--weight", "2"],
    "tight": ["--rpm", "60"],
}
KEYS = ("alice",) * 9 + ("bob",) * 9 + ("tight",)
PRICE_IN, PRICE_OUT = 2.0, 8.0  # per million tokens


@dataclass
class Fleet:
    """What `twinline up` runs, in a home of its own."""

    home: Path
    port: int
    secrets: dict[str, str] = field(default_factory=dict)
    control: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "TWINLINE_HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    def cli(self, *argv: str) -> Any:
        done = subprocess.run([*CLI, *argv], env=self.env, capture_output=True, timeout=180)
        if done.returncode:
            raise RuntimeError(f"twinline {' '.join(argv)}: {done.stdout.decode()}{done.stderr.decode()}")
        return json.loads(done.stdout) if "--json" in argv else done.stdout.decode()

    def up(self, lines: str, quick: bool = False) -> None:
        """`quick`: by this file's own control side, which starts a dead gateway again at once, however often."""
        file = self.home / "metering.yaml"
        file.write_text(
            f"models:\n  {MODEL}:\n    text: embedded\n    policy: weighted\nlines:\n{lines}"
            f"gateway:\n  port: {self.port}\n  keys: required\n"
        )
        for name, limits in LIMITS.items():
            self.secrets[name] = self.cli("keys", "create", name, *limits, "--json")["secret"]
        if quick:
            argv = [sys.executable, __file__, "--control", str(file)]
            with (self.home / "control.log").open("wb") as log:
                self.control = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)
        else:
            self.cli("up", "--detach", str(file))

    def down(self) -> None:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.cli("down", "metering")
        if self.control is not None:
            self.control.terminate()
            self.control.wait(30)


@contextlib.contextmanager
def homed() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="m") as made:
        fleet = Fleet(Path(made), free_port())
        try:
            yield fleet
        finally:
            fleet.down()


@contextlib.asynccontextmanager
async def workers(kind: str) -> AsyncIterator[list[Worker]]:
    started = [Worker(kind) for _ in range(2)]
    try:
        for worker in started:
            await worker.start()
        yield started
    finally:
        await asyncio.gather(*(worker.end() for worker in started))


def line(name: str, engine: str, **fields: str) -> str:
    told = {"engine": engine, "weights_class": "one"} | fields
    prices = {"price_per_million_input": PRICE_IN, "price_per_million_output": PRICE_OUT}
    return f"  {name}:\n" + "".join(f"    {name}: {value}\n" for name, value in {**told, **prices}.items())


async def counted(given: argparse.Namespace, kind: str) -> bool:
    """The first part, over one kind of engine."""
    lot = random.Random(given.seed)
    with homed() as fleet:
        async with workers(kind) as lines:
            written = "".join(line(f"line{n}", kind, url=worker.url) for n, worker in enumerate(lines, 1))
            await asyncio.to_thread(fleet.up, written)
            began = time.monotonic()
            mix = Mix(left=given.left, tokens=(8, given.tokens))
            asked = [draw(lot, number, KEYS, mix) for number in range(given.requests)]
            waiting = iter(asked)
            under_way = 0

            def sent(name: str) -> int:
                return sum(worker.relay.sent(name) for worker in lines)

            async def work() -> None:
                nonlocal under_way
                for one in waiting:
                    under_way += 1
                    await ask(fleet.url, one, fleet.secrets[one.key], sent)

            breaking = asyncio.create_task(breaks(fleet, lines, lot, given.breaks, lambda: under_way / given.requests))
            await asyncio.gather(*(work() for _ in range(given.at_once)))
            seconds = time.monotonic() - began
            broke = await breaking
            for worker in lines:
                await worker.idle()
            generated = sum([await worker.generated() for worker in lines])
            booked = await asyncio.to_thread(records, fleet.home)
            verdict = compare(asked, booked, [worker.relay for worker in lines], generated)
    print(f"\n{kind}: {len(asked)} requests in {seconds:.0f} s; {', '.join(broke) or 'nothing broken'}")
    return told(verdict)


async def breaks(
    fleet: Fleet, lines: Sequence[Worker], lot: random.Random, count: int, share: Callable[[], float]
) -> list[str]:
    """Kills and stops, evenly over the load. Each line is whole again before the next is broken."""
    done = []
    for number in range(count):
        while share() < (number + 0.5) / count:
            await asyncio.sleep(0.05)
        worker = lot.choice(list(lines))
        if number % 2:
            os.kill(worker.pid, signal.SIGSTOP)
            await asyncio.sleep(6)
            os.kill(worker.pid, signal.SIGCONT)
            done.append("stopped")
        else:
            await worker.kill()
            await worker.start()
            done.append("killed")
        end = time.monotonic() + LONGEST_WAIT_SECONDS + 60  # a line that failed often is tried again only after that
        while resting := await not_serving(fleet):
            assert time.monotonic() < end, f"lines do not come back: {resting}"
            for name in (name for name, state in resting.items() if state == "quarantined"):
                resume = [*CLI, "up", "--resume", name]  # as who mended it would
                await asyncio.to_thread(subprocess.run, resume, env=fleet.env, capture_output=True, check=True)
            await asyncio.sleep(0.2)
    return done


async def not_serving(fleet: Fleet) -> dict[str, str]:
    """The lines that take no requests, as the gateway sees it, with their states."""
    told = (await fetch(fleet.url, "/health"))["models"][MODEL]["lines"]
    return {name: line["state"] for name, line in told.items() if line["state"] != "serving"}


def told(verdict: Verdict) -> bool:
    print(f"  requests: {dict(verdict.requests)}")
    owed = verdict.owed
    print(f"  engines made {verdict.generated} tokens and sent {owed.sent}; {owed.tokens} belong to answers")
    of_all = verdict.metered / verdict.generated - 1
    print(f"  metered {verdict.metered}: {verdict.apart:+.4%} of those, {of_all:+.4%} of all")
    print(f"  the operator's: made and never sent {verdict.unsent}, after the client had left {owed.after_leaving}")
    print(f"    behind a stop string {owed.behind_stop}, behind a cut at a move {owed.behind_cut}")
    metered, sent = verdict.plain
    print(f"  finished requests without cut or stop string: metered {metered}, engines {sent}")
    due = (verdict.prompt * PRICE_IN + verdict.metered * PRICE_OUT) / 1e6
    print(f"  prompt tokens {verdict.prompt}; answers that moved {verdict.moved}, waste {verdict.waste}")
    print(f"  money {verdict.cost:.6f}, tokens x price {due:.6f}")
    wrong = list(verdict.wrong)
    if abs(verdict.cost - due) > 1e-6 * max(1.0, due):
        wrong.append("money is not tokens x price")
    if abs(verdict.apart) > APART:
        wrong.append(f"{verdict.apart:.3%} apart, at most {APART:.1%} are allowed")
    print(f"  wrong: {len(wrong)}")
    for each in wrong[:12]:
        print(f"    {each}")
    return not wrong


async def killed(given: argparse.Namespace) -> bool:
    """The second part: the fleet's own lines, and its gateway killed over and over."""
    lot = random.Random(given.seed + 1)
    with homed() as fleet:
        figures = "{decode_tokens_per_second: 400, prefill_tokens_per_second: 50000}"
        native = "{threads: 1, max_running: 64, max_waiting: 512}"
        kind = given.lines[0]
        figures = native if kind == "native" else figures
        more = {"weights": "embedded", "options": figures} | ({"slots": "64"} if kind == "simulated" else {})
        await asyncio.to_thread(fleet.up, "".join(line(f"line{n}", kind, **more) for n in (1, 2)), quick=True)
        await up(fleet, 120)
        engines = pids(fleet)
        asked: list[Asked] = []
        stopping = False
        mix = Mix(left=0.02, tokens=(8, 48))

        async def work() -> None:
            while not stopping:
                one = draw(lot, len(asked), ("alice", "bob"), mix)
                asked.append(one)
                await ask(fleet.url, one, fleet.secrets[one.key])
                if not one.status:
                    await asyncio.sleep(0.1)  # nobody listens

        working = [asyncio.create_task(work()) for _ in range(given.at_once)]
        away: list[float] = []
        for number in range(1, given.kills + 1):
            await asyncio.sleep(lot.uniform(0.05, 1.5))
            os.kill(gateway(fleet), signal.SIGKILL)
            at = time.monotonic()
            await asyncio.sleep(0.1)
            await up(fleet, 60)
            away.append(time.monotonic() - at)
            if number % 10 == 0:
                seen = sum(one.finished for one in asked)
                print(f"  {number} kills, {len(asked)} requests, {seen} seen to their end", flush=True)
        stopping = True
        await asyncio.gather(*working)
        same = engines == pids(fleet)
        booked = await asyncio.to_thread(records, fleet.home)
    by_name = {name: len(found) for name, found in booked.items()}
    finished = [one for one in asked if one.finished]
    missing = [one.name for one in finished if not by_name.get(one.name)]
    twice = [name for name, count in by_name.items() if count > 1]
    unlike = [
        one.name
        for one in finished
        if one.usage is not None and one.name in booked
        and (booked[one.name][0].prompt, booked[one.name][0].completion)
        != (one.usage["prompt_tokens"], one.usage["completion_tokens"])
    ]  # fmt: skip
    print(f"\n{given.kills} kills of the gateway: {len(asked)} requests, {len(finished)} seen to their end")
    print(f"  records {sum(by_name.values())}: missing {len(missing)}, twice {len(twice)}, unlike usage {len(unlike)}")
    print(f"  away {min(away):.1f} to {max(away):.1f} s; engines lived on: {same}")
    for what in (missing, twice, unlike):
        if what:
            print(f"    {what[:10]}")
    return not (missing or twice or unlike) and same and len(finished) > given.kills


async def up(fleet: Fleet, seconds: float) -> None:
    """Waits until the gateway answers and a line serves."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, TimeoutError, ValueError, KeyError):
            if (await fetch(fleet.url, "/health"))["status"] == "ok":
                return
        if time.monotonic() > end:
            raise RuntimeError(f"the gateway did not come up:\n{(fleet.home / 'control.log').read_text()[-2000:]}")
        await asyncio.sleep(0.05)


def standing(fleet: Fleet, pattern: str) -> dict[str, int]:
    files = (fleet.home / "run" / "metering" / "engines").glob(pattern)
    return {file.stem: json.loads(file.read_bytes())["pid"] for file in files}


def gateway(fleet: Fleet) -> int:
    return standing(fleet, "gateway-0.json")["gateway-0"]


def pids(fleet: Fleet) -> dict[str, int]:
    return standing(fleet, "line*.json")


def control(path: Path) -> None:
    """A control side that does not wait longer from failure to failure: 50 kills would take half an hour."""
    from twinline.cli.fleet_control import GATEWAY
    from twinline.lines.fleet.control import run
    from twinline.lines.fleet.file import load
    from twinline.lines.fleet.pace import Pace

    pace = Pace(first_delay=0.1, longest_delay=0.1)
    fleet = load(path, os.environ)
    asyncio.run(run(path, fleet, GATEWAY, leave_running=False, told=lambda e: None, begun=print, pace=pace))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000, help="of the first part, for each kind of line")
    parser.add_argument("--lines", nargs="+", choices=("native", "simulated"), default=["native", "simulated"])
    parser.add_argument("--tokens", type=int, default=64, help="most of one choice")
    parser.add_argument("--left", type=float, default=0.02, help="share of clients that leave")
    parser.add_argument("--breaks", type=int, default=6, help="lines killed or stopped on the way")
    parser.add_argument("--kills", type=int, default=50, help="of the gateway, over the first kind of line")
    parser.add_argument("--at-once", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


async def everything(given: argparse.Namespace) -> bool:
    ok = True
    for kind in given.lines if given.requests else ():
        ok &= await counted(given, kind)
    if given.kills:
        ok &= await killed(given)
    return ok


def main() -> int:
    given = arguments()
    if given.control is not None:
        control(given.control)
        return 0
    return 0 if uvloop.run(everything(given)) else 1


if __name__ == "__main__":
    sys.exit(main())
