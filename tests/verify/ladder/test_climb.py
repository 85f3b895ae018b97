"""The climb goes on where the process on trial hangs, dies or loses its device, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.verify.ladder.climbing import TINY

from twinline.facts.profiles import Choice
from twinline.verify.ladder import climb as climbing
from twinline.verify.ladder import messages
from twinline.verify.ladder.climb import MOST_BREAKS, CannotBegin, Climb, refusals
from twinline.verify.ladder.finding import Finding, Trial
from twinline.verify.ladder.levels import LEVELS

KNOWN = messages.Known(device_name="chip", simulated=False, device_type="chip", printed="", dtype="float32",
                       dtypes=("float32",), architecture="A", versions={})  # fmt: skip


class Scripted:
    """Stands for the child: gives lines, a silence or an end, one script per process."""

    scripts: list[list[Any]]
    orders: list[messages.Order]

    def __init__(self, order: messages.Order):
        self.orders.append(order)
        self.script = iter(self.scripts.pop(0))

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def line(self, seconds: float) -> bytes | None:
        step = next(self.script)
        if step == "hang":
            raise TimeoutError(f"{seconds:g}")
        return None if step == "die" else msgspec.json.encode(step)

    def last_words(self) -> str:
        return "killed by SIGSEGV"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    Scripted.scripts, Scripted.orders = [], []
    monkeypatch.setattr(climbing, "Child", Scripted)
    return Scripted


def entered(level: str) -> messages.Message:
    return messages.Entered(level=level)


def doing(check: str) -> messages.Message:
    return messages.Doing(check=check)


def found(check: str, verdict: Any = "pass", **more: Any) -> messages.Message:
    return messages.Found(finding=Finding(check=check, verdict=verdict, text="seen", **more))


def climbed(*only: str, patience: float = 0.0) -> Climb:
    one = Climb(Trial(device="chip", model="m", only=only), patience)
    list(one.events())
    return one


def test_a_climb_without_trouble(scripted: type[Scripted]) -> None:
    choice = Choice(op="linear", dtype="float32", provider="batched")
    chosen = messages.Chosen(choices=(choice,))
    scripted.scripts = [[KNOWN, entered("device"), doing("device.a"), found("device.a"), entered("ops"),
                         doing("ops.b"), found("ops.b"), chosen, messages.Ended()]]  # fmt: skip
    one = climbed()
    assert one.whole and [f.check for f in one.findings] == ["device.a", "ops.b"] and one.choices == (choice,)
    assert set(one.seconds) == {"device", "ops"} and one.known == KNOWN
    assert scripted.orders[0].levels == tuple(level.name for level in LEVELS)


@pytest.mark.parametrize(("how", "said"), [("die", "killed by SIGSEGV"), ("hang", "no sign of life for 7 s")])
def test_what_breaks_is_laid_at_its_check_and_the_next_is_tried(scripted: type[Scripted], how: str, said: str) -> None:
    scripted.scripts = [
        [KNOWN, entered("device"), doing("device.a"), found("device.a"), entered("ops"), doing("ops.b"),
         found("ops.b", "fail", op="b", provider="fast", dtype="float32"), doing("ops.c"), how],
        [KNOWN, entered("ops"), doing("ops.d"), found("ops.d"), messages.Ended()],
    ]  # fmt: skip
    one = climbed(patience=7.0)
    broken = one.findings[2]
    assert (broken.check, broken.verdict) == ("ops.c", "fail") and said in broken.text and one.whole
    second = scripted.orders[1]
    assert second.trial.skip == ("ops.b", "ops.c") and second.levels[0] == "ops"
    assert [(r.op, r.provider) for r in second.refused] == [("b", "fast")]
    assert one.findings[-1].check == "ops.d"


@pytest.mark.parametrize("how", ["die", "hang"])
def test_a_provider_that_hangs_or_dies_is_refused_and_the_next_is_tried(scripted: type[Scripted], how: str) -> None:
    scripted.scripts = [[KNOWN, entered("ops"), doing("ops.b.fast.float32"), how],
                        [KNOWN, entered("ops"), messages.Ended()]]  # fmt: skip
    one = climbed("ops")
    assert [(r.op, r.provider, r.dtype) for r in scripted.orders[1].refused] == [("b", "fast", "float32")]
    assert one.findings[0].verdict == "fail" and ("--patience" in one.findings[0].text) == (how == "hang")


def test_one_provider_that_dies_in_each_dtype_is_one_break(scripted: type[Scripted]) -> None:
    dtypes = ("float32", "bfloat16", "float16")
    scripted.scripts = [[KNOWN, entered("ops"), doing(f"ops.b.fast.{d}"), "die"] for d in dtypes]
    scripted.scripts += [[KNOWN, entered("ops"), doing("ops.c.fast.float32"), "die"],
                         [KNOWN, entered("ops"), messages.Ended()]]  # fmt: skip
    one = climbed("ops")
    assert one.whole and [f.verdict for f in one.findings] == ["fail"] * 4
    assert [r.dtype for r in scripted.orders[-1].refused] == [*dtypes, "float32"]


def test_a_figure_that_is_no_number_does_not_end_the_climb(scripted: type[Scripted]) -> None:
    scripted.scripts = [[KNOWN, entered("model"), doing("model.a"),
                         found("model.a", "fail", figures={"kl": float("nan")}), messages.Ended()]]  # fmt: skip
    one = climbed("model")
    assert one.whole and one.findings[0].figures == {"kl": "nan"}


def test_a_lost_device_is_no_providers_fault(scripted: type[Scripted]) -> None:
    lost = Finding(check="ops.b.fast.float32", verdict="fail", text="gone", op="b", provider="fast", dtype="float32")
    scripted.scripts = [[KNOWN, entered("ops"), doing("ops.b.fast.float32"), messages.Lost(finding=lost)],
                        [KNOWN, entered("ops"), messages.Ended()]]  # fmt: skip
    one = climbed("ops")
    assert one.findings[0].op == "b" and "device lost: gone" in one.findings[0].text
    assert one.findings[0].rule == "the device lives" and refusals(one.findings) == ()


def test_a_level_that_breaks_before_any_check_is_left(scripted: type[Scripted]) -> None:
    scripted.scripts = [[KNOWN, entered("device"), "die"], [KNOWN, messages.Ended()]]
    one = climbed()
    assert one.findings[0].check == "device" and scripted.orders[1].levels[0] == "ops"


def test_after_some_breaks_it_is_given_up(scripted: type[Scripted]) -> None:
    scripted.scripts = [[KNOWN, entered("ops"), doing(f"ops.{i}"), "die"] for i in range(MOST_BREAKS)]
    one = climbed()
    assert not one.whole and [f.verdict for f in one.findings[:MOST_BREAKS]] == ["fail"] * MOST_BREAKS
    left = [f for f in one.findings if f.verdict == "skipped"]
    assert [f.check for f in left] == [level.name for level in LEVELS if level.number >= 1]


def test_what_cannot_even_be_opened(scripted: type[Scripted]) -> None:
    scripted.scripts = [[messages.Ended(error="no such device")]]
    with pytest.raises(CannotBegin, match="no such device"):
        climbed()
    scripted.scripts = [["die"]] * MOST_BREAKS
    with pytest.raises(CannotBegin, match="killed by SIGSEGV"):
        climbed()


def test_a_device_that_does_not_come_back(scripted: type[Scripted]) -> None:
    scripted.scripts = [[KNOWN, entered("ops"), doing("ops.a"), "die"], [messages.Ended(error="it is gone")]]
    one = climbed()
    assert one.findings[-1].text == "it is gone" and not one.whole


# Real processes.


def real(device: str, *only: str, patience: float = 0.0) -> Climb:
    one = Climb(Trial(device=device, model=str(TINY), only=only), patience)
    list(one.events())
    return one


def test_a_chip_that_ends_the_process_is_found_and_what_follows_is_tried() -> None:
    one = real("simchip:clean+oom-kills", "device.oom", "device.copies")
    by_check = {f.check: f for f in one.findings}
    assert by_check["device.oom"].verdict == "fail" and "exit code 137" in by_check["device.oom"].text
    assert by_check["device.copies"].verdict == "pass" and one.whole


def test_a_chip_that_hangs_is_found() -> None:
    one = real("simchip:clean+hangs=100", "device.memory", patience=8.0)
    assert one.findings[0].check == "device.memory" and "no sign of life for 8 s" in one.findings[0].text


def test_an_unknown_device_cannot_begin() -> None:
    with pytest.raises(CannotBegin, match="known to PyTorch"):
        real("nosuchchip", "device")


def test_interrupted_it_ends_at_once_and_leaves_no_process() -> None:
    command = [sys.executable, "-m", "twinline.cli", "adapt", "--device", "simchip:clean+hangs=40", "--only", "device"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("level 0"):
            break
    children = _children(process.pid)
    assert children
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert not any(_lives(child) for child in children)


def test_the_climbing_process_does_not_outlive_its_watcher() -> None:
    command = [sys.executable, "-m", "twinline.cli", "adapt", "--device", "simchip:clean+hangs=40", "--only", "device"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("level 0"):
            break
    children = _children(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 20
    while any(map(_lives, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert children and not any(map(_lives, children))


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
