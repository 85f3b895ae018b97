"""What all verbs' command lines share: one-line errors and the types of their values.

Owns the shape of command-line errors. Must not know any verb.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

DEFAULT_URL = "http://127.0.0.1:8000/v1"


class CliError(Exception):
    """Something the user can put right; its text is one line. `code` is the exit code."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and go the way of every other error."""

    def error(self, message: str) -> NoReturn:
        raise CliError(f"{message} (see {self.prog} --help)", code=2)

    def refuse(self, unknown: Sequence[str], verb: str | None) -> NoReturn:
        """What nothing knows of a command line, with the nearest that is known."""
        near = [_nearest(word.partition("=")[0], self._known()) for word in unknown if word.startswith("-")]
        hint = f"; did you mean {', '.join(filter(None, near))}?" if any(near) else ""
        of_verb = " ".join(filter(None, (self.prog, verb)))
        raise CliError(f"unrecognized arguments: {' '.join(unknown)}{hint} (see {of_verb} --help)", code=2)

    def _known(self) -> set[str]:
        """Its options, and those of the parsers under it."""
        under = [p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values()]
        inside = [parser._known() for parser in under if isinstance(parser, Parser)]
        return {name for action in self._actions for name in action.option_strings}.union(*inside)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own, with the nearest choice."""
        if action.choices is not None and value not in action.choices:
            near = _nearest(str(value), map(str, action.choices))
            hint = f"; did you mean {near!r}?" if near else ""
            told = f"invalid choice: {value!r}{hint} (choose from {', '.join(map(repr, action.choices))})"
            raise argparse.ArgumentError(action, told)


def _nearest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            limit = f"at least {low}" if high is None else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"must be {limit}, not {value}")
        return value

    return parse


def positive(text: str) -> float:
    """An argparse type: a number above zero."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def add_server(parser: argparse.ArgumentParser) -> None:
    """`--url` and `--api-key`, which the environment may give too."""
    parser.add_argument(
        "--url",
        default=os.environ.get("TWINLINE_URL"),
        help=f"the endpoint, up to /v1 (default: $TWINLINE_URL, else {DEFAULT_URL})",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("TWINLINE_API_KEY"), help="default: $TWINLINE_API_KEY"
    )
