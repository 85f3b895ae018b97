"""The gateway beside its peers: same machine, same sixteen lines, same load, same run.

    .venv/bin/python benchmarks/gateway.py --install-peers      once, about 1 GB under build/
    .venv/bin/python benchmarks/gateway.py --rounds 3

Prints one table: requests per second, added latency, the age of tokens on 1,000 streams, CPU time and memory, as
medians over alternating rounds. The gateway has core 0 for itself, all else runs on core 1. Linux, gcc and two cores
are needed. Method and traps: benchmarks/gateway/README.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from gateway.measure import Bench, Plan, Row, UpstreamFailed
from gateway.processes import StartFailed
from gateway.report import merged, table
from gateway.stacks import DEFAULT_COMMAND, NotInstalled, Peers, Stack, stacks
from gateway.tools import ROOT


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="gateways whose names begin so; direct always runs")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load phase (default 3)")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens a second of one stream")
    parser.add_argument("--stream-seconds", type=float, default=6.0)
    parser.add_argument("--lockstep", action="store_true", help="all streams of a line get their tokens at one moment")
    parser.add_argument("--priority", action="store_true", help="run above everything else on the machine (root)")
    parser.add_argument("--install-peers", action="store_true", help="install the peers that are missing, and end")
    parser.add_argument("--gateway-command", default=DEFAULT_COMMAND, help="starts Twinline; {fleet} {port} {home}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's figures")
    return parser.parse_args()


def chosen(all_stacks: list[Stack], only: list[str] | None) -> list[Stack]:
    if only is None:
        return all_stacks
    beginnings = tuple(name.lower() for name in only)
    return [s for s in all_stacks if s.launch is None or s.name.lower().startswith(beginnings)]


def main() -> int:
    options = arguments()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the gateway, one for the load")
    if shutil.which("gcc") is None:
        sys.exit("gcc is needed to build the upstream and the client (Debian: apt-get install gcc libc6-dev)")
    folder = ROOT / "build/gateway"
    peers = Peers(folder / "peers")
    if options.install_peers:
        return 0 if peers.install() else 1
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another run of this benchmark is under way here; both would measure each other")
    try:
        return measured(options, folder, peers)
    except UpstreamFailed as error:
        sys.exit(f"the upstream failed: {error}")


def measured(options: argparse.Namespace, folder: Path, peers: Peers) -> int:
    """Runs the rounds and prints the table. Raises UpstreamFailed."""
    memory = Path("/dev/shm")
    rounds: dict[tuple[str, str], list[Row]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        plan = Plan(
            folder, Path(scratch) / "times", options.seconds, options.streams, options.rate, options.stream_seconds,
            options.lockstep, options.priority,
        )  # fmt: skip
        with Bench(plan) as bench:
            listed = chosen(stacks(peers, options.gateway_command), options.only)
            for number in range(options.rounds):
                for stack in listed if number % 2 == 0 else listed[::-1]:
                    for kind in stack.kinds:
                        if stack.name in left_out:
                            continue
                        try:
                            row = bench.round(stack, kind)
                        except (NotInstalled, StartFailed, RuntimeError, OSError) as error:
                            left_out[stack.name] = str(error).splitlines()[0]
                            print(f"{stack.name}: {error}", file=sys.stderr)
                            continue
                        rounds.setdefault((stack.name, kind.name), []).append(row)
                        print(f"round {number + 1}: {stack.name}, {kind.name}: {json.dumps(row)}", file=sys.stderr)
    order = [(stack.name, kind.name) for stack in listed for kind in stack.kinds]
    print(table({key: merged(rounds[key]) for key in order if key in rounds}, left_out))
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items() if version)
    print(f"\nVersions: {versions or 'this tree'}.")
    foreign = [row["foreign_share"] for (name, _), rows in rounds.items() if name != "direct" for row in rows]
    if foreign:
        print(f"Others on the gateway's core: at most {max(foreign):.0%} of a phase.")
    if options.json:
        options.json.write_text(json.dumps({"/".join(key): rows for key, rows in rounds.items()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
