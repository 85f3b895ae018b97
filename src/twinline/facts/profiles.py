"""What was found out about a device by trying it (`twinline adapt`): its grade, who serves each op, how fast.

Owns the shape of a profile and its file. The engine takes from it which providers not to use; what was
measured stands there for planning. Knows no torch, and not how anything is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

VERSION = 1
GradeName = Literal["sound", "limited", "unfit"]


class BadProfile(ValueError):
    """A file that is no profile, or of another version, or for another device; the message says which."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Who serves `op` in `dtype` on this device. `passed_over`: providers that come earlier, each with its reason."""

    op: str
    dtype: str
    provider: str
    passed_over: tuple[tuple[str, str], ...] = ()


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that must not serve `op` in `dtype` on this device, and what it did."""

    op: str
    provider: str
    dtype: str
    reason: str


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """One op as it was timed. `share_of_roofline` is beside the bandwidth and the peak of the same run; `phase` is
    `prefill` or `decode`; `bytes` and `flops` are what the call must at least move and compute."""

    op: str
    provider: str
    dtype: str
    phase: str
    share_of_roofline: float
    seconds: float
    bytes: int
    flops: int
    shape: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`device` is what `--device` was given, `device_name` what the engine calls it, `chip` the catalog's id where it
    is known. `dtype` is the one in which the model was tried. `rule` says why the grade is what it is. `determinism`:
    what was compared, and how much of it was equal to the bit. `measured`: `bandwidth_bytes_per_second`, `peak_flops`,
    `launch_seconds`. `versions`: of what the result depends on. Times are UTC, ISO 8601."""

    device: str
    device_name: str
    simulated: bool
    model: str
    architecture: str
    dtype: str
    seed: int
    date: str
    grade: GradeName
    rule: str
    chip: str = ""
    complete: bool = True
    dtypes: tuple[str, ...] = ()
    versions: dict[str, str] = {}
    determinism: dict[str, str] = {}
    choices: tuple[Choice, ...] = ()
    refused: tuple[Refused, ...] = ()
    efficiencies: tuple[Efficiency, ...] = ()
    measured: dict[str, float] = {}
    version: int = VERSION

    def refusals(self, dtype: str) -> dict[tuple[str, str], str]:
        """(op, provider) to reason, for what must not serve in `dtype`."""
        return {(r.op, r.provider): r.reason for r in self.refused if r.dtype == dtype}

    def provider(self, op: str, dtype: str) -> str | None:
        """Who serves `op` in `dtype`; None where that was not tried."""
        return next((c.provider for c in self.choices if (c.op, c.dtype) == (op, dtype)), None)

    def efficiency(self, op: str, phase: str) -> Efficiency | None:
        """What was measured of an op in a phase; None where it was not."""
        return next((e for e in self.efficiencies if (e.op, e.phase) == (op, phase)), None)


def read_profile(file: Path) -> Profile:
    """The profile in `file`. Raises BadProfile, in one line, for what is none."""
    try:
        profile = msgspec.json.decode(file.read_bytes(), type=Profile)
    except FileNotFoundError:
        raise BadProfile(f"no profile at {file}: `twinline adapt --device D --out DIR` makes one") from None
    except (OSError, msgspec.DecodeError) as error:
        raise BadProfile(f"{file} is no profile: {error}") from None
    if profile.version != VERSION:
        raise BadProfile(f"{file} is a profile of version {profile.version}, and this reads {VERSION}: adapt again")
    return profile


def write_profile(profile: Profile, file: Path) -> None:
    """Whole or not at all: a reader never sees half a profile."""
    part = file.with_name(file.name + ".part")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
    part.replace(file)
