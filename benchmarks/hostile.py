"""What hostile clients cost: a real gateway's memory, and what an ordinary client sees meanwhile.

    .venv/bin/python benchmarks/hostile.py                      # about 4 minutes
    .venv/bin/python benchmarks/hostile.py --soak 300           # with 5 minutes of everything at once
    .venv/bin/python benchmarks/hostile.py --only idle bodies
    .venv/bin/python benchmarks/hostile.py --only schemathesis --schemathesis PATH/TO/schemathesis

Starts `twinline up` with one simulated line on loopback, in a home of its own. An ordinary client asks for one token
again and again over one kept connection, and every second time over a fresh one; its latencies are the figures beside
the gateway's resident memory. Both sides run on this machine and share its cores, so latencies include the attack's own
cost. Exit code 1 if the gateway died, answered an ordinary request with anything but 200, or kept hold of bodies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

FLEET = """
models: {{played: {{text: embedded, label: simulated}}}}
lines:
  a:
    model: played
    engine: simulated
    weights: embedded
    chip: nvidia-h800
    price: 1 USD
    slots: 256
    options: {{prefill_tokens_per_second: 1000000, decode_tokens_per_second: 2000}}
gateway: {{port: {port}, max_body_bytes: 16777216}}
"""
ASK = json.dumps({"model": "played", "prompt": "Hi", "max_tokens": 1}).encode()
LONG = json.dumps({"model": "played", "prompt": "Hi", "max_tokens": 4000, "stream": True, "ignore_eos": True}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
MEGABYTE = b"a" * (1 << 20)
HERE = Path(__file__).resolve().parent.parent


@dataclass
class Gateway:
    port: int
    pid: int
    first_rss: int = 0

    def rss(self) -> int:
        """MiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) >> 10
        return 0

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@dataclass
class Ordinary:
    """The ordinary client's requests during one attack."""

    port: int
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    alive: list[float] = field(default_factory=list)  # of `GET /health`, which asks no line

    async def look(self) -> None:
        while True:
            began = time.perf_counter()
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(20):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                    await status_of(reader)
                    writer.close()
            self.alive.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

    async def run(self) -> None:
        kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        number = 0
        while True:
            number += 1
            began = time.perf_counter()
            try:
                async with asyncio.timeout(20):
                    fresh = kept is None or number % 2
                    reader, writer = (await asyncio.open_connection("127.0.0.1", self.port)) if fresh else kept  # type: ignore[misc]
                    writer.write(framed(ASK))
                    self.statuses[str(await status_of(reader))] += 1
                    if kept is None:
                        kept = reader, writer
                    elif fresh:
                        writer.close()
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
                self.statuses[type(error).__name__] += 1
                kept = None
            self.seconds.append(time.perf_counter() - began)
            await asyncio.sleep(0.02)

    def told(self) -> str:
        statuses = ", ".join(f"{status}: {count}" for status, count in self.statuses.items())
        return f"{spread(self.seconds)}; {statuses}\n  /health: {spread(self.alive)}"

    @property
    def failed(self) -> bool:
        return set(self.statuses) != {"200"}


def spread(seconds: list[float]) -> str:
    ranked = sorted(seconds) or [0.0]
    p50, p99 = (ranked[min(len(ranked) - 1, int(share * len(ranked)))] * 1e3 for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {ranked[-1] * 1e3:.0f} ms"


def framed(body: bytes) -> bytes:
    return HEAD + b"content-length: %d\r\n\r\n" % len(body) + body


async def status_of(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    if lengths:
        await reader.readexactly(int(lengths[0]))
    return int(head.split()[1])


async def closed_by_server(reader: asyncio.StreamReader, counts: Counter[str]) -> None:
    """Reads to the end; counts what came."""
    try:
        data = await reader.read(1 << 16)
        counts[data.split()[1].decode() if data else "closed"] += 1
        while await reader.read(1 << 16):
            pass
    except OSError as error:
        counts[type(error).__name__] += 1


async def idle(gateway: Gateway, counts: Counter[str], size: int) -> None:
    """Connections that say nothing, a third of them half a head."""
    writers = []
    for number in range(size):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        except OSError as error:
            counts[type(error).__name__] += 1
            continue
        if number % 3 == 0:
            writer.write(HEAD)
        writers.append(writer)
        if number % 100 == 99:
            await asyncio.sleep(0.01)
    counts["opened"] = len(writers)
    await asyncio.sleep(5)
    counts["MiB with all open"] = gateway.rss()
    counts["files of the gateway"] = gateway.files()
    for writer in writers:
        writer.close()
    await asyncio.sleep(1)


async def bodies(gateway: Gateway, counts: Counter[str], size: int) -> None:
    """Bodies of 100 MB, half of them chunked, `size` at once; then as many of the largest allowed."""

    async def send(length: int, chunked: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        reading = asyncio.create_task(closed_by_server(reader, counts))
        head = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (length << 20)
        writer.write(HEAD + head + b"\r\nconnection: close\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(length):
                writer.write(b"100000\r\n" + MEGABYTE + b"\r\n" if chunked else MEGABYTE)
                await writer.drain()
            if chunked:
                writer.write(b"0\r\n\r\n")
        async with asyncio.timeout(60):
            await reading
        writer.close()

    watch = asyncio.create_task(_most(gateway, counts))
    for length in (100, 15):
        await asyncio.gather(*(send(length, number % 2 == 0) for number in range(size)), return_exceptions=True)
        counts[f"MiB after bodies of {length} MB"] = gateway.rss()
    watch.cancel()


async def bombs(gateway: Gateway, counts: Counter[str], size: int) -> None:
    """The dearest bodies to decode that are still taken: many values, many messages, many characters."""
    values = b'{"model":"played","prompt":"a","tools":[' + b"[]," * 1_000_000 + b"1]}"
    messages = b'{"model":"played","messages":[' + b'{"role":"user","content":""},' * 400_000
    messages += b'{"role":"user","content":""}]}'
    text = b'{"model":"played","max_tokens":1,"prompt":"' + "好的".encode() * 2_000_000 + b'"}'
    for body in (values, messages, text):
        for _ in range(max(1, size // 3)):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            path = b"/v1/chat/completions" if body is messages else b"/v1/completions"
            writer.write(framed(body).replace(b"/v1/completions", path, 1))
            async with asyncio.timeout(60):
                counts[str(await status_of(reader))] += 1
            writer.close()


async def slowloris(gateway: Gateway, counts: Counter[str], size: int) -> None:
    """`size` heads, as many bodies and as many readers, a byte at a time or none."""

    async def drip(start: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(start)
        reading = asyncio.create_task(closed_by_server(reader, counts))
        while not reading.done():
            with contextlib.suppress(OSError):
                writer.write(b"a")
            await asyncio.wait((reading,), timeout=2)
        writer.close()

    async def read_nothing() -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
            await asyncio.get_running_loop().sock_sendall(client, framed(LONG))
            await asyncio.sleep(45)

    heads = [drip(HEAD + b"x: ") for _ in range(size)]
    slow_bodies = [drip(HEAD + b"content-length: 100000\r\n\r\n{") for _ in range(size)]
    readers = [read_nothing() for _ in range(min(size, 250))]
    watch = asyncio.create_task(_most(gateway, counts))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(45):
            await asyncio.gather(*heads, *slow_bodies, *readers, return_exceptions=True)
    watch.cancel()


async def _most(gateway: Gateway, counts: Counter[str]) -> None:
    while True:
        counts["most MiB"] = max(counts["most MiB"], gateway.rss())
        await asyncio.sleep(0.1)


async def noise(gateway: Gateway, counts: Counter[str], size: int) -> None:
    """Random damage to good requests, `size` at a time, for a while."""
    randomness = random.Random(7)
    end = time.monotonic() + 10

    async def one() -> None:
        while time.monotonic() < end:
            data = bytearray(framed(ASK) * randomness.randint(1, 3))
            for _ in range(randomness.randint(1, 8)):
                at = randomness.randrange(len(data))
                data[at : at + randomness.randint(0, 3)] = randomness.randbytes(randomness.randint(0, 4))
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
                writer.write(data)
                writer.write_eof()
                async with asyncio.timeout(1):
                    said = await reader.read(1 << 16)
                counts[said.split()[1].decode("latin-1") if said else "closed"] += 1
                writer.close()

    await asyncio.gather(*(one() for _ in range(size)))


Attack = Callable[[Gateway, Counter[str], int], Awaitable[None]]
ATTACKS: dict[str, tuple[Attack, int]] = {
    "idle": (idle, 10_000),
    "bodies": (bodies, 32),
    "bombs": (bombs, 6),
    "slowloris": (slowloris, 500),
    "noise": (noise, 16),
}


async def during(gateway: Gateway, name: str, work: Awaitable[None], counts: Counter[str]) -> bool:
    """Runs an attack beside the ordinary client and prints both; whether all went well."""
    ordinary = Ordinary(gateway.port)
    asking, looking = asyncio.create_task(ordinary.run()), asyncio.create_task(ordinary.look())
    began = time.monotonic()
    before = gateway.rss()
    try:
        await work
    finally:
        asking.cancel()
        looking.cancel()
    after = gateway.rss()
    print(f"{name}: {time.monotonic() - began:.0f} s, resident {before} -> {after} MiB")
    print(f"  came back: {', '.join(f'{what}: {count}' for what, count in counts.items())}")
    print(f"  ordinary client: {ordinary.told()}", flush=True)
    return not ordinary.failed


@contextlib.asynccontextmanager
async def running(keep: Path) -> AsyncIterator[Gateway]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    fleet = keep / "hostile.yaml"
    fleet.write_text(FLEET.format(port=port))
    environment = {**os.environ, "TWINLINE_HOME": str(keep / "home")}
    cli = [sys.executable, "-m", "twinline.cli"]
    subprocess.run(
        [*cli, "up", "--detach", str(fleet)], env=environment, check=True, stdout=subprocess.DEVNULL, timeout=60
    )
    try:
        known = json.loads((keep / "home/run/hostile/engines/gateway-0.json").read_text())
        gateway = Gateway(port, known["pid"])
        gateway.first_rss = gateway.rss()
        print(f"gateway of process {gateway.pid}: {gateway.first_rss} MiB", flush=True)
        yield gateway
    finally:
        subprocess.run([*cli, "down"], env=environment, check=False, stdout=subprocess.DEVNULL, timeout=60)


CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "negative_data_rejection", "unsupported_method",
)  # fmt: skip


async def schemathesis(gateway: Gateway, counts: Counter[str], executable: str, seconds: int, examples: int) -> None:
    """Over the document that the gateway serves."""
    url = f"http://127.0.0.1:{gateway.port}"
    command = [executable, "run", f"{url}/openapi.json", "--url", url, "--workers", "1", "--no-color"]
    command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--request-timeout", "10"]
    command += ["--max-examples", str(examples)]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE / "benchmarks")}
    made = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await made.communicate()
    except TimeoutError:
        made.terminate()
        said, _ = await made.communicate()
        counts["cut off after seconds"] = seconds
    counts["exit code"] = made.returncode or 0
    print(said.decode()[-6000:])


async def main(arguments: argparse.Namespace) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    keep = Path(tempfile.mkdtemp(prefix="hostile-"))
    good = True
    try:
        async with running(keep) as gateway:
            for name in arguments.only:
                counts: Counter[str] = Counter()
                if name == "schemathesis":
                    if arguments.schemathesis:
                        work: Awaitable[None] = schemathesis(
                            gateway, counts, arguments.schemathesis, arguments.seconds, arguments.examples
                        )
                        good &= await during(gateway, name, work, counts)
                    continue
                attack, size = ATTACKS[name]
                size = max(1, size // arguments.divide)
                good &= await during(gateway, f"{name} x {size}", attack(gateway, counts, size), counts)
            end = time.monotonic() + arguments.soak
            while time.monotonic() < end:
                counts = Counter()
                works = [attack(gateway, counts, max(1, size // 8)) for attack, size in ATTACKS.values()]
                good &= await during(gateway, "soak, all at once", _all(works), counts)
            await asyncio.sleep(2)
            print(f"at the end: {gateway.rss()} MiB, {gateway.files()} files open")
            good &= Path(f"/proc/{gateway.pid}").exists()
    finally:
        shutil.rmtree(keep, ignore_errors=True)
    return 0 if good else 1


async def _all(works: list[Awaitable[None]]) -> None:
    await asyncio.gather(*works, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=[*ATTACKS, "schemathesis"], default=[*ATTACKS, "schemathesis"])
    parser.add_argument("--divide", type=int, default=1, metavar="N", help="attacks of a part of their size")
    parser.add_argument("--soak", type=float, default=0, metavar="SECONDS", help="then all at once for so long")
    parser.add_argument("--schemathesis", metavar="PATH", help="its executable; without it that part is left out")
    parser.add_argument("--seconds", type=int, default=600, help="that schemathesis may take; default: %(default)s")
    parser.add_argument("--examples", type=int, default=100, help="that it makes of each door; default: %(default)s")
    sys.exit(asyncio.run(main(parser.parse_args())))
