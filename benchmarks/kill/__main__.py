"""Two native lines under load, of which one after the other is killed, stopped, cut off or made to answer 500.

    .venv/bin/python -m benchmarks.kill --events 100
    .venv/bin/python -m benchmarks.kill --overload 600
    .venv/bin/python -m benchmarks.kill --devices cuda cpu

Real processes: two workers of the native engine with tiny-r1, the gateway, and a relay before each worker that can be
cut or answer 500. `--streams` streams are under way at any time, at temperature 0. Each must be, byte for byte and in
its usage, what it is in a run without failures. Unlike devices may part where two tokens are equally likely but for
rounding: then each answer that an undisturbed line gives is right, and how many questions have two is told. The pause
is the longest wait for a stream's next event around each failure. `--overload` offers five times what the lines can do
and counts how often a healthy line is put out of service. Exit code 0 only when every stream was right, no pause too
long and no line put out for nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any

import uvloop
from benchmarks.kill.runs import KINDS, failures, overload


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=100, help="failures in all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="in this order, over and over")
    parser.add_argument("--devices", nargs=2, default=["cpu", "cpu"], help="of the two lines")
    parser.add_argument("--streams", type=int, default=200, help="under way at any time")
    parser.add_argument("--tokens", type=int, default=160, help="of each answer")
    parser.add_argument("--down-seconds", type=float, default=6.0, help="from a failure to its repair")
    parser.add_argument("--slots", type=int, default=256, help="streams at once on a line: all, when it is alone")
    parser.add_argument("--waiting", type=int, default=256, help="requests that may wait at a line")
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="the overload run in place of the failures")
    parser.add_argument("--capacity-requests", type=int, default=400, help="of the overload's measurement of capacity")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--unmetered", action="store_true", help="do not compare with the store's usage")
    parser.add_argument("--verbose", action="store_true", help="show the gateway's warnings")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    logging.basicConfig(level=logging.ERROR)
    what: Callable[[argparse.Namespace], Any] = overload if given.overload else failures
    return 0 if uvloop.run(what(given)) else 1


if __name__ == "__main__":
    sys.exit(main())
