"""Level 0: a sound device passes, planted faults are named, and the list of PyTorch ops is what the engine calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.verify.ladder.climbing import TINY, bad, bench, climb, planted, verdicts
from torch.utils._python_dispatch import TorchDispatchMode

from twinline.engine.devices.simulated.faults import FAULTS
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.verify.ladder import sampling
from twinline.verify.ladder.aten import TABLE
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.subject import Subject, decoded


def test_a_clean_chip_and_the_cpu_pass() -> None:
    for device in ("simchip:clean", "cpu"):
        found = climb(bench("device", device=device), "device")
        assert not bad(found)
        skipped = {f.check for f in found if f.verdict == "skipped"}
        assert skipped == (set() if device != "cpu" else {
            "device.memory", "device.oom", "device.copies.peer", "device.streams"})  # fmt: skip
        assert len(found) == len({f.check for f in found}) == 16 + len(TABLE)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("leaks", "device.memory"),
        ("memory-misreported", "device.memory"),
        ("oom-untyped", "device.oom"),
        ("host-copies-flip", "device.copies"),
        ("chip-copies-flip", "device.copies"),
        ("stale-copies", "device.copies"),
        ("peer-copies-cut", "device.copies.peer"),
        ("casts-truncated", "device.dtypes.bfloat16"),
        ("stores-truncated", "device.dtypes.bfloat16"),
        ("nan-swallowed", "device.special"),
        ("inf-clipped", "device.special"),
        ("random-repeats", "device.random"),
        ("sums-in-any-order", "device.determinism"),
        ("empty-refused", "device.empty"),
        ("strides-ignored", "device.strides"),
        ("first-call-wrong", "device.first_call"),
        ("int64-is-int32", "device.aten.int64"),
        ("sort-unstable", "device.aten.sort"),
        ("max-takes-the-last", "device.aten.max"),
        ("softmax-overflows", "device.aten.softmax"),
    ],
)
def test_a_planted_fault_is_named(fault: str, check: str) -> None:
    number = FAULTS[fault].number or 0.0
    with planted(bench(check), lambda chip: FAULTS[fault].plant(chip, number)) as one:
        found = bad(climb(one, "device"))
    assert check in {f.check for f in found}


def test_a_missing_op_is_a_limit_with_those_who_need_it_and_a_plan() -> None:
    with planted(bench("device.aten.topk"), lambda chip: chip.lacks({"topk"})) as one:
        (found,) = bad(climb(one, "device"))
    assert found.verdict == "limit" and "needed by route; plan: " in found.text
    assert found.figures["needed_by"] == "route"


def test_a_refused_dtype_is_a_limit_in_the_chips_words() -> None:
    with planted(bench("device.dtypes"), lambda chip: chip.refuses({torch.bfloat16})) as one:
        found = climb(one, "device")
    assert verdicts(found)["device.dtypes.bfloat16"] == "limit" and verdicts(found)["device.dtypes.float16"] == "pass"
    assert [f.check for f in bad(found)] == ["device.dtypes.bfloat16"]


def test_only_what_is_asked_for_is_tried() -> None:
    told: list[str] = []
    one = Bench(
        Trial(device="cpu", model=str(TINY), only=("device.copies",), skip=("device.copies.peer",)), told.append
    )
    found: list[Finding] = climb(one, "device")
    assert told == ["device.copies"] == [f.check for f in found]


class Recording(TorchDispatchMode):
    """The names of all PyTorch ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# They move no numbers, or are what PyTorch makes of others on its way to a kernel.
NO_KERNEL = frozenset(
    "chunk contiguous detach expand flatten lift_fresh resolve_conj resolve_neg reshape select slice split_with_sizes "
    "transpose unsqueeze view alias clone unbind _local_scalar_dense _to_copy item is_nonzero permute t "
    "copy_ empty_like".split()
)


def test_the_list_is_what_the_models_and_the_sampler_call() -> None:
    one = bench(device="cpu")
    recording = Recording()
    for order in (("batched", "reference"), ("reference",)):
        subject = Subject(one, one.host, Ops(order, StaticFacts("cpu", torch.float32)), one.spec.context)
        with recording:
            subject.tell([[1, 2, 3] * 10, [4] * 20], decoded([30, 20], [20, 10]))
    with recording:
        assert not bad(list(sampling.climb(one)))
    listed = {name for aten in TABLE for name in aten.calls.split()}
    assert recording.names - listed - NO_KERNEL == set()
    assert len(recording.names & listed) > 50


def test_names_are_unique_and_each_has_a_plan() -> None:
    assert len({aten.name for aten in TABLE}) == len(TABLE)
    assert all(aten.plan and aten.needs for aten in TABLE)
