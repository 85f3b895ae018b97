"""Twinline on a CPU beside llama.cpp, OpenVINO GenAI and vLLM: same machine, same checkpoints, one run.

    .venv/bin/python -m benchmarks.cpu                     everything: hours
    .venv/bin/python -m benchmarks.cpu --quick             every part on tiny shapes, once
    .venv/bin/python -m benchmarks.cpu --prepare           only builds peers and makes models
    .venv/bin/python -m benchmarks.cpu --models qwen-1.5b --precisions int8 --scenarios "decode 1"
    .venv/bin/python -m benchmarks.cpu --report FILE       prints the tables of an earlier run

Contenders take turns in every round, and the machine's read bandwidth is measured before and after every turn. Prints
tables in Markdown (medians, least and most), then every bar as met or not met; `--json` writes the same for programs. A
run that was cut off goes on with `--resume FILE`. Method and traps: benchmarks/cpu/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.cpu.bandwidth import Probe, between
from benchmarks.cpu.bars import verdicts
from benchmarks.cpu.contenders import CONTENDERS, EMBEDDED, MODELS, PRECISIONS, Bench, bits
from benchmarks.cpu.family import raise_priority
from benchmarks.cpu.peers import ROOT, Peers
from benchmarks.cpu.plan import Turn, scenario_list, turns
from benchmarks.cpu.results import Record, append, load, summarised
from benchmarks.cpu.session import Failed, Sessions
from benchmarks.cpu.table import report

FULL = ("tiny-r1", "qwen-1.5b", "qwen-1.5b-circles", "v3-small", "v2-lite-5")
MOST_FAILURES = 3  # of one contender with one model, before its turns are passed over
QUICK = ("tiny-r1", "qwen-small", "qwen-small-circles", "v3-tiny")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, help=f"default: {' '.join(FULL)}")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--contenders", "--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--scenarios", nargs="+", metavar="NAME", help="scenarios whose names begin so")
    parser.add_argument("--rounds", type=int, default=5, help="default 5; one user's decoding gets two more")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all processors")
    parser.add_argument("--int4", default="int4", metavar="FORM", help="what --weights is given, as int4:64")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, short answers, one round")
    parser.add_argument("--prepare", action="store_true", help="build and convert what is missing, and end")
    parser.add_argument("--priority", action="store_true", help="run above everything else on the machine (root)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "cpu", help="default: build/cpu")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with a run; its records are kept")
    parser.add_argument("--report", type=Path, metavar="FILE", help="print the report of a run, and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write medians, spreads and bars here")
    return parser.parse_args()


def plan(options: argparse.Namespace) -> list[Turn]:
    scenarios = scenario_list(options.quick, 1 if options.quick else options.rounds)
    if options.scenarios:
        beginnings = tuple(options.scenarios)
        chosen = tuple(s for s in scenarios if s.name.startswith(beginnings))
        if not chosen:
            sys.exit(f"no scenario begins so; there are: {', '.join(s.name for s in scenarios)}")
        scenarios = chosen
    models = options.models or (QUICK if options.quick else FULL)
    return list(turns(models, options.precisions, options.contenders, scenarios))


def prepare(bench: Bench, planned: list[Turn]) -> set[tuple[str, str, str]]:
    """Makes what the turns need. What cannot be made is said, and its turns are left out."""
    missing = set()
    for contender, model, precision in dict.fromkeys((t.contender, t.model, t.precision) for t in planned):
        try:
            bench.prepare(contender, model, precision)
        except Exception as error:
            print(f"{contender} cannot be prepared for {model} in {precision}: {error}", file=sys.stderr)
            missing.add((contender, model, precision))
    return missing


def measured(bench: Bench, probe: Probe, turn: Turn, threads: int) -> Record:
    scenario = turn.scenario
    threads = scenario.threads or (1 if turn.model == EMBEDDED else threads)  # as it runs where nobody says
    before = probe.passes_of(threads)
    figures, facts, error = {}, {}, ""
    try:
        arguments = dict(scenario.arguments)
        figures = bench.measure(
            turn.contender, turn.model, turn.precision, threads, scenario.kind, arguments, scenario.options
        )
        facts = figures.pop("facts", {})
    except (Failed, RuntimeError, OSError) as failure:
        error = str(failure)
    read = between(before, probe.passes_of(threads))
    width = bits(turn.contender, turn.precision, bench.forms.get(turn.precision, ""))
    return Record(
        turn.model, turn.precision, scenario.name, turn.contender, turn.round, threads, read, width, figures, facts,
        error,
    )  # fmt: skip


def written(file: Path, records: list[Record]) -> None:
    results = summarised(records)
    rows = []
    for (model, precision, scenario, contender), summary in results.items():
        names = dict.fromkeys(name for r in summary.records for name in r.figures)
        figures = {name: figure.as_json() for name in names if (figure := summary.figure(name))}
        facts = next((r.facts for r in summary.records if r.facts), {})
        rows.append(
            {"model": model, "precision": precision, "scenario": scenario, "contender": contender, "figures": figures,
             "read_bytes_per_second": summary.read, "facts": facts, "errors": summary.errors}
        )  # fmt: skip
    bars = [dataclasses.asdict(v) | {"met": v.met} for v in verdicts(results)]
    file.write_text(json.dumps({"results": rows, "bars": bars}, indent=1) + "\n", "utf-8")


def show(records: list[Record], options: argparse.Namespace) -> None:
    results = summarised(records)
    print(report(results, verdicts(results)))
    if options.json:
        written(options.json, records)


def main() -> int:
    options = arguments()
    if options.report:
        show(load(options.report), options)
        return 0
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    planned = plan(options)
    bench = Bench(Peers(folder), Sessions(folder / "logs"), {"int4": options.int4}, priority=options.priority)
    missing = prepare(bench, planned)
    planned = [t for t in planned if (t.contender, t.model, t.precision) not in missing]
    if options.prepare:
        return 1 if missing else 0
    probe = Probe.built(folder, mebibytes=max(64, 2 * (os.cpu_count() or 1)) if options.quick else 1024)
    if options.priority:
        raise_priority(os.getpid())
    file = options.resume or folder / "runs" / time.strftime("%Y%m%d-%H%M%S.jsonl")
    records = load(file)
    done = {(r.key, r.round) for r in records if not r.error}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would measure each other
        try:
            failures: Counter[tuple[str, str, str]] = Counter()
            for number, turn in enumerate(planned, 1):
                what = (turn.contender, turn.model, turn.precision)
                if ((turn.model, turn.precision, turn.scenario.name, turn.contender), turn.round) in done:
                    continue
                if failures[what] >= MOST_FAILURES:
                    continue
                record = measured(bench, probe, turn, options.threads)
                failures[what] += bool(record.error)
                append(file, record)
                records.append(record)
                said = record.error or ", ".join(f"{k} {v:.4g}" for k, v in record.figures.items())
                print(f"{number}/{len(planned)} {turn.model} {turn.precision} {turn.scenario.name}, round "
                      f"{turn.round + 1}, {turn.contender}: {said}; read {record.read / 1e9:.1f} GB/s",
                      file=sys.stderr, flush=True)  # fmt: skip
        finally:
            bench.sessions.close()
    show(records, options)
    print(f"\nrecords: {file}", file=sys.stderr)
    return 1 if missing or any(r.error for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
