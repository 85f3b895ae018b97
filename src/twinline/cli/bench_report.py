"""How the report of `twinline bench serve` looks to people. Owns no number: `verify/load_report.py` defines them."""

from __future__ import annotations

from typing import Any

from twinline.cli.table import aligned
from twinline.cli.terminal import harmless
from twinline.verify.load_report import Cost, Report


def render(report: Report, settings: dict[str, Any], costs: Cost | None = None) -> str:
    """The report for people; what a number counts from is said where it is not the obvious."""
    is_open = settings["rate"] is not None
    load = (
        f"open loop, {settings['rate']:g} requests/s" if is_open else f"closed loop, {settings['concurrency']} at once"
    )
    parts = [f"{settings['model']} at {settings['url']} ({settings['endpoint']}), {load}", _totals(report, settings)]
    latencies = [
        ("time to first token", report.ttft_ms),
        ("inter-token latency", report.inter_token_ms),
        ("time per later token", report.per_token_ms),
        ("end to end", report.end_to_end_ms),
    ]
    if is_open:
        latencies.append(("sent late by", report.send_lag_ms))
    rows = [["latency, ms", "mean", "p50", "p90", "p99"]]
    for name, s in latencies:
        rows.append([name, *([f"{v:.2f}" for v in (s.mean, s.p50, s.p90, s.p99)] if s else ["-"] * 4)])
    parts.append(aligned(rows))
    if is_open:
        parts.append("latencies count from when a request fell due, not from when it was sent")
    if report.token_counts != "usage":
        parts.append(
            f"output tokens are counted from {report.token_counts}: the server sent no usage for some or all answers"
        )
    if report.goodput_requests_per_s is not None and report.goodput_share is not None:
        limits = [("first token", settings["ttft_limit_ms"]), ("per later token", settings["itl_limit_ms"])]
        said = ", ".join(f"{name} <= {value:g} ms" for name, value in limits if value is not None)
        parts.append(
            f"goodput    {report.goodput_requests_per_s:.3f} requests/s, {report.goodput_share:.1%} of all ({said})"
        )
    if costs is not None:
        parts.append(_costs(costs))
    return harmless("\n\n".join(parts))


def _costs(costs: Cost) -> str:
    units = [
        (costs.per_million_output_tokens, "for a million output tokens, their input included"),
        (costs.per_thousand_good_requests, "for a thousand requests within the limits"),
    ]
    said = [f"{value:.4f} {costs.currency} {what}" for value, what in units if value is not None]
    return (
        f"cost       at {costs.price_per_hour:g} {costs.currency} an hour: {'; '.join(said) or 'nothing was answered'}"
    )


def _totals(report: Report, settings: dict[str, Any]) -> str:
    rate = "-" if report.input_tokens_per_s is None else f"{report.input_tokens_per_s:.1f}"
    tokens_in = "-" if report.input_tokens is None else f"{report.input_tokens:,}"
    rows = [
        ["", "total", "per second"],
        ["requests answered", f"{report.completed:,} of {report.requests:,}", f"{report.requests_per_s:.3f}"],
        ["input tokens", tokens_in, rate],
        ["output tokens", f"{report.output_tokens:,}", f"{report.output_tokens_per_s:.1f}"],
    ]
    lines = [f"{aligned(rows)}\nin {report.seconds:.2f} s"]
    made, mean = settings["prompt_tokens"], (report.input_tokens or 0) / max(report.completed, 1)
    if made and mean and not settings["token_ids"] and not 0.8 < mean / made < 1.25:
        lines.append(f"a prompt of {made:,} words is {mean:,.0f} tokens here; --token-ids --vocab V counts tokens")
    if report.cached_tokens:
        lines.append(f"{report.cached_tokens:,} of the input tokens came from the server's prefix cache")
    lines += [f"failed: {f.count} x {kind}: {f.example}" for kind, f in report.errors.items()]
    return "\n".join(lines)
