"""`twinline usage`: who used what, where, and what it cost.

Owns the options and the table's looks. Must not know how usage is recorded or added up.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from twinline.cli.keys import moment
from twinline.cli.parser import CliError
from twinline.cli.table import aligned
from twinline.store.database import Database, StoreError, opened
from twinline.store.fold import fold
from twinline.store.home import DATABASE_VARIABLE, home
from twinline.store.journal import SUFFIX
from twinline.store.keys import Keys
from twinline.store.report import BY, Sum, usage

COUNTS = ("requests", "unfinished", "prompt_tokens", "cached_tokens", "completion_tokens", "waste_tokens")
COLUMNS = (*COUNTS, "seconds", "cost", "currency")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by", type=_groups, metavar="A,B", default=("key", "model"),
        help=f"group by any of {', '.join(BY)} (default key,model), or `total`",
    )  # fmt: skip
    parser.add_argument("--key", metavar="NAME|ID", help="only this key's")
    parser.add_argument("--since", type=moment, metavar="DATE", help="requests started then or later (UTC)")
    parser.add_argument(
        "--until", type=_until, metavar="DATE", help="requests started before; of a date, its end (UTC)"
    )
    shapes = parser.add_mutually_exclusive_group()
    shapes.add_argument("--csv", action="store_true", help="for spreadsheets; without totals")
    shapes.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    try:
        with opened() as database:
            folded = fold(database, database.journals)
            _tell_of_others(database)
            if folded.torn:
                print(
                    f"twinline: warning: {folded.torn} damaged lines in the journals are not counted", file=sys.stderr
                )
            span: dict[str, Any] = {
                "since": args.since.timestamp() if args.since else None,
                "until": args.until.timestamp() if args.until else None,
                "key_id": Keys(database).get(args.key).id if args.key else None,
            }
            rows = usage(database, args.by, **span)
            totals = usage(database, **span)
    except StoreError as error:
        raise CliError(str(error)) from error
    if args.json:
        data = {"by": list(args.by), "usage": [_plain(args.by, row) for row in rows],
                "totals": [_plain((), row) for row in totals]}  # fmt: skip
        print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, [*args.by, *COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**_plain(args.by, row), "cost": f"{row.cost:.9f}"} for row in rows)
    else:
        _show(args.by, rows, totals)
    return 0


def _tell_of_others(database: Database) -> None:
    """Of gateways that run here with another database: theirs is the report that shows it."""
    for directory in sorted(home().glob("journal*")):
        waiting = len(list(directory.glob(f"*{SUFFIX}")))
        if waiting and directory != database.journals:
            print(
                f"twinline: note: {waiting} journals in {directory} go into another database than {database.shown} and "
                f"are not counted: set {DATABASE_VARIABLE} to what their gateways have",
                file=sys.stderr,
            )


def _groups(text: str) -> tuple[str, ...]:
    if text == "total":
        return ()
    names = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
    unknown = [name for name in names if name not in BY]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(BY)}, not {', '.join(unknown) or text!r}")
    return names


def _until(text: str) -> Any:
    return moment(text, end_of_day=True)


def _plain(by: Sequence[str], row: Sum) -> dict[str, Any]:
    return {**dict(zip(by, row.of, strict=True)), **{name: getattr(row, name) for name in COLUMNS}}


def _show(by: Sequence[str], rows: list[Sum], totals: list[Sum]) -> None:
    if not totals:
        print("no usage recorded")
        return
    heads = ("requests", "unfinished", "prompt", "cached", "completion", "waste", "seconds", "cost", "a million out")
    table = [[*(by or ("",)), *heads]]
    if by:
        table += [[*(name or "-" for name in row.of), *_cells(row)] for row in rows]
    table += [[*("total", *by)[: max(1, len(by))], *_cells(row)] for row in totals]
    if len(by) > 1:
        for line in table[-len(totals) :]:
            line[1 : len(by)] = [""] * (len(by) - 1)
    print(aligned(table))


def _cells(row: Sum) -> list[str]:
    free = row.currency is None and not row.cost
    small = 0 < row.cost < 0.00005  # it would be shown as nothing
    cost = "-" if free else f"{'<0.0001' if small else f'{row.cost:,.4f}'} {row.currency or ''}".strip()
    rate = "-" if free or not row.completion_tokens else f"{row.cost / row.completion_tokens * 1e6:,.4f}"
    return [*(f"{getattr(row, name):,}" for name in COUNTS), f"{row.seconds:,.1f}", cost, rate]
