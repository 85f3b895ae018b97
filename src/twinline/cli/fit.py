"""`twinline fit`: whether a model fits on a chip, with the sum laid out; or on which chips, and how many of them.

Owns the reading of the question and the exit code: 0 for a yes alone. Must not know any sum (`facts/fit.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import re

from twinline.cli.fit_json import answer_for_machines, table_for_machines
from twinline.cli.fit_table import Row, least, table
from twinline.cli.fit_text import Question, lay_out
from twinline.cli.folder import EMBEDDED, embedded
from twinline.cli.parser import CliError, integer
from twinline.facts.chips import Catalog, Chip, UnknownChip, load
from twinline.facts.engine_rules import DEFAULT_RULE, RULES
from twinline.facts.families import read_anatomy
from twinline.facts.fit import Want, fit
from twinline.facts.fit_changes import changes
from twinline.facts.forms import FORMS, find_form, published
from twinline.facts.layouts import parse_layout
from twinline.facts.memory import CACHE_FORMS
from twinline.facts.model_files import bundled, find_model
from twinline.facts.models import UnsupportedModel

USUAL_CONTEXT = 8192
MOST_CARDS = 4096


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a name (none: the names known), a model folder, or a config.json")
    parser.add_argument(
        "--chip", action="append", metavar="ID[xN]", help="a chip of the catalog, and how many cards: h20x8"
    )
    parser.add_argument("--cards", type=integer(1, MOST_CARDS), metavar="N", help="how many cards")
    parser.add_argument("--precision", metavar="P", help=f"of the weights: {', '.join(FORMS)} (default: as published)")
    parser.add_argument(
        "--context", type=integer(1, 2**24), metavar="TOKENS", help=f"tokens of each request (default {USUAL_CONTEXT})"
    )
    parser.add_argument(
        "--concurrency", type=integer(1, 2**20), default=1, metavar="N", help="requests at once (default 1)"
    )
    parser.add_argument("--layout", metavar="L", help="such as tp8, tp8,pp2 or tp4,dp4,ep (default: the simplest)")
    parser.add_argument("--cache", choices=sorted(CACHE_FORMS), default="bf16", help="of keys and values")
    parser.add_argument("--engine", choices=sorted(RULES), default=DEFAULT_RULE, help="whose rule sizes the cache")
    parser.add_argument(
        "--chunk", type=integer(1, 2**20), metavar="TOKENS", help="prefilled at once (default: 8192, small cards 2048)"
    )
    parser.add_argument("--json", action="store_true", help="for machines: every line with its origin")


def run(args: argparse.Namespace) -> int:
    if args.chip is not None:
        if len(args.chip) > 1:
            raise CliError("one --chip is answered at a time; without --chip all are told side by side", code=2)
        args.chip = args.chip[0]
    if args.model is None:
        if args.chip is not None or args.cards or args.precision is not None or args.layout is not None:
            raise CliError("name a model before options; `twinline fit` alone lists those known", code=2)
        names = {model.name: model.hub for model in bundled().values()}
        print(json.dumps(names, indent=2) if args.json else "\n".join(f"{n:32}{hub}" for n, hub in names.items()))
        return 0
    catalog = load()
    try:
        question = ask(args)
    except UnsupportedModel as error:
        raise CliError(str(error)) from None
    if args.chip is not None:
        chip, told = which(catalog, args.chip, args.cards)
        layout = question.want.layout
        cards = told or (math.ceil(layout.devices / chip.devices_per_card) if layout else 1)
        return _one(question, chip, cards, args.json)
    if args.layout is not None:
        raise CliError("--layout is for one number of cards: name a --chip too", code=2)
    rows = least(question, catalog, args.cards)
    if args.json:
        print(json.dumps(table_for_machines(question, rows), indent=2))
    else:
        print("\n".join(table(question, rows, catalog, args.cards)))
    return 0 if any(_fits(row) for row in rows) else 1


def ask(args: argparse.Namespace) -> Question:
    """The question in full. Raises UnsupportedModel."""
    file = find_model(str(embedded()) if args.model == EMBEDDED else args.model)
    anatomy = read_anatomy(file.config)
    form = published(anatomy) if args.precision is None else find_form(args.precision)
    if form.experts and anatomy.mixture is None:
        raise UnsupportedModel(
            f"{form.name} is for models with experts, and {file.name} has none; see --precision int8"
        )
    want = Want(
        form=form,
        context=args.context or min(USUAL_CONTEXT, anatomy.context),
        concurrency=args.concurrency,
        layout=None if args.layout is None else parse_layout(args.layout),
        rule=RULES[args.engine],
        cache=CACHE_FORMS[args.cache],
        chunk=args.chunk,
    )
    return Question(file, anatomy, want, as_published=args.precision is None)


def which(catalog: Catalog, text: str, cards: int | None) -> tuple[Chip, int | None]:
    """`h20x8`, `8xh20`, or `h20` beside `--cards 8`; None where no number is told. Raises CliError, and UnknownChip
    with near misses."""
    count = r"(?P<n>[0-9]{1,9})"
    for pattern in (r"(?P<chip>.+)", rf"(?P<chip>.+?)\s*[x×*]\s*{count}", rf"{count}\s*[x×*]\s*(?P<chip>.+)"):
        found = re.fullmatch(pattern, text.strip(), re.IGNORECASE)
        if found is None:
            continue
        try:
            chip = catalog.find(found["chip"])
        except UnknownChip:
            continue
        told = found.groupdict().get("n")
        number = cards if told is None else int(told)
        if cards not in (None, number):
            raise CliError(f"--chip {text} says {number} cards and --cards {cards}", code=2)
        if number is not None and not 1 <= number <= MOST_CARDS:
            raise CliError(f"--chip {text}: from 1 to {MOST_CARDS} cards", code=2)
        return chip, number
    catalog.find(text)
    raise AssertionError("an unknown chip raises")


def _one(question: Question, chip: Chip, cards: int, as_json: bool) -> int:
    found = fit(question.anatomy, chip, cards, question.want)
    better = changes(question.anatomy, chip, found, question.want)
    if as_json:
        print(json.dumps(answer_for_machines(question, found, better), indent=2))
    else:
        print("\n".join(lay_out(question, chip, found, better)))
    return 0 if found.answer == "yes" else 1


def _fits(row: Row) -> bool:
    return row.fit is not None and row.fit.answer == "yes"
