"""Level 9 counts bytes and operations rightly, and finds an op that is out of proportion. No time is asserted."""

from __future__ import annotations

import time

import pytest
import torch
from tests.verify.ladder.climbing import bad, bench, climb, planted

from twinline.engine.devices.simulated.chip import Call
from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.verify.ladder import speed
from twinline.verify.ladder.calls import kept
from twinline.verify.ladder.costs import cost
from twinline.verify.ladder.speed import Probes, Timing, _slow_probes, probe


def test_every_op_has_its_figures() -> None:
    found = climb(bench(), "speed")
    ops = {f.op for f in found if f.op}
    assert {"linear", "experts", "mla_prefill", "mla_decode", "route", "rope", "kv_write", "embedding"} <= ops
    for f in found:
        if f.op:
            assert f.figures["bytes"] > 0 and f.figures["seconds"] > 0 and f.figures["share_of_roofline"] > 0
            assert f.figures["phase"] in ("prefill", "decode")
    assert found[0].check == "speed.probes"


def test_an_op_a_hundred_times_slower_than_its_peers_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PAUSES", (0.1, 0.5, 2.0))

    def wait(call: Call, out: object) -> object:
        time.sleep(0.003)
        return out

    with planted(bench(), lambda chip: chip.plant(["silu"], after=wait)) as one:
        found = bad(climb(one, "speed"))
    assert "silu_mul" in {f.op for f in found} and {f.verdict for f in found} == {"limit"}
    assert {f.op for f in found} <= {"silu_mul", "experts"}


def test_a_chip_with_little_memory_is_measured_with_less() -> None:
    one = bench("speed")
    chip = one.device.chip  # type: ignore[attr-defined]
    with planted(one, lambda chip: setattr(chip.memory, "total", chip.memory.used + 16 * 2**20)):
        chip.memory.peak, before = 0, chip.memory.used
        found = probe(one.device, torch.float32)
        assert found.copy > 0 and found.add > 0 and found.peak > 0
        assert 2**20 < chip.memory.peak - before < 16 * 2**20


def test_costs_by_hand() -> None:
    spec = bench().spec
    x = torch.zeros(3, 192)
    assert cost("linear", (x, None), torch.zeros(3, 640), spec) == (
        4 * (3 * 192 + 192 * 640 + 3 * 640),
        2 * 3 * 192 * 640,
    )
    chosen = torch.tensor([[0, 1], [1, 2], [0, 2]])
    moved, flops = cost("experts", (x, None, chosen, torch.zeros(3, 2)), x, spec)
    assert flops == 6 * 2 * 3 * 128 * 192 and moved == 4 * (2 * 3 * 192 + 3 * 3 * 128 * 192)
    pages = torch.arange(2)
    plan = PrefillPlan(0, 4, 6, pages)
    q, pe, out = torch.zeros(4, 4, 32), torch.zeros(4, 4, 16), torch.zeros(4, 4, 32)
    _, flops = cost("mla_prefill", (q, pe, None, None, None, plan, 1.0), out, spec)
    pairs = 7 + 8 + 9 + 10
    assert flops == 2 * 10 * 64 * 4 * 64 + 2 * pairs * 4 * (48 + 32)
    decode = DecodePlan(pages[None], torch.tensor([5]), None)
    moved, flops = cost("mla_decode", (torch.zeros(1, 4, 64), pe[:1], None, decode, 1.0), torch.zeros(1, 4, 64), spec)
    assert flops == 2 * 5 * 4 * (80 + 64) and moved == 4 * (256 + 256 + 64 + 5 * 80)


def test_slowness_takes_launches_and_work_into_account() -> None:
    one = kept(bench())[0]
    probes = Probes(copy=1e9, add=5e8, peak=1e12, launch=1e-5)
    timing = Timing(one, seconds=1.1e-3, bytes=10**6, flops=10**6, launches=10, probes=probes)
    assert timing.ideal == pytest.approx(1e-3) and timing.slowness == pytest.approx(1.0)
    assert timing.share == pytest.approx(1e-3 / 1.1e-3)


def test_the_yardsticks_are_measured_against_each_other() -> None:
    assert not list(_slow_probes(Probes(copy=2e10, add=2e10, peak=1e11, launch=1e-5)))
    assert [f.check for f in _slow_probes(Probes(copy=1e9, add=2e10, peak=1e11, launch=1e-5))] == ["speed.copy"]
    assert [f.op for f in _slow_probes(Probes(copy=2e10, add=2e10, peak=1e10, launch=1e-5))] == ["linear"]
