"""Level 0: a sound device passes, planted faults are named, and the list of PyTorch ops is what the engine calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.verify.ladder.climbing import TINY, bad, bench, climb, planted, verdicts
from torch.utils._python_dispatch import TorchDispatchMode

from twinline.engine import draw
from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.engine.devices.simulated.faults import FAULTS
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.verify.ladder import sampling
from twinline.verify.ladder.aten import TABLE
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.grade import grade
from twinline.verify.ladder.subject import Subject, decoded


def test_a_clean_chip_and_the_cpu_pass() -> None:
    for device in ("simchip:clean", "cpu"):
        found = climb(bench("device", device=device), "device")
        assert not bad(found)
        skipped = {f.check for f in found if f.verdict == "skipped"}
        assert skipped == (set() if device != "cpu" else {
            "device.memory", "device.content", "device.oom", "device.copies.peer", "device.streams"})  # fmt: skip
        assert len(found) == len({f.check for f in found}) == 18 + len(TABLE)


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


def _bad_memory(chip: Chip) -> None:
    """A cell that loses a bit, among what lies beyond half of the memory."""

    def after(call: Call, out: Any) -> Any:
        if isinstance(out, torch.Tensor) and chip.memory.used > chip.memory.total // 2 and out.numel() > 2**16:
            out[7] ^= 1
        return out

    chip.plant({"clone"}, after=after)


def test_memory_that_no_small_model_touches_is_tried_too() -> None:
    with planted(bench("device.content"), _bad_memory) as one:
        (found,) = climb(one, "device")
    assert found.verdict == "fail" and int(found.figures["bad_blocks"]) > 0
    assert grade([found], "float32").name == "unfit"
    (found,) = climb(bench("device.content"), "device")
    assert found.verdict == "pass" and int(found.figures["filled_bytes"]) > 0.7 * int(found.figures["free_bytes"])


def test_a_clone_that_is_its_original_is_found() -> None:
    with planted(bench("device.copies"), lambda chip: chip.plant({"clone"}, after=lambda c, out: c.args[0])) as one:
        (found,) = bad([f for f in climb(one, "device") if f.check == "device.copies"])
    assert "a clone, which is its original" in found.text


@pytest.mark.parametrize(("flushes", "said"), [
    ("in", "float16 flushed where they go in"), ("out", "float16 flushed where they come out"),
    ("both", "float16 flushed ("), ("", "float16 kept"),
])  # fmt: skip
def test_what_becomes_of_numbers_below_the_normal_range_is_told(flushes: str, said: str) -> None:
    def flushed(x: Any) -> Any:
        small = isinstance(x, torch.Tensor) and x.dtype == torch.float16
        return torch.where(x.abs() < 2.0**-14, torch.zeros_like(x), x) if small else x

    def plant(chip: Chip) -> None:
        if flushes in ("in", "both"):
            chip.plant({"mul"}, before=lambda call: setattr(call, "args", [flushed(a) for a in call.args]))
        if flushes in ("out", "both"):
            chip.plant({"mul"}, after=lambda call, out: flushed(out))

    with planted(bench("device.denormals"), plant) as one:
        (found,) = climb(one, "device")
    assert found.verdict == "note" and said in found.text and grade([found], "float32").name == "sound"


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


def test_the_list_is_what_the_models_and_the_sampler_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw.host, "serves", lambda logits: False)  # as it is on a chip
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
