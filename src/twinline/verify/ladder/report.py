"""One climb as one report: what was on trial, the grade, level by level what was found, and what to do about it.

Owns the report's shape, the profile that is taken from it and the order in which things are told. How it looks is said
in `report_markdown.py` and `report_html.py`. No torch.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from twinline.facts.chips import load
from twinline.facts.profiles import Choice, Efficiency, Profile
from twinline.verify.ladder.climb import Climb, refusals
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.grade import Grade, grade
from twinline.verify.ladder.levels import LEVELS
from twinline.verify.ladder.messages import Known

ALARMS = ("fail", "limit")
GRAVITY = {"fail": 0, "limit": 1, "skipped": 2, "note": 3, "pass": 4}


class LevelReport(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict` is the gravest of its findings', `skipped` where none was tried."""

    number: int
    name: str
    title: str
    verdict: str
    seconds: float
    counts: dict[str, int]


class OpRank(msgspec.Struct, frozen=True, kw_only=True):
    """An op in a dtype: how near its worst case came to what is allowed (above 1: beyond it), and who serves it."""

    op: str
    dtype: str
    provider: str
    verdict: str
    excess: float
    text: str
    command: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`commands` repeat a check, for each check that failed or met a limit."""

    trial: Trial
    known: Known
    chip: str
    date: str
    seconds: float
    complete: bool
    grade: Grade
    levels: tuple[LevelReport, ...]
    findings: tuple[Finding, ...]
    ranks: tuple[OpRank, ...]
    choices: tuple[Choice, ...]
    divergent: str
    commands: dict[str, str]

    @property
    def simulated(self) -> bool:
        return self.known.simulated

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """What failed or met a limit, the gravest first, else in the order of the climb."""
        return tuple(sorted((f for f in self.findings if f.verdict in ALARMS), key=lambda f: GRAVITY[f.verdict]))

    @property
    def fallen(self) -> tuple[Choice, ...]:
        """Ops that are left to the reference where a faster provider was refused: right, and slow."""
        refused = {(r.op, r.dtype) for r in refusals(list(self.findings))}
        return tuple(c for c in self.choices if c.provider == "reference" and (c.op, c.dtype) in refused)


def report(climb: Climb, seconds: float) -> Report:
    """The report of a climb that is over. ValueError if it never began."""
    if climb.known is None:
        raise ValueError(f"device {climb.trial.device} was never opened")
    trial, known, findings = climb.trial, climb.known, tuple(climb.findings)
    complete = climb.whole and not trial.only
    alarms = dict.fromkeys(f.check for f in findings if f.verdict in ALARMS)
    return Report(
        trial=trial,
        known=known,
        chip=_chip(known),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        complete=complete,
        grade=grade(findings, known.dtype, complete),
        levels=tuple(_levels(findings, climb.seconds)),
        findings=findings,
        ranks=tuple(_ranks(findings, trial)),
        choices=climb.choices,
        divergent=_divergent(findings),
        commands={check: trial.command(check) for check in alarms},
    )


def _chip(known: Known) -> str:
    """The catalog's id for what the driver calls the chip, if one vendor alone calls one so."""
    if known.simulated or not known.printed:
        return ""
    catalog = load()
    found = {chip.id for vendor in catalog.vendors if (chip := catalog.printed(vendor, known.printed))}
    return found.pop() if len(found) == 1 else ""


def _levels(findings: Sequence[Finding], seconds: dict[str, float]) -> Iterator[LevelReport]:
    for level in LEVELS:
        own = [f for f in findings if f.level == level.name]
        if not own and level.name not in seconds:
            continue
        counts = {verdict: n for verdict in GRAVITY if (n := sum(f.verdict == verdict for f in own))}
        told = [f.verdict for f in own if f.verdict in ("fail", "limit", "pass")]
        worst = min(told, key=lambda v: GRAVITY[v]) if told else "skipped"
        yield LevelReport(number=level.number, name=level.name, title=level.title, verdict=worst, counts=counts,
                          seconds=round(seconds.get(level.name, 0.0), 2))  # fmt: skip


def _ranks(findings: Sequence[Finding], trial: Trial) -> Iterator[OpRank]:
    """All that level 1 tried, the worst first."""
    found = []
    for f in findings:
        if f.level == "ops" and f.provider:
            excess = f.figures.get("excess", float("inf") if f.verdict != "pass" else 0.0)
            found.append(OpRank(op=f.op, dtype=f.dtype, provider=f.provider, verdict=f.verdict, text=f.text,
                                excess=min(float(excess), 1e30), command=trial.command(f.check)))  # fmt: skip
    yield from sorted(found, key=lambda r: (GRAVITY[r.verdict], -r.excess))


def _divergent(findings: Sequence[Finding]) -> str:
    """Where the model first parts from the reference, as levels 2 and 3 say it; empty where it does not."""
    for f in findings:
        if f.verdict == "fail" and f.level in ("layers", "model"):
            _, mark, place = f.text.partition("first divergent: ")
            if mark:
                return place
            if f.check == "model.trace" or f.level == "layers":
                return f"{f.check}: {f.text}"
    return ""


def named(report: Report) -> str:
    """The catalog's name of the chip, and what its driver calls it."""
    printed = f" ({report.known.printed})" if report.known.printed else ""
    return f"{report.chip or 'not in the catalog by this name'}{printed}"


def profile(report: Report) -> Profile:
    """What the engine and the planner take from it."""
    known, by_check = report.known, {f.check: f for f in report.findings}
    probes = by_check.get("speed.probes")
    measured = {name: float(value) for name, value in (probes.figures if probes else {}).items()
                if isinstance(value, int | float)}  # fmt: skip
    return Profile(
        device=report.trial.device,
        device_name=known.device_name,
        simulated=known.simulated,
        chip=report.chip,
        model=Path(report.trial.model).name,
        architecture=known.architecture,
        dtype=known.dtype,
        dtypes=known.dtypes,
        seed=report.trial.seed,
        date=report.date,
        grade=report.grade.name,
        rule=report.grade.rule,
        complete=report.complete,
        versions=known.versions,
        determinism=report.grade.determinism,
        choices=report.choices,
        refused=refusals(list(report.findings)),
        efficiencies=tuple(_efficiencies(report.findings)),
        measured=measured,
    )


def _efficiencies(findings: Sequence[Finding]) -> Iterator[Efficiency]:
    for f in findings:
        share = f.figures.get("share_of_roofline")
        if f.level == "speed" and f.op and isinstance(share, float) and "phase" in f.figures:
            yield Efficiency(op=f.op, provider=f.provider, dtype=f.dtype, phase=str(f.figures["phase"]), shape=f.shape,
                             share_of_roofline=share, seconds=float(f.figures["seconds"]),
                             bytes=int(f.figures["bytes"]), flops=int(f.figures["flops"]))  # fmt: skip
