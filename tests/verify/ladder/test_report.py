"""The report: one page that needs nothing else, the same told in Markdown, and the profile that is taken from it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from twinline.facts.profiles import Choice
from twinline.verify.ladder import messages
from twinline.verify.ladder.climb import Climb
from twinline.verify.ladder.finding import Finding, Trial, Verdict
from twinline.verify.ladder.report import Report, profile, report
from twinline.verify.ladder.report_html import html
from twinline.verify.ladder.report_markdown import markdown

FINDINGS = (
    Finding(check="device.copies", verdict="pass", text="all arrived"),
    Finding(check="ops.linear.fast.float32", verdict="fail", text="off <b>by</b> 3% | much", rule="bound", op="linear",
            provider="fast", dtype="float32", shape="7x192", figures={"excess": 31.0}),
    Finding(check="ops.linear.reference.float32", verdict="pass", text="fine", op="linear", provider="reference",
            dtype="float32", figures={"excess": 0.4}),
    Finding(check="ops.rope.fast.float32", verdict="pass", text="fine", op="rope", provider="fast", dtype="float32",
            figures={"excess": 0.9}),
    Finding(check="model.logprobs.17", verdict="fail",
            text="too far apart; first divergent: layer 2, linear (fast) in layers.2.mlp", rule="KL"),
    Finding(check="determinism.repeat", verdict="limit", text="2 of 5 differ", figures={"differ": 2}),
    Finding(check="speed.probes", verdict="note", text="measured", figures={"peak_flops": 1e12}),
    Finding(check="speed.linear", verdict="pass", text="x", op="linear", provider="reference", dtype="float32",
            figures={"share_of_roofline": 0.25, "seconds": 1e-4, "bytes": 100, "flops": 200, "phase": "decode"}),
)  # fmt: skip
CHOICES = (
    Choice(op="linear", dtype="float32", provider="reference", passed_over=(("fast", "level 1: off"),)),
    Choice(op="rope", dtype="float32", provider="fast"),
    Choice(op="route", dtype="float32", provider="reference", passed_over=(("fast", "does not implement it"),)),
)


def made(findings: tuple[Finding, ...] = FINDINGS, simulated: bool = True, **trial: Any) -> Report:
    climb = Climb(Trial(device="chip", model="tiny", seed=7, **trial))
    climb.known = messages.Known(device_name="chip <x>", simulated=simulated, device_type="chip", printed="Chip 9",
                                 dtype="float32", dtypes=("float32",), architecture="A",
                                 versions={"torch": "1"})  # fmt: skip
    climb.findings, climb.choices, climb.whole = list(findings), CHOICES, True
    climb.seconds = {"device": 1.0, "ops": 2.0, "model": 3.0, "determinism": 0.1, "speed": 0.5}
    return report(climb, 6.6)


def test_what_a_report_says() -> None:
    r = made()
    assert r.grade.name == "unfit" and r.complete and r.simulated
    assert [level.verdict for level in r.levels] == ["pass", "fail", "fail", "limit", "pass"]
    assert [(rank.op, rank.provider) for rank in r.ranks] == [("linear", "fast"), ("rope", "fast"),
                                                              ("linear", "reference")]  # fmt: skip
    assert r.divergent == "layer 2, linear (fast) in layers.2.mlp"
    assert r.commands["ops.linear.fast.float32"] == (
        "twinline adapt --device chip --model tiny --seed 7 --only ops.linear.fast.float32")  # fmt: skip
    assert set(r.commands) == {f.check for f in r.alarms}
    assert [c.op for c in r.fallen] == ["linear"]  # route has never had another, and nothing was refused there


def test_part_of_a_ladder_is_said_to_be_part() -> None:
    assert not made(only=("ops",)).complete and "not the whole ladder" in markdown(made(only=("ops",)))


class Page(HTMLParser):
    """Text, tags that stay open, and what would be fetched."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.open, self.fetched = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_is_well_formed() -> None:
    page = html(made())
    read = Page(page)
    assert read.open == [] or read.open == ["html"]
    assert not read.fetched and "url(" not in page and "<script" not in page
    for text in ("unfit", "off <b>by</b> 3% | much", "layer 2, linear (fast)", "chip <x>", "Simulated chip",
                 "--only model.logprobs.17", "25.0%"):  # fmt: skip
        assert text in read.text
    assert "<b>" not in page


def test_real_silicon_bears_no_such_mark() -> None:
    for text in (html(made(simulated=False)), markdown(made(simulated=False))):
        assert "imulated" not in text.replace(".simulated", "")


def test_markdown_has_a_cell_for_each_column() -> None:
    text = markdown(made())
    assert text.startswith("# chip") and "**Simulated chip.**" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in block.strip().splitlines()]
        assert len({len(row) for row in rows}) == 1
    assert "    twinline adapt --device chip --model tiny --seed 7 --only determinism.repeat" in text


def test_the_profile_holds_what_engine_and_planner_need() -> None:
    p = profile(made())
    assert p.refusals("float32") == {("linear", "fast"): "level 1: off <b>by</b> 3% | much"}
    assert p.provider("linear", "float32") == "reference" and p.grade == "unfit" and p.complete
    found = p.efficiency("linear", "decode")
    assert found is not None and (found.share_of_roofline, found.bytes) == (0.25, 100)
    assert p.measured == {"peak_flops": 1e12} and p.determinism == {"run to run": "varies"}


def test_a_report_is_read_back_from_json() -> None:
    r = made()
    assert msgspec.json.decode(msgspec.json.encode(r), type=Report) == r


@pytest.mark.parametrize("verdict", ["pass", "note", "skipped"])
def test_where_all_is_well_there_is_nothing_to_repeat(verdict: Verdict) -> None:
    fine = (Finding(check="device.copies", verdict=verdict, text="x"), FINDINGS[0])
    r = made(fine)
    assert not r.commands and "What failed or met" not in html(r) + markdown(r) and r.grade.name == "sound"
