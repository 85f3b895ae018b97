"""`twinline adapt`: a chip tried with a model, level by level, and what comes of it: a grade, a profile, a report.

Owns the verb's options, the progress lines and the files that are written. Must not know what a level tries.

Exit codes: 0 where the grade allows serving, 1 where it does not or the device cannot be opened, 130 where the climb
was interrupted: what was found until then is reported, and no profile is made of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import msgspec

from twinline.cli.adapt_text import Progress, summary
from twinline.cli.folder import EMBEDDED, embedded, read_config
from twinline.cli.parser import CliError, integer, positive
from twinline.facts.models import spec_from_config
from twinline.facts.pooling import read_pooling
from twinline.facts.profiles import write_profile
from twinline.verify.ladder.climb import Climb
from twinline.verify.ladder.finding import Trial
from twinline.verify.ladder.levels import LEVELS
from twinline.verify.ladder.report import Report, profile, report
from twinline.verify.ladder.report_html import html
from twinline.verify.ladder.report_markdown import markdown


def configure(parser: argparse.ArgumentParser) -> None:
    levels = ", ".join(level.name for level in LEVELS)
    parser.add_argument("--device", required=True, metavar="D", help="cpu, a PyTorch device type, or simchip[:PROFILE]")
    parser.add_argument("--model", metavar="DIR", help=f"the model to try it with (default: the embedded {EMBEDDED})")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                        help="in which the model would be served (default: the checkpoint's)")  # fmt: skip
    parser.add_argument("--seed", type=integer(0), default=0, metavar="N", help="of all inputs (default: 0)")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK",
                        help=f"a level or a check, again for more: ops.linear (levels: {levels})")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where report.html, report.md, report.json and "
                        "profile.json are written (default: adapt-DEVICE, for the whole ladder)")  # fmt: skip
    parser.add_argument("--patience", type=positive, metavar="S",
                        help="seconds of silence that count as a hang (default: what the level allows)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout, progress on stderr")


def run(args: argparse.Namespace) -> int:
    folder = model_folder(args.model)
    spec_from_config(read_config(folder))
    if read_pooling(folder) is not None:
        raise CliError(f"{folder} gives vectors, and the ladder asks a model for tokens: name one that generates, such "
                       "as the one that it was made from, or leave --model out")  # fmt: skip
    check_names(args.only)
    trial = Trial(device=args.device, model=EMBEDDED if folder == embedded() else str(folder), seed=args.seed,
                  dtype=args.dtype, only=tuple(args.only))  # fmt: skip
    out = args.out or (None if args.only else Path(f"adapt-{plain(args.device)}"))
    with writable(out) if out else nullcontext():
        done, whole = climbed(trial, folder, args.patience or 0.0, Progress(sys.stderr if args.json else sys.stdout))
    if whole and done.trial.only and not done.findings:
        raise CliError(f"nothing was tried: no check of this device and model is called {' or '.join(trial.only)} "
                       f"(--only with a level alone shows the names of its checks)", code=2)  # fmt: skip
    try:
        written = tuple(write(done, out, with_profile=whole)) if out else ()
    except CliError:
        tell(done, (), args.json)  # what was found is not lost with a full disk
        raise
    tell(done, written, args.json)
    if not whole:
        print("twinline: interrupted", file=sys.stderr)
        return 130
    return 0 if done.grade.serves else 1


def tell(done: Report, written: Sequence[Path], as_json: bool) -> None:
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())
    else:
        print("\n".join(summary(done, written)))


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """Makes the folder before the climb: minutes later is late to learn that it cannot be written to. It is gone again
    where nothing comes of the climb."""
    there = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise CliError(f"cannot write to {out}: {error.strerror or error}") from None
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):
                out.rmdir()
        raise


def model_folder(given: str | None) -> Path:
    """A folder; the embedded model's may be called by its name."""
    if given is None or (given == EMBEDDED and not Path(given).exists()):
        return embedded()
    return Path(given).resolve()


def check_names(only: Sequence[str]) -> None:
    """Raises CliError for a check of no level: nothing would be tried, and all would look well."""
    names = [level.name for level in LEVELS]
    for check in only:
        if check.partition(".")[0] not in names:
            raise CliError(f"no level has a check {check!r}; levels are {', '.join(names)}", code=2)


def climbed(trial: Trial, folder: Path, patience: float, progress: Progress) -> tuple[Report, bool]:
    """Climbs, with a line for each thing that is found; the climbing process is gone when this returns or raises.
    Whether it was left to climb, too: interrupted once the device is known, it reports what it has.

    The trial that is told names the model as it was given; the one that is climbed, by its folder.
    """
    started = time.monotonic()
    climb = Climb(msgspec.structs.replace(trial, model=str(folder)), patience)
    progress.begin(trial)
    events = climb.events()
    whole = True
    try:
        for message in events:
            progress.tell(message)
    except KeyboardInterrupt:
        if climb.known is None:
            raise
        whole = False
    finally:
        events.close()
        progress.end()
    if not whole:
        for message in climb.leave_out("interrupted"):
            progress.tell(message)
    climb.trial = trial
    return report(climb, time.monotonic() - started), whole


def write(done: Report, out: Path, *, with_profile: bool = True) -> Iterator[Path]:
    """The three files for people and programs, and the profile that lines are served by, in a folder that is there."""
    try:
        for name, text in (("report.html", html(done)), ("report.md", markdown(done))):
            (out / name).write_text(text, encoding="utf-8")
            yield out / name
        (out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")
        yield out / "report.json"
        if not with_profile:
            return
        write_profile(profile(done), out / "profile.json")
        yield out / "profile.json"
    except OSError as error:
        raise CliError(f"cannot write to {out}: {error.strerror or error}") from None


def plain(device: str) -> str:
    """A device's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in device).strip("-")
