"""The load generator against scripted answers: what is timed, from when, and what counts as a failure."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from tests.cli.scripted_server import Script, serving

from twinline.verify.load import Answer, Closed, Listener, Open, Target, offer, warm_up
from twinline.verify.load_report import Limits, percentile, summarise

SLACK_MS = 10_000  # how much later than scripted a loaded machine may be; a wrong unit is further off


def offer_to(
    url: str, count: int, shape: Closed | Open, timeout: float = 20, endpoint: Any = "completions"
) -> list[Answer]:
    body = {"prompt": "x"} if endpoint == "completions" else {"messages": []}
    return asyncio.run(offer(Target(url, endpoint), [body] * count, shape, timeout))


def answer(ttft: float, gap: float, tokens: int = 3, error: str | None = None) -> Answer:
    chunks = tuple(ttft + gap * i for i in range(tokens))
    return Answer(0.0, 0.0, chunks[-1], chunks, 10, 0, tokens, "usage", error)


def test_what_had_not_fallen_due_when_it_was_interrupted_counts_for_nothing() -> None:
    due = [Answer(i, i + 0.1, i + 0.3, (i + 0.2, i + 0.3), 10, 0, 2, "usage") for i in range(3)]
    later = [Answer(float(i), 3.0, 3.0, error="interrupted") for i in range(3, 40)]
    report = summarise([*due, Answer(2.5, 2.6, 3.0, error="interrupted"), *later], Limits(ttft_ms=250))
    assert report.send_lag_ms and report.send_lag_ms.mean == pytest.approx(100) and report.send_lag_ms.count == 4
    assert (report.completed, report.requests, report.goodput_share) == (3, 41, 0.75)
    assert report.seconds == 3.0 and report.requests_per_s == 1.0, "of the time that it lasted"


def test_a_server_that_says_null_of_its_tokens_is_counted_by_its_pieces() -> None:
    listener = Listener()
    for event in ('{"choices": [{"text": "a"}]}', '{"choices": [], "usage": {"completion_tokens": null}}', "[DONE]"):
        listener.hear(f"data: {event}".encode(), 1.0)
    heard = listener.fill(Answer(0.0, 0.0, 2.0))
    assert (heard.output_tokens, heard.counted, heard.error) == (1, "chunks", None)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_scripted_delays_are_measured(endpoint: str) -> None:
    with serving(Script(first=0.1, gap=0.05)) as server:
        report = summarise(offer_to(server.url, 4, Closed(2), endpoint=endpoint), Limits())
    assert report.completed == 4
    assert report.ttft_ms and report.inter_token_ms and report.per_token_ms and report.end_to_end_ms
    assert 99 <= report.ttft_ms.p50 <= 100 + SLACK_MS
    assert 40 <= report.inter_token_ms.p50 <= 50 + SLACK_MS
    assert report.inter_token_ms.count == 8
    assert 40 <= report.per_token_ms.mean <= 50 + SLACK_MS
    assert 199 <= report.end_to_end_ms.p50 <= 200 + 2 * SLACK_MS
    assert (report.input_tokens, report.cached_tokens, report.output_tokens) == (40, 16, 12)
    assert report.token_counts == "usage"
    assert report.output_tokens_per_s == pytest.approx(12 / report.seconds)


def test_percentiles_interpolate() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile([5.0], 0.99) == 5.0
    report = summarise([answer(i / 1000, 0.01) for i in range(1, 102)], Limits())
    assert report.ttft_ms
    assert [report.ttft_ms.p50, report.ttft_ms.p90, report.ttft_ms.p99] == pytest.approx([51, 91, 100])


def test_a_closed_loop_keeps_to_its_concurrency() -> None:
    with serving(Script(first=0.05)) as server:
        answers = offer_to(server.url, 6, Closed(2))
    moments = sorted([(a.sent, 1) for a in answers] + [(a.ended, -1) for a in answers])
    at_once, most = 0, 0
    for _, step in moments:
        at_once += step
        most = max(most, at_once)
    assert most == 2


def test_an_open_loop_keeps_its_schedule_whatever_the_server_does() -> None:
    shape = Open(rate=50, seed=3)
    with serving(Script(together=10)) as server:  # none is answered before all have asked
        answers = offer_to(server.url, 10, shape)
    assert [a.due for a in answers] == shape.due(10) == Open(50, 3).due(10)
    assert all(0 <= a.sent - a.due < SLACK_MS / 1e3 for a in answers)
    assert max(a.sent for a in answers) < min(a.ended for a in answers)


def test_poisson_arrivals_have_the_wanted_rate() -> None:
    due = Open(rate=20, seed=1).due(4000)
    assert due == sorted(due)
    assert 4000 / due[-1] == pytest.approx(20, rel=0.05)
    assert Open(20, 1).due(5) != Open(20, 2).due(5)


def test_lateness_in_sending_is_charged_to_the_latency() -> None:
    late = Answer(due=1.0, sent=1.5, ended=2.0, chunks=(1.8, 2.0), output_tokens=2)
    report = summarise([late], Limits())
    assert report.ttft_ms and report.end_to_end_ms and report.send_lag_ms
    assert report.ttft_ms.mean == pytest.approx(800)
    assert report.end_to_end_ms.mean == pytest.approx(1000)
    assert report.send_lag_ms.mean == pytest.approx(500)


def test_failures_are_counted_by_kind() -> None:
    scripts = [
        Script(status=429),
        Script(status=429),
        Script(error_midway="the card died"),
        Script(cut_off=True),
        Script(finish="abort"),
        Script(),
    ]
    with serving(*scripts) as server:
        report = summarise(offer_to(server.url, 7, Closed(1)), Limits())
    kinds = {kind: failure.count for kind, failure in report.errors.items()}
    assert kinds == {"http 429": 2, "stream error": 1, "cut off": 1, "finish abort": 1}
    assert report.errors["http 429"].example == "scripted refusal"
    assert report.errors["stream error"].example == "the card died"
    assert (report.requests, report.completed, report.output_tokens) == (7, 2, 6)


def test_a_run_is_bounded_in_time() -> None:
    with serving(Script(first=30)) as server:
        report = summarise(offer_to(server.url, 3, Closed(1), timeout=2.0), Limits())
    assert {kind: failure.count for kind, failure in report.errors.items()} == {"not sent": 2, "timeout": 1}
    assert report.seconds < 15


def test_without_usage_pieces_are_counted_and_it_is_said() -> None:
    with serving(Script(usage=False, token_ids=True), Script(usage=False)) as server:
        report = summarise(offer_to(server.url, 2, Closed(1)), Limits())
    assert (report.token_counts, report.output_tokens, report.input_tokens) == ("chunks", 6 + 3, None)
    assert report.input_tokens_per_s is None


def test_goodput_counts_answers_inside_both_limits() -> None:
    answers = [answer(0.1, 0.01), answer(0.3, 0.01), answer(0.1, 0.05), answer(0.1, 0.01, error="http 500")]
    both = summarise(answers, Limits(ttft_ms=200, itl_ms=20))
    assert both.goodput_share == 0.25
    assert both.goodput_requests_per_s == pytest.approx(1 / both.seconds)
    assert summarise(answers, Limits(ttft_ms=200)).goodput_share == 0.5
    assert summarise(answers, Limits()).goodput_share is None


def test_an_empty_run_has_a_report() -> None:
    report = summarise([], Limits(ttft_ms=1))
    assert (report.requests, report.ttft_ms, report.goodput_share) == (0, None, None)


def test_a_server_that_is_not_there_is_a_failure_of_its_own_kind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    target = Target(f"http://127.0.0.1:{port}/v1")
    failed = asyncio.run(warm_up(target, [{"prompt": "x"}], timeout=5, patience=0.3))
    assert failed
    assert failed.error == "connect"


def test_warm_up_waits_for_a_line_to_come_up() -> None:
    with serving(Script(status=503), Script(status=503), Script()) as server:
        assert asyncio.run(warm_up(Target(server.url), [{"prompt": "x"}], timeout=5, patience=5)) is None
        assert len(server.bodies) == 3
