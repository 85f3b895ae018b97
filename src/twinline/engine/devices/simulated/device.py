"""The engine's handle on a simulated chip, and what its names mean.

`simchip` and `simchip:clean` are the first chip, healthy; `simchip:1` is the second. `simchip:PROFILE` plays a
profile, `simchip:PROFILE+FAULT[=NUMBER][+FAULT...]` with faults planted. Opening a name again changes nothing; another
name gives the chip another part to play, with its memory as it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

import torch

from twinline.engine.devices.accelerator import Accelerator
from twinline.engine.devices.simulated import backend, control
from twinline.engine.devices.simulated.chip import CHIPS, Chip
from twinline.engine.devices.simulated.faults import FAULTS
from twinline.engine.devices.simulated.profiles import PROFILES
from twinline.engine.devices.simulated.tensor import DEVICES, KIND

STEP_SECONDS = 10.0


class Simulated(Accelerator):
    providers: tuple[str, ...] = ("batched", "reference")
    simulated = True
    step_tokens = 512  # as a CPU, which it is
    step_seconds = STEP_SECONDS

    def __init__(self, device: torch.device, plays: str = "clean"):
        self.torch_device = DEVICES[device.index or 0]
        self.name = f"{KIND}:{plays} (simulated)"
        self.module = backend.MODULE

    @classmethod
    def named(cls, name: str) -> Simulated:
        """The chip that `name` means, playing what it says. Raises ValueError for a name that means none, and for a
        chip that is lost."""
        index, plays, profile, faults = _read(name)
        chip = CHIPS[index]
        control.watch()
        if chip.plays != plays:
            lost, hangs = chip.lost, chip.hangs
            PROFILES[profile].put_on(chip)
            for fault, number in faults:
                FAULTS[fault].plant(chip, number)
            chip.plays, chip.lost, chip.hangs = plays, lost, hangs
            chip.plan()
        if chip.lost is not None:
            raise ValueError(f"device {name!r} is lost (simulated): {chip.lost}")
        return cls(torch.device("cpu", index), plays if index == 0 else str(index))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.torch_device.index]

    def synchronize(self) -> None:
        self.module.synchronize(self.torch_device)

    def prepare_thread(self) -> None:
        super().prepare_thread()
        torch.set_flush_denormal(True)


def _near(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, 3, 0.4)
    return f"near: {', '.join(near)}" if near else f"there are {', '.join(known)}"


def _read(name: str) -> tuple[int, str, str, list[tuple[str, float]]]:
    """Index, what is played, profile and faults with their numbers."""
    rest = name.removeprefix(KIND).removeprefix(":")
    if rest.isdecimal():
        if int(rest) >= len(CHIPS):
            raise ValueError(f"device {name!r} is not there: there are {len(CHIPS)} simulated chips")
        return int(rest), "clean", "clean", []
    profile, *words = (rest or "clean").split("+")
    if profile not in PROFILES:
        raise ValueError(f"device {name!r}: no profile {profile!r} of the simulated chip ({_near(profile, PROFILES)})")
    faults = []
    for word in words:
        key, _, text = word.partition("=")
        if key not in FAULTS:
            raise ValueError(f"device {name!r}: no fault {key!r} of the simulated chip ({_near(key, FAULTS)})")
        default = FAULTS[key].number
        if text and default is None:
            raise ValueError(f"device {name!r}: the fault {key!r} takes no number")
        faults.append((key, _number(name, text) if text else default or 0.0))
    return 0, rest or "clean", profile, faults


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"device {name!r}: {text!r} is not a number above 0")
    return number
