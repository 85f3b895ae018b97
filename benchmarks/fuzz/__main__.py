"""Every parser under a fuzzer that is led by coverage (atheris): no crash, no hang, and what a parser promises holds.

    .venv/bin/python -m pip install "atheris>=3,<4"
    .venv/bin/python -m benchmarks.fuzz                                  # a minute for each target
    .venv/bin/python -m benchmarks.fuzz --seconds 600 --targets calls fleets
    .venv/bin/python -m benchmarks.fuzz --targets calls --input build/fuzz/calls/AssertionError-1a2b3c4d

Owns what each parser is fed, which errors may come out of it, and what must hold of what it gives. Each target runs in
a process of its own; seeds are real: recordings, the tests' own texts, tiny-r1, the configurations that are known. An
error that is not among the documented ones is a finding, and so are 5 seconds over one input: by the clock at first,
and then, as a busy machine stops the clock for nobody, of processor time when it is tried alone. Inputs that gave one
are kept in build/fuzz/TARGET, each kind once, beside what was said. Exit code 0 only if there were none.

Chat templates are programs: sources that multiply, count or write numbers of four digits are passed over, for such a
program may work as long as it likes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from benchmarks.fuzz.given import BUILD, ROOT, Given, fuzzer
from benchmarks.fuzz.targets import TARGETS
from benchmarks.fuzz.watched import Watched, run


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    names = list(TARGETS)
    parser.add_argument("--targets", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--input", type=Path, help="one input for one target, in this process: shows what comes of it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    fuzzer()
    BUILD.mkdir(parents=True, exist_ok=True)
    if given.input:
        one, data = TARGETS[given.targets[0]]()[1], Given(given.input.read_bytes())
        began = time.process_time()
        one(data)
        print(f"{time.process_time() - began:.3f} s of processor time")
        return 0
    if given.child:
        logging.disable(logging.CRITICAL)
        Watched(given.targets[0]).fuzz(given.seconds)
    total = 0
    for name in given.targets:
        executions, findings = run(name, given.seconds)
        total += len(findings)
        print(f"{name:10} {executions:>10,} executions, {len(findings)} findings", flush=True)
        for finding in findings:
            said = finding.with_suffix(".txt")
            last = said.read_text("utf-8").strip().splitlines()[-1] if said.exists() else "see log.txt"
            print(f"  {finding.relative_to(ROOT)}: {last[:160]}")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
