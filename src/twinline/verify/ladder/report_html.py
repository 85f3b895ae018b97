"""The report as one HTML page: nothing is fetched, it can be mailed.

Owns the look. What is in it is decided in `report.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from twinline.verify.ladder.finding import Finding
from twinline.verify.ladder.report import OpRank, Report, named

STYLE = """
:root{--ink:#1c2330;--dim:#667085;--line:#e3e7ee;--paper:#fff;--ground:#f5f6f9;--pass:#15803d;--limit:#b45309;
--fail:#b42318;--note:#475467}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--line:#2c3442;--paper:#171c26;--ground:#0f131a;
--pass:#4ade80;--limit:#fbbf24;--fail:#f97066;--note:#98a2b3}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
.simulated{background:#b45309;color:#fff;padding:10px 20px;text-align:center;font-weight:600}
header{display:flex;gap:24px;align-items:center;flex-wrap:wrap}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:36px 0 10px}
.grade{font-size:18px;font-weight:700;color:#fff;border-radius:8px;padding:6px 16px;text-transform:uppercase;
letter-spacing:.06em}
.grade.sound{background:#15803d}.grade.limited{background:#b45309}.grade.unfit{background:#b42318}
.rule{font-size:16px;margin:14px 0 18px;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0;overflow-wrap:anywhere}
dt{color:var(--dim)}dd{margin:0}
.card,table{background:var(--paper);border:1px solid var(--line);border-radius:10px}
.card{padding:16px 18px;margin:0 0 12px}
.scroll{overflow-x:auto}
table{border-collapse:separate;border-spacing:0;width:100%}
th,td{text-align:left;padding:7px 12px;border-top:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:500;border-top:0;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}th.n{text-align:right}
.v{font-weight:600;white-space:nowrap}.pass{color:var(--pass)}.limit{color:var(--limit)}.fail{color:var(--fail)}
.note,.skipped{color:var(--note)}
code,pre{font:13px/1.5 ui-monospace,"Cascadia Mono",Menlo,monospace}
pre{margin:8px 0 0;background:var(--ground);border-radius:6px;padding:8px 12px;white-space:pre-wrap;
overflow-wrap:anywhere}
.dim{color:var(--dim)}.text{overflow-wrap:anywhere}
.bar{display:inline-block;height:8px;border-radius:4px;background:var(--pass);vertical-align:middle;min-width:2px}
.share{white-space:nowrap}.bar.over{background:var(--fail)}
details>summary{cursor:pointer;padding:8px 0;font-weight:600}
footer{margin-top:40px;color:var(--dim);font-size:13px}
"""
BAR = 120  # pixels of what is allowed


def html(r: Report) -> str:
    title = f"{escape(r.known.device_name)}: {r.grade.name}"
    return "".join((
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{title}</title><style>{STYLE}</style><body>",
        "<div class=simulated>Simulated chip: no silicon was tried, and nothing here says anything about real hardware"
        "</div>" if r.simulated else "",
        "<main>", *_head(r), *_alarms(r), *_fallen(r), *_levels(r), *_ranks(r), *_speed(r), *_all(r),
        f"<footer>twinline adapt, {escape(r.date)}. The same seed gives the same inputs on every machine.</footer>",
        "</main></body></html>\n",
    ))  # fmt: skip


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    """Heads that start with `#` are of numbers."""
    cells = "".join(f"<th class=n>{h[1:]}</th>" if h.startswith("#") else f"<th>{h}</th>" for h in head)
    return f"<div class=scroll><table><tr>{cells}</tr>{''.join(rows)}</table></div>"


def _head(r: Report) -> Iterator[str]:
    grade = f"<span class='grade {r.grade.name}'>{r.grade.name}</span>"
    yield f"<header><h1>{escape(r.known.device_name)}</h1>{grade}</header>"
    yield f"<p class=rule>{escape(r.grade.rule)}</p><div class=card><dl>"
    facts = {
        "model": f"{r.trial.model} ({r.known.architecture}), {r.known.dtype}, seed {r.trial.seed}",
        "chip": named(r),
        "computes in": ", ".join(r.known.dtypes),
        "versions": ", ".join(f"{name} {version}" for name, version in r.known.versions.items()),
        "climbed": f"{r.date}, {r.seconds:.1f} s" + ("" if r.complete else "; not the whole ladder"),
    }  # fmt: skip
    facts |= {f"determinism, {what}": seen for what, seen in r.grade.determinism.items()}
    if r.divergent:
        facts["first divergent"] = r.divergent
    yield "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    yield "</dl></div>"


def _verdict(verdict: str) -> str:
    return f"<span class='v {verdict}'>{verdict}</span>"


def _alarms(r: Report) -> Iterator[str]:
    if not r.alarms:
        return
    yield "<h2>What failed or met a limit, and how to see it again</h2>"
    for f in r.alarms:
        yield f"<div class=card>{_verdict(f.verdict)} <code>{escape(f.check)}</code>"
        yield f"<div class=text>{escape(f.text)}</div>"
        yield f"<div class=dim>rule: {escape(f.rule)}</div>" if f.rule else ""
        yield f"<pre>{escape(r.commands[f.check])}</pre></div>"


def _fallen(r: Report) -> Iterator[str]:
    if not r.fallen:
        return
    yield "<h2>Left to the reference: right, and slow</h2><div class=card>"
    for c in r.fallen:
        why = "; ".join(f"{name}: {reason}" for name, reason in c.passed_over)
        yield f"<div class=text><code>{escape(c.op)}</code> in {c.dtype} <span class=dim>{escape(why)}</span></div>"
    yield "</div>"


def _levels(r: Report) -> Iterator[str]:
    yield "<h2>Levels</h2>"
    yield _table(("level", "verdict", "#pass", "#limit", "#fail", "#skipped", "#seconds"), (
        f"<tr><td>{level.number} {escape(level.title)}</td><td>{_verdict(level.verdict)}</td>"
        + "".join(f"<td class=n>{level.counts.get(v, 0) or ''}</td>" for v in ("pass", "limit", "fail", "skipped"))
        + f"<td class=n>{level.seconds:.1f}</td></tr>"
        for level in r.levels))  # fmt: skip


def _ranks(r: Report) -> Iterator[str]:
    if not r.ranks:
        return
    yield "<h2>Ops, the worst first</h2>"
    yield _table(("op", "dtype", "provider", "", "of what is allowed", "worst case"), (
        f"<tr><td><code>{escape(rank.op)}</code></td><td>{rank.dtype}</td><td>{escape(rank.provider)}</td>"
        f"<td>{_verdict(rank.verdict)}</td><td class=share>{_bar(rank)}</td>"
        f"<td class=text>{escape(rank.text)}</td></tr>"
        for rank in r.ranks))  # fmt: skip


def _bar(rank: OpRank) -> str:
    if rank.verdict == "limit":
        return "not there"
    over = " over" if rank.excess > 1 else ""
    share = f"{rank.excess:.2g}x" if rank.excess < 1e29 else "wrong"
    return f"<span class='bar{over}' style='width:{max(2, min(BAR, BAR * rank.excess)):.0f}px'></span> {share}"


def _speed(r: Report) -> Iterator[str]:
    timed = [
        f for f in r.findings if f.level == "speed" and "share_of_roofline" in f.figures and "seconds" in f.figures
    ]
    if not timed:
        return
    yield "<h2>Speed, as a share of what this device can do</h2>"
    yield _table(("op", "phase", "provider", "", "#us", "#of roofline", "shape"), (
        f"<tr><td><code>{escape(f.op)}</code></td><td>{escape(str(f.figures.get('phase', '')))}</td>"
        f"<td>{escape(f.provider)}</td><td>{_verdict(f.verdict)}</td>"
        f"<td class=n>{float(f.figures['seconds']) * 1e6:,.0f}</td>"
        f"<td class=n>{float(f.figures['share_of_roofline']):.1%}</td><td>{escape(f.shape)}</td></tr>"
        for f in timed))  # fmt: skip


def _all(r: Report) -> Iterator[str]:
    yield f"<h2>All {len(r.findings)} findings</h2>"
    for level in r.levels:
        own = [f for f in r.findings if f.level == level.name]
        if own:
            yield f"<details><summary>{level.number} {escape(level.title)} ({len(own)})</summary>"
            yield _table(("", "check", "what was seen", "#seconds"), map(_row, own))
            yield "</details>"


def _row(f: Finding) -> str:
    return (
        f"<tr><td>{_verdict(f.verdict)}</td><td><code>{escape(f.check)}</code></td><td class=text>{escape(f.text)}</td>"
        f"<td class=n>{f.seconds:.2f}</td></tr>"
    )
