"""`twinline keys`: who may use the gateway, and how much.

Owns the options and the listing's looks. Must not know how keys are stored or checked.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from twinline.cli.parser import CliError, integer, positive
from twinline.cli.table import aligned
from twinline.store.database import StoreError, opened
from twinline.store.keys import MAX_COUNT, Key, Keys

_MONEY = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]{3,8})")
_AFTER = re.compile(r"([0-9]+)([hdw])")
_HOURS = {"h": 1, "d": 24, "w": 168}
NONE = "none"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = _action(verbs, "create", "make a key and print its secret, once", _create)
    create.add_argument("name", metavar="NAME")
    _add_settings(create, "")
    create.add_argument("--admin", action="store_true", default=None, help="it may use the management API")
    _action(verbs, "list", "list the keys", _list)
    revoke = _action(verbs, "revoke", "end a key for good", _revoke)
    revoke.add_argument("name", metavar="NAME|ID")
    change = _action(verbs, "set", "change what a key may do", _set)
    change.add_argument("name", metavar="NAME|ID")
    change.add_argument("--name", dest="new_name", metavar="NAME", help="its new name")
    _add_settings(change, f"; `{NONE}` takes it away")
    change.add_argument("--admin", action=argparse.BooleanOptionalAction, help="it may use the management API")


def _action(verbs: Any, name: str, told: str, run_it: Callable[[Keys, argparse.Namespace], int]) -> Any:
    parser = verbs.add_parser(name, help=told, description=told[0].upper() + told[1:] + ".")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(act=run_it)
    return parser


def _add_settings(parser: argparse.ArgumentParser, none: str) -> None:
    count = _or_none(integer(0, MAX_COUNT)) if none else integer(0, MAX_COUNT)
    add = parser.add_argument
    add("--models", type=_or_none(_models) if none else _models, metavar="A,B", help=f"only these models{none}")
    add("--rpm", type=count, metavar="N", help=f"requests per minute{none}")
    add("--tpm", type=count, metavar="N", help=f"tokens per minute, prompt and completion{none}")
    add("--tokens-budget", type=count, metavar="N", help=f"tokens per budget period{none}")
    add(
        "--money-budget", type=_or_none(_money) if none else _money, metavar="AMOUNT",
        help=f"money per budget period, with its currency: 100CNY{none}",
    )  # fmt: skip
    add(
        "--period",
        choices=("month", "total"),
        help="what budgets are for: a calendar month in UTC (default), or for good",
    )
    add("--weight", type=positive, metavar="W", help="its share among waiting keys (default 1)")
    add(
        "--priority", type=integer(-(2**31), 2**31 - 1), metavar="P",
        help="the most urgent priority its requests may have; smaller is sooner (default 0)",
    )  # fmt: skip
    add("--expires", type=_or_none(_expires) if none else _expires, metavar="WHEN",
        help=f"a date in UTC (2027-01-31, 2027-01-31T18:00) or a time from now (12h, 30d, 8w){none}")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    try:
        with opened() as database:
            return int(args.act(Keys(database), args))
    except StoreError as error:
        raise CliError(str(error)) from error


def _create(keys: Keys, args: argparse.Namespace) -> int:
    key, secret = keys.create(args.name, **_settings(args))
    if args.json:
        _print_json({**_plain(key), "secret": secret})
    else:
        print(f"{key.name} ({key.id}): {_told(key)}")
        print(f"secret, shown only now: {secret}")
    return 0


def _list(keys: Keys, args: argparse.Namespace) -> int:
    found = keys.list()
    if args.json:
        _print_json({"keys": [_plain(key) for key in found]})
    elif not found:
        print("no keys; `twinline keys create NAME` makes one")
    else:
        rows = [["name", "id", "state", "models", "rpm", "tpm", "tokens", "money", "weight", "priority", "expires"]]
        rows += [_row(key) for key in found]
        print(aligned(rows))
    return 0


def _revoke(keys: Keys, args: argparse.Namespace) -> int:
    key = keys.revoke(args.name)
    if args.json:
        _print_json(_plain(key))
    else:
        print(f"{key.name} ({key.id}) is revoked; gateways follow within two seconds")
    return 0


def _set(keys: Keys, args: argparse.Namespace) -> int:
    settings = _settings(args)
    if args.new_name is not None:
        settings["name"] = args.new_name
    if not settings:
        raise CliError("nothing to change; name a setting, such as --rpm 60 (see twinline keys set --help)", code=2)
    key = keys.change(args.name, **settings)
    if args.json:
        _print_json(_plain(key))
    else:
        print(f"{key.name} ({key.id}): {_told(key)}; gateways follow within two seconds")
    return 0


_OPTIONS = {
    "models": "models", "rpm": "requests_per_minute", "tpm": "tokens_per_minute", "tokens_budget": "token_budget",
    "period": "budget_period", "weight": "weight", "priority": "priority_cap", "expires": "expires", "admin": "admin",
}  # fmt: skip


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given; `NONE` is no limit."""
    given = {field: getattr(args, option) for option, field in _OPTIONS.items() if getattr(args, option) is not None}
    if args.money_budget == NONE:
        given |= {"money_budget": None, "currency": None}
    elif args.money_budget is not None:
        given["money_budget"], given["currency"] = args.money_budget
    return {field: None if value == NONE else value for field, value in given.items()}


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: NONE if text == NONE else parse(text)


def _models(text: str) -> frozenset[str]:
    names = frozenset(filter(None, map(str.strip, text.split(","))))
    if not names:
        raise argparse.ArgumentTypeError("names no model")
    return names


def _money(text: str) -> tuple[float, str]:
    match = _MONEY.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be an amount and its currency, such as 100CNY, not {text!r}")
    return float(match[1]), match[2].upper()


def _expires(text: str) -> float:
    if match := _AFTER.fullmatch(text):
        return time.time() + int(match[1]) * _HOURS[match[2]] * 3600
    when = moment(text).timestamp()
    if when <= time.time():
        raise argparse.ArgumentTypeError(f"{text!r} is over already (`twinline keys revoke` ends a key at once)")
    return when


def moment(text: str, *, end_of_day: bool = False) -> datetime:
    """An argparse type: a date or time, in UTC unless it says otherwise; of a date, its beginning or its end."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a date such as 2027-01-31, not {text!r}") from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return parsed + timedelta(days=1) if end_of_day and len(text) <= 10 else parsed


def _plain(key: Key) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(key)
    plain["models"] = None if key.models is None else sorted(key.models)
    return plain | {"state": key.state(time.time())}


def _print_json(data: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def _row(key: Key) -> list[str]:
    def budget(amount: str) -> str:
        return amount if amount == "-" else f"{amount}/{key.budget_period}"

    money = "-" if key.money_budget is None else f"{key.money_budget:,.10g} {key.currency}"
    return [
        key.name, key.id, key.state(time.time()) + (", admin" if key.admin else ""),
        "all" if key.models is None else ",".join(sorted(key.models)),
        _count(key.requests_per_minute), _count(key.tokens_per_minute), budget(_count(key.token_budget)), budget(money),
        f"{key.weight:g}", str(key.priority_cap), "-" if key.expires is None else _day(key.expires),
    ]  # fmt: skip


def _told(key: Key) -> str:
    """What a key may do, in one line."""
    told = ["all models" if key.models is None else f"models {', '.join(sorted(key.models))}"]
    for number, unit in ((key.requests_per_minute, "requests/min"), (key.tokens_per_minute, "tokens/min")):
        if number is not None:
            told.append(f"{number:,} {unit}")
    if key.token_budget is not None:
        told.append(f"{key.token_budget:,} tokens/{key.budget_period}")
    if key.money_budget is not None:
        told.append(f"{key.money_budget:,.10g} {key.currency}/{key.budget_period}")
    if key.expires is not None:
        told.append(f"until {_day(key.expires)}")
    return ", ".join([*told, *(["admin"] if key.admin else [])])


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
