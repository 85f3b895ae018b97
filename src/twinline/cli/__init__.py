"""The command line: which verbs there are, and how their errors end.

Owns the registry of verbs and the exit codes. Must not know what a verb does, and imports only the one that was asked
for: `twinline --help` answers at once.

Exit codes: 0 what was asked holds, 1 it failed, 2 it was asked wrongly, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from twinline import __version__
from twinline.cli.parser import CliError, Parser
from twinline.cli.terminal import harmless, show_what_it_can

# verb: (module with `configure(parser)` and `run(args) -> int`, help)
VERBS: dict[str, tuple[str, str]] = {
    "serve": ("twinline.cli.serve", "serve a model folder behind an OpenAI endpoint"),
    "up": ("twinline.cli.up", "start a fleet from its file"),
    "down": ("twinline.cli.down", "end a fleet"),
    "ps": ("twinline.cli.ps", "show what runs"),
    "apply": ("twinline.cli.apply", "make a running fleet what its file says"),
    "diff": ("twinline.cli.diff", "show what apply would do"),
    "drain": ("twinline.cli.drain", "move everything away from a line and end it"),
    "chat": ("twinline.cli.chat", "talk to a model that is served"),
    "models": ("twinline.cli.models", "list the models that a server offers"),
    "convert": ("twinline.cli.convert", "write a model folder in another precision, and measure what it cost"),
    "bench": ("twinline.cli.bench", "measure an endpoint under load"),
    "chips": ("twinline.cli.chips", "show what is known of a chip, or compare several"),
    "devices": ("twinline.cli.devices", "show the cards of this machine and their health"),
    "fit": ("twinline.cli.fit", "say whether a model fits, and what would make it fit"),
    "adapt": ("twinline.cli.adapt", "try a chip with a model, level by level, and grade it"),
    "keys": ("twinline.cli.keys", "say who may use the gateway, and how much"),
    "usage": ("twinline.cli.usage", "show who used what, where, and what it cost"),
}


def build_parser(verb: str | None) -> Parser:
    """A parser that knows every verb by name, and the options of `verb` alone."""
    parser = Parser(prog="twinline", description="One endpoint, one name per model, over many unlike accelerators.")
    parser.add_argument("--version", action="version", version=f"twinline {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (path, help_text) in VERBS.items():
        sub = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == verb:
            module = importlib.import_module(path)
            module.configure(sub)
            sub.set_defaults(run=module.run)
    return parser


def explain(exc: Exception) -> str:
    """One line for a person. Errors that nobody worded for one say how to see where they came from."""
    text = harmless(" ".join(str(exc).split()))
    ours = type(exc).__module__.startswith("twinline.")
    if text and (ours or isinstance(exc, OSError | ValueError)):
        return text
    return f"{type(exc).__name__}{': ' if text else ''}{text} (TWINLINE_DEBUG=1 shows where)"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code; errors end in one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in arguments if not a.startswith("-")), None)
    show_what_it_can()
    try:
        parser = build_parser(verb)
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.refuse(unknown, verb)
        return int(args.run(args))
    except KeyboardInterrupt:
        print("twinline: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout once more
        return 1
    except Exception as exc:
        if os.environ.get("TWINLINE_DEBUG") == "1":
            import traceback  # slow to import

            traceback.print_exc()
        print(f"twinline: error: {explain(exc)}", file=sys.stderr)
        return exc.code if isinstance(exc, CliError) else 1
