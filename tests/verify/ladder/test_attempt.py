"""A check that breaks is a finding that names what it was doing; one that goes on gives signs of life."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from tests.verify.ladder.climbing import TINY, bench, planted

from twinline.verify.ladder import attempt as attempts
from twinline.verify.ladder import pace
from twinline.verify.ladder.attempt import NotReady, Where, alive, attempt, begin, host_at_work
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.subject import subjects


def _heard(*only: str) -> tuple[Bench, list[str]]:
    told: list[str] = []
    return Bench(Trial(device="cpu", model=str(TINY), only=only), told.append), told


@pytest.mark.parametrize(("error", "verdict"), [
    (RuntimeError("unspecified launch failure"), "fail"),
    (NotImplementedError("aten::topk"), "limit"),
    (RuntimeError('"topk" not implemented for \'Half\''), "limit"),
    (RuntimeError("This operation is not supported on this device"), "limit"),
    (torch.OutOfMemoryError("not supported: 3 GiB"), "fail"),
    (NotReady("there is one device"), "skipped"),
])  # fmt: skip
def test_what_an_exception_means(error: Exception, verdict: str) -> None:
    def body(where: Where) -> Iterator[Finding]:
        yield Finding(check="model.x", verdict="pass", text="before")
        where.is_(op="rope", provider="batched", place="layers.1.attention")
        raise error

    first, second = attempt(_heard()[0], "model.x", body)
    assert first.verdict == "pass" and second.verdict == verdict and second.check == "model.x"
    if verdict != "skipped":
        assert second.op == "rope" and "layers.1.attention" in second.text and str(error)[:10] in second.text


def test_only_what_is_asked_for_is_begun() -> None:
    one, told = _heard("model.trace")
    assert not list(attempt(one, "model.load", lambda where: [Finding(check="model.load", verdict="pass", text="")]))
    assert not told


def test_signs_of_life_name_what_is_being_done_and_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    one, told = _heard()
    begin(one, "long.decode")
    for _ in range(1000):
        alive(one)
    assert told == ["long.decode"]
    monkeypatch.setattr(attempts, "SIGN_SECONDS", -1.0)
    alive(one)
    assert told == ["long.decode", "long.decode"]


def test_a_slow_or_wrong_chip_climbs_a_shorter_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = bench(), bench()
    monkeypatch.setattr(pace, "step_seconds", lambda bench: 0.01)
    assert pace.share(one) == 1 and pace.some(one, 320, 90) == 320
    one.model_is_wrong = True
    assert pace.share(one) == pace.WRONG and pace.share(other) == 1
    monkeypatch.setattr(pace, "step_seconds", lambda bench: 10.0)
    assert pace.share(other) == pace.LEAST and pace.some(other, 320, 90) == 90 and pace.some(other, 3, 5) == 3


def test_a_step_is_timed_on_the_chip() -> None:
    with planted(bench(), lambda chip: None) as one:
        assert 0 < pace.step_seconds(one) < 60


def _until(told: list[str], count: int) -> bool:
    ends = time.monotonic() + 20
    while len(told) < count and time.monotonic() < ends:
        time.sleep(0.002)
    return len(told) >= count


def test_while_the_host_computes_what_is_done_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "SIGN_SECONDS", 0.005)
    one, told = _heard()
    begin(one, "model.x")
    with host_at_work(one):
        assert _until(told, 4)
    settled = len(told)
    time.sleep(0.05)
    assert len(told) == settled and set(told) == {"model.x"}


def test_the_hosts_models_give_signs_of_life_and_the_chips_must_give_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "SIGN_SECONDS", 0.005)
    told: list[str] = []
    one = Bench(Trial(device="simchip:clean", model=str(TINY)), told.append)
    begin(one, "model.x")
    three = subjects(one)
    for subject in (three.reference, three.golden):
        with subject.width():
            assert _until(told, len(told) + 3)
    chip, settled = three.chip, len(told)
    with chip.width():
        time.sleep(0.05)
    assert len(told) == settled
