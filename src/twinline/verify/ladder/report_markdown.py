"""The report as Markdown: for a pull request or an issue.

Owns the look. What is in it is decided in `report.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from twinline.verify.ladder.report import Report, named


def markdown(r: Report) -> str:
    return "\n".join(_lines(r)) + "\n"


def cell(text: object) -> str:
    """Text that cannot end a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _lines(r: Report) -> Iterator[str]:
    yield f"# {cell(r.known.device_name)}: {r.grade.name}"
    yield ""
    if r.simulated:
        yield "> **Simulated chip.** No silicon was tried; nothing here says anything about real hardware."
        yield ""
    yield cell(r.grade.rule)
    yield ""
    yield f"- model: {cell(r.trial.model)} ({r.known.architecture}) in {r.known.dtype}, seed {r.trial.seed}"
    yield f"- chip: {cell(named(r))}"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in r.known.versions.items())}"
    yield f"- {r.date}, {r.seconds:.1f} s{'' if r.complete else '; **not the whole ladder**'}"
    for what, seen in r.grade.determinism.items():
        yield f"- determinism, {what}: {seen}"
    if r.divergent:
        yield f"- first divergent: {cell(r.divergent)}"
    yield ""
    yield "| level | verdict | pass | limit | fail | skipped | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for level in r.levels:
        counts = " | ".join(str(level.counts.get(v, 0)) for v in ("pass", "limit", "fail", "skipped"))
        yield f"| {level.number} {level.title} | {level.verdict} | {counts} | {level.seconds:.1f} |"
    yield from _alarms(r)
    if r.fallen:
        yield ""
        yield "## Left to the reference"
        yield ""
        for c in r.fallen:
            why = "; ".join(f"{name}: {reason}" for name, reason in c.passed_over)
            yield f"- {c.op} in {c.dtype}: right, and slow ({cell(why)})"
    yield ""
    yield "## Ops, the worst first"
    yield ""
    yield "| op | dtype | provider | verdict | of what is allowed | |"
    yield "|---|---|---|---|---|---|"
    for rank in r.ranks:
        share = "not there" if rank.verdict == "limit" else f"{rank.excess:.2g}x" if rank.excess < 1e29 else "wrong"
        yield f"| {rank.op} | {rank.dtype} | {rank.provider} | {rank.verdict} | {share} | {cell(rank.text)} |"


def _alarms(r: Report) -> Iterator[str]:
    if not r.alarms:
        return
    yield ""
    yield "## What failed or met a limit"
    told = ""
    for f in r.alarms:
        yield ""
        yield f"**{f.verdict}** `{f.check}`: {cell(f.text)}"
        if f.rule:
            yield f"Rule: {cell(f.rule)}."
        if f.check != told:
            yield ""
            yield f"    {r.commands[f.check]}"
        told = f.check
