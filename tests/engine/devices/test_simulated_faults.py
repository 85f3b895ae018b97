"""Every planted fault does what it says, and shows in at least one of the ops or checks that it names."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.engine.devices.chips import opened, wrong
from tests.engine.op_cases import CASES
from torch import Tensor

from twinline.engine.devices.simulated.chip import CHIPS, GIB, ChipLost
from twinline.engine.devices.simulated.faults import FAULTS
from twinline.engine.ops.registry import OPS
from twinline.verify.ladder.levels import LEVELS

LEVEL_NAMES = {level.name for level in LEVELS}


def test_there_are_faults_enough_and_each_says_where_it_shows() -> None:
    assert len(FAULTS) >= 50
    assert len({fault.text for fault in FAULTS.values()}) == len(FAULTS)
    for fault in FAULTS.values():
        assert fault.shows and all(s in OPS or s.partition(".")[0] in LEVEL_NAMES for s in fault.shows), fault.name
        assert (fault.number is None) == (not fault.counts), fault.name


def test_every_op_of_the_embedded_model_is_shown_wrong_by_some_fault() -> None:
    shown = {one for fault in FAULTS.values() for one in fault.shows}
    assert shown >= set(OPS) - {"attention_prefill", "attention_decode"}


def on_chip(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("simchip")


def _error(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except (RuntimeError, NotImplementedError) as error:
        return error
    return None


def raises(kind: type[Exception], call: Callable[[], Any]) -> bool:
    return isinstance(_error(call), kind)


def _reported_beside(held: Tensor) -> int:
    return torch.simchip.mem_get_info(held.device)[0]  # type: ignore[attr-defined]


def _drift() -> bool:
    x = on_chip(4, 4)
    before = (x @ x).cpu()
    CHIPS[0].ops += 100_000
    return not torch.equal(before, (x @ x).cpu())


def _unlike(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a.cpu(), b.cpu())


def _twice(call: Callable[[], Tensor]) -> bool:
    return _unlike(call(), call())


def _copies() -> bool:
    """Whether one of some hundreds of round trips brings back something else."""
    hosts = [torch.full((8,), float(i)) for i in range(250)]
    return any(_unlike(host.to("simchip"), host) for host in hosts)


def _slower(than: float, call: Callable[[], Any]) -> bool:
    """The planted wait itself is asked for, not the clock's word on the whole."""
    waited: list[float] = []
    real = time.sleep
    time.sleep = waited.append  # type: ignore[assignment]
    try:
        call()
    finally:
        time.sleep = real  # type: ignore[assignment]
    return sum(waited) > than


TIES = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])

# What no op of the engine shows, or not surely: seen with plain tensors. True where the fault is there.
WITNESSES: dict[str, Callable[[], bool]] = {
    "drifts": _drift,
    "sums-in-any-order": lambda: _twice(lambda: (lambda x: x @ x)(on_chip(64, 64))),
    "wrong-at-a-size": lambda: _unlike(on_chip(64, 8) @ torch.eye(8, device="simchip"), on_chip(64, 8)),
    "softmax-overflows": lambda: _unlike((on_chip(4, 9) * 30).softmax(-1), (on_chip(4, 9) * 30).cpu().softmax(-1)),
    "long-context-forgotten": lambda: on_chip(3, 300).softmax(-1)[:, 256:].abs().sum().item() == 0,
    "casts-truncated": lambda: _unlike(on_chip(64).bfloat16(), on_chip(64).cpu().bfloat16()),
    "nan-swallowed": lambda: bool((on_chip(3) * float("nan")).isfinite().all()),
    "inf-clipped": lambda: bool((on_chip(3) * 1e30 * 1e30).isfinite().all()),
    "int64-is-int32": lambda: (torch.tensor([2**33 + 5], device="simchip") * 1).item() == 5,
    "sort-unstable": lambda: TIES.to("simchip").sort(dim=-1, stable=True).indices.tolist() == [[4, 0, 3, 2, 1]],
    "max-takes-the-last": lambda: TIES.to("simchip").max(-1).indices.tolist() == [3],
    "empty-refused": lambda: raises(RuntimeError, lambda: on_chip(3)[:0] * 2),
    "random-repeats": lambda: not _twice(lambda: torch.rand(4, device="simchip")),
    "host-copies-flip": _copies,
    "chip-copies-flip": _copies,
    "stale-copies": _copies,
    "peer-copies-cut": lambda: on_chip(4).to("simchip:1")[-1].item() == 0,
    "leaks": lambda: _leaked(),
    "memory-misreported": lambda: _reported_beside(on_chip(9)) == GIB,
    "oom-untyped": lambda: type(_error(lambda: torch.zeros(GIB, device="simchip"))) is RuntimeError,
    "no-bfloat16": lambda: raises(NotImplementedError, lambda: on_chip(3).bfloat16()),
    "no-float16": lambda: raises(NotImplementedError, lambda: on_chip(3).half()),
    "slow-products": lambda: _slower(1e-5, lambda: on_chip(64, 64) @ on_chip(64, 64)),
    "slow-gathers": lambda: _slower(1e-5, lambda: F.embedding(torch.tensor([1, 2]).to("simchip"), on_chip(64, 64))),
}  # fmt: skip
ELSEWHERE = {
    "hangs": "test_simulated_life.py",
    "dies": "below",
    "oom-kills": "below",
    "all-reduce-loses-a-rank": "test_simulated_collectives.py",
    "all-reduce-in-16-bits": "test_simulated_collectives.py",
    "all-gather-swapped": "test_simulated_collectives.py",
}


def _leaked() -> bool:
    before = CHIPS[0].memory.used
    for _ in range(64):
        on_chip(10)
    return CHIPS[0].memory.used > before


@pytest.mark.parametrize("name", sorted(WITNESSES))
def test_a_fault_is_there_when_it_is_planted_and_only_then(name: str) -> None:
    with opened(f"simchip:clean+{name}"), torch.inference_mode():
        assert WITNESSES[name]()
    with opened(), torch.inference_mode():
        assert not WITNESSES[name]()


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - WITNESSES.keys() - ELSEWHERE.keys()))
def test_a_fault_shows_in_an_op_that_it_names(name: str) -> None:
    ops = tuple(op for op in FAULTS[name].shows if op in CASES)
    with opened(f"simchip:clean+{name}") as device:
        assert wrong(device, ops)


def test_elsewhere_names_what_there_is() -> None:
    assert FAULTS.keys() >= ELSEWHERE.keys() and not ELSEWHERE.keys() & WITNESSES.keys()


def test_two_faults_at_once() -> None:
    with opened("simchip:clean+silu-cut+topk-takes-the-next") as device:
        assert wrong(device, ("silu_mul", "route", "rope")).keys() == {"silu_mul", "route"}


def test_death_is_for_good() -> None:
    with opened("simchip:clean+dies=10") as device:
        x = on_chip(3)
        with pytest.raises(ChipLost, match=r"simchip:0 \(simulated\) is lost, at aten::add: it died after 10 ops"):
            for _ in range(20):
                x = x + 1
        for call in (lambda: x * 2, device.synchronize, device.free_memory, lambda: torch.ones(1, device="simchip")):
            with pytest.raises(torch.AcceleratorError):
                call()
        assert (torch.ones(2, device="simchip:1") + 1).sum().item() == 4


def test_running_out_of_memory_may_kill() -> None:
    code = """if True:
        import torch
        from twinline.engine.devices.device import open_device
        open_device("simchip:small-memory+oom-kills")
        torch.zeros(10**9, device="simchip")"""
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, timeout=60).returncode == 137
