"""`twinline bench compare`, and what a run costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.scripted_server import Script, serving

from twinline.cli import main


def written(file: Path, price: float = 3.6, currency: str = "CNY", **changes: Any) -> str:
    """A run of 100 requests that gave 1,000 tokens a second."""
    report = {
        "requests": 100, "completed": 100, "token_counts": "usage", "input_tokens": 6400, "cached_tokens": 0,
        "output_tokens_per_s": 1000.0, "goodput_requests_per_s": None, "ttft_ms": {"p50": 50.0, "p99": 90.0},
        "per_token_ms": None,
    }  # fmt: skip
    settings = {"url": "http://x/v1", "model": "m", "rate": None, "requests": 100, "ttft_limit_ms": None}
    for name, value in changes.items():
        (report if name in report else settings)[name] = value
    speed, good = report["output_tokens_per_s"], report["goodput_requests_per_s"]
    cost = {
        "price_per_hour": price, "currency": currency, "per_million_output_tokens": price / 3600 / speed * 1e6,
        "per_thousand_good_requests": price / 3600 / good * 1e3 if good else None,
    }  # fmt: skip
    file.write_text(json.dumps({"settings": settings, "report": report, "cost": cost}))
    return str(file)


@pytest.fixture
def compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def compare(new: dict[str, Any], *, code: int = 0, **old: Any) -> str:
        files = [written(tmp_path / "old.json", **old), written(tmp_path / "new.json", **new)]
        assert main(["bench", "compare", *files]) == code
        told = capsys.readouterr()
        return told.out + told.err

    return compare


def test_a_run_with_a_price_says_what_tokens_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    with serving(Script()) as server:
        run = ["bench", "serve", "--url", server.url, "--requests", "4", "--output", str(file)]
        assert main([*run, "--price", "9.5 CNY", "--ttft-limit-ms", "60000"]) == 0
    data = json.loads(file.read_text())
    cost, report = data["cost"], data["report"]
    assert (cost["price_per_hour"], cost["currency"]) == (9.5, "CNY")
    assert cost["per_million_output_tokens"] == pytest.approx(9.5 / 3600 / report["output_tokens_per_s"] * 1e6)
    assert cost["per_thousand_good_requests"] == pytest.approx(9.5 / 3600 / report["goodput_requests_per_s"] * 1e3)
    assert "at 9.5 CNY an hour: " in capsys.readouterr().out
    for price, words in (("9.5", "in which currency?"), ("9.5 yuan", "expected a price, such as"), ("-1 CNY", "price")):
        assert main([*run, "--price", price]) == 2
        assert words in capsys.readouterr().err
    assert main([*run, "--output", str(tmp_path)]) == 2  # and not after the run
    assert "is a folder" in capsys.readouterr().err


def test_words_that_are_not_tokens_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script()) as server:
        assert main(["bench", "serve", "--url", server.url, "--requests", "2", "--prompt-tokens", "900"]) == 0
    assert "a prompt of 900 words is " in capsys.readouterr().out


def test_a_token_that_costs_less(compare) -> None:  # type: ignore[no-untyped-def]
    out = compare({"price": 2.7, "output_tokens_per_s": 1000.0})
    assert "an output token costs 25.0% less at NEW (CNY)" in out and "first token, ms, p50" in out
    assert "an output token costs 50.0% more at NEW" in compare({"output_tokens_per_s": 2000 / 3})


def test_with_limits_it_is_the_requests_within_them_that_are_paid_for(compare) -> None:  # type: ignore[no-untyped-def]
    limits = {"ttft_limit_ms": 500.0}
    out = compare(
        {"price": 1.8, "goodput_requests_per_s": 2.0, **limits}, goodput_requests_per_s=10.0, **limits
    )  # half the price, a fifth of the work
    assert "a request within the limits costs 150.0% more at NEW" in out


def test_what_makes_two_runs_unlike_is_told(compare) -> None:  # type: ignore[no-untyped-def]
    out = compare({"completed": 99, "cached_tokens": 64, "token_counts": "chunks", "input_tokens": 7000}, code=1)
    for words in (
        "NEW: 1 of 100 requests",
        "NEW: 64 input tokens came",
        "did not count the tokens",
        "another tokenizer",
    ):
        assert words in out
    out = compare({"currency": "USD"})
    assert "prices in CNY and USD" in out and "costs" not in out


def test_runs_of_different_loads_are_refused(compare) -> None:  # type: ignore[no-untyped-def]
    assert "these runs are not of one load (rate None and 5.0)" in compare({"rate": 5.0}, code=2)


def test_files_that_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path / "a.json")
    for text in ("", "[]", "{}", '{"settings": {}, "report": 3}'):
        (tmp_path / "b.json").write_text(text)
        assert main(["bench", "compare", good, str(tmp_path / "b.json")]) == 1
        assert "is no run of `twinline bench serve --output`" in capsys.readouterr().err
    assert main(["bench", "compare", good, str(tmp_path / "none.json")]) == 1
    assert "cannot read" in capsys.readouterr().err
