"""The report for people: tables in Markdown, every figure with its spread, then the bars. Owns looks alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.cpu.bars import SPEED, Results, Verdict, read_bytes
from benchmarks.cpu.contenders import CONTENDERS, EMBEDDED
from benchmarks.cpu.results import Figure

COLUMNS = {  # figure -> heading, factor, digits
    SPEED: ("tokens/s", 1.0, 1),
    "end_to_end": ("end to end", 1.0, 1),
    "first_token": ("first token, s", 1.0, 3),
    "gap_p50": ("gap p50, ms", 1e3, 1),
    "gap_p99": ("gap p99, ms", 1e3, 1),
    "alone": ("alone, s", 1.0, 2),
    "beside": ("beside 8, s", 1.0, 2),
    "slower": ("times as late", 1.0, 2),
    "seconds": ("start to first token, s", 1.0, 2),
    "peak_bytes": ("peak, GB", 1e-9, 2),
}
WHOLE = "first_token"  # of a start: the time to a first token once it is ready


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    return "\n".join(lines)


def said(figure: Figure | None, factor: float, digits: int) -> str:
    """Median, and least to most where there was more than one round."""
    if figure is None:
        return "-"
    median = f"{figure.median * factor:.{digits}f}"
    if figure.count == 1:
        return median
    return f"**{median}** ({figure.least * factor:.{digits}f}-{figure.most * factor:.{digits}f})"


def scenario_table(results: Results, model: str, precision: str, scenario: str) -> str:
    """Contenders down, figures across; the share of bandwidth where one user decodes."""
    present = [(c, s) for c in CONTENDERS if (s := results.get((model, precision, scenario, c)))]
    columns = [name for name in COLUMNS if any(s.figure(name) for _, s in present)]
    shares = scenario in ("decode 1", "decode 1, 1 thread") and model != EMBEDDED
    head = ["", *(COLUMNS[name][0] for name in columns), *(["share of bandwidth"] if shares else []), "read, GB/s", "n"]
    rows = [head]
    for contender, summary in present:
        row = [contender, *(said(summary.figure(name), *COLUMNS[name][1:]) for name in columns)]
        if shares:
            share = summary.share(SPEED, read_bytes(model, summary.bits))
            row.append(said(share, 100.0, 0) + (" %" if share else ""))
        count = max((f.count for name in columns if (f := summary.figure(name))), default=0)
        row += [f"{summary.read / 1e9:.1f}", str(count)]
        rows.append(row)
    failures = [f"{c}: {error}" for c, s in present for error in s.errors]
    return "\n".join(
        [f"**{model}, {precision}: {scenario}**", "", markdown(rows), *(f"failed: {f}" for f in failures), ""]
    )


def bars_table(verdicts: Iterable[Verdict]) -> str:
    rows = [["bar", "reached", "asked", "", "figures"]]
    for verdict in verdicts:
        state = {True: "met", False: "**not met**", None: "not measured"}[verdict.met]
        reached = "-" if verdict.value is None else f"{verdict.value:.3g}"
        asked = f"{'>=' if verdict.at_least else '<='} {verdict.bound:g}"
        rows.append([verdict.bar, reached, asked, state, verdict.basis])
    return markdown(rows)


def report(results: Results, verdicts: Iterable[Verdict]) -> str:
    parts = list(dict.fromkeys(key[:3] for key in results))
    tables = [scenario_table(results, *part) for part in parts]
    return "\n".join([*tables, "**Bars**", "", bars_table(verdicts)])
