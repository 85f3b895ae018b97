"""`twinline bench compare`: two runs of the same load side by side, and what a token costs at each.

Owns when two runs may be compared, and the looks. Measures nothing: it reads what `bench serve --output` wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinline.cli.parser import CliError
from twinline.cli.table import aligned

Json = dict[str, Any]
# Settings that make the load: where they differ, so do the runs. `url`, `model` and `price` are what is compared.
LOAD = (
    "endpoint", "requests", "concurrency", "rate", "seed", "prompts", "prompt_tokens", "output_tokens", "token_ids",
    "vocab", "respect_eos", "ttft_limit_ms", "itl_limit_ms",
)  # fmt: skip
# name, where it is, digits after the point
ROWS = (
    ("requests answered", ("report", "completed"), 0),
    ("output tokens a second", ("report", "output_tokens_per_s"), 1),
    ("first token, ms, p50", ("report", "ttft_ms", "p50"), 1),
    ("first token, ms, p99", ("report", "ttft_ms", "p99"), 1),
    ("later token, ms, p50", ("report", "per_token_ms", "p50"), 2),
    ("later token, ms, p99", ("report", "per_token_ms", "p99"), 2),
    ("good requests a second", ("report", "goodput_requests_per_s"), 3),
    ("price an hour", ("cost", "price_per_hour"), 2),
    ("a million output tokens", ("cost", "per_million_output_tokens"), 4),
    ("a thousand good requests", ("cost", "per_thousand_good_requests"), 4),
)


def configure(parser: argparse.ArgumentParser) -> None:
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json", help="of bench serve --output")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """0 when every request of both runs was answered whole."""
    old, new = _read(args.old), _read(args.new)
    if apart := [name for name in LOAD if old["settings"].get(name) != new["settings"].get(name)]:
        told = ", ".join(f"{n} {old['settings'].get(n)} and {new['settings'].get(n)}" for n in apart)
        raise CliError(f"these runs are not of one load ({told}): repeat one of them", code=2)
    rows = [(name, _at(old, path), _at(new, path), digits) for name, path, digits in ROWS]
    doubts = list(_doubts(old, new))
    if args.json:
        plain = [{"what": name, "old": a, "new": b, "ratio": _ratio(a, b)} for name, a, b, _ in rows]
        print(json.dumps({"rows": plain, "saved": _saved(old, new), "doubts": doubts}, indent=2))
    else:
        print(_text(rows, old, new, doubts))
    return 0 if all(run["report"]["completed"] == run["report"]["requests"] for run in (old, new)) else 1


def _read(file: Path) -> Json:
    try:
        run: Json = json.loads(file.read_text(encoding="utf-8"))
        run["settings"]["url"], run["report"]["completed"], run["report"]["requests"]  # what any run has
    except OSError as exc:
        raise CliError(f"cannot read {file}: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CliError(f"{file} is no run of `twinline bench serve --output`") from None
    return run


def _at(run: Json, path: tuple[str, ...]) -> float | None:
    value: Any = run
    for part in path:
        value = None if value is None else value.get(part)
    return value


def _ratio(old: float | None, new: float | None) -> float | None:
    return new / old if old and new is not None else None


def _saved(old: Json, new: Json) -> float | None:
    """By how much of itself a token, or with limits a good request, is cheaper in the new run."""
    limited = any(old["settings"].get(name) is not None for name in ("ttft_limit_ms", "itl_limit_ms"))
    per = ("cost", "per_thousand_good_requests" if limited else "per_million_output_tokens")
    same = _currency(old) == _currency(new)
    ratio = _ratio(_at(old, per), _at(new, per)) if same else None
    return None if ratio is None else 1 - ratio


def _currency(run: Json) -> str | None:
    return (run.get("cost") or {}).get("currency")


def _doubts(old: Json, new: Json) -> Iterator[str]:
    """Why the numbers may not say what they seem to."""
    for name, run in (("OLD", old), ("NEW", new)):
        report = run["report"]
        if lost := report["requests"] - report["completed"]:
            yield f"{name}: {lost:,} of {report['requests']:,} requests were not answered whole"
        if report.get("token_counts") != "usage":
            yield f"{name}: its server did not count the tokens, pieces were counted"
        if cached := report.get("cached_tokens"):
            yield f"{name}: {cached:,} input tokens came from a prefix cache, as after a run with the same --seed"
        if not run.get("cost"):
            yield f"{name}: no cost without bench serve --price"
    counted = [run["report"].get("input_tokens") for run in (old, new)]
    if counted[0] != counted[1] and None not in counted:
        yield f"the same prompts are {counted[0]:,} and {counted[1]:,} input tokens: another tokenizer or template"
    if old.get("cost") and new.get("cost") and _currency(old) != _currency(new):
        yield f"prices in {_currency(old)} and {_currency(new)}: give both in one currency"


def _text(rows: list[tuple[str, float | None, float | None, int]], old: Json, new: Json, doubts: list[str]) -> str:
    table = [["", "OLD", "NEW", "NEW / OLD"]]
    for name, before, after, digits in rows:
        if before is not None or after is not None:
            ratio = _ratio(before, after)
            shown = ["-" if value is None else f"{value:,.{digits}f}" for value in (before, after)]
            table.append([name, *shown, "-" if ratio is None else f"{ratio:.3f}"])
    parts = [
        f"{name}  {run['settings'].get('model')} at {run['settings']['url']}"
        for name, run in (("OLD", old), ("NEW", new))
    ]
    parts += ["", aligned(table), ""]
    if (saved := _saved(old, new)) is not None:
        limited = _at(old, ("cost", "per_thousand_good_requests")) is not None
        what = "a request within the limits" if limited else "an output token"
        parts.append(f"{what} costs {abs(saved):.1%} {'less' if saved >= 0 else 'more'} at NEW ({_currency(new)})")
        parts.append("one run each: repeat both with other seeds to see how much of it is chance")
    return "\n".join([*parts, *doubts])
