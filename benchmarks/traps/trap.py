"""What a trap is here: mistakes that can be made in the product's own text, and the tests that must see them.

Knows no trap. `TRAPS` of the modules beside it are the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "csrc/cpu/"


@dataclass(frozen=True)
class Mutation:
    """A mistake. `old` stands exactly once in `file`, and `new` takes its place.

    `tests`: those that must see it, where they are not all of the trap's. `needs`: a processor's feature, as
    /proc/cpuinfo calls it, without which the mutated lines do not run. `every_variant`: the tests run kernels of every
    instruction set, not of this processor's best alone.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    needs: str = ""
    every_variant: bool = False

    @property
    def compiled(self) -> bool:
        return self.file.startswith(KERNELS)


@dataclass(frozen=True)
class Trap:
    """One number of the reference list. `tests` are `FILE::FUNCTION`, every parameter of it included."""

    number: int
    what: str
    tests: tuple[str, ...]
    mutations: tuple[Mutation, ...]

    def seen_by(self, mutation: Mutation) -> tuple[str, ...]:
        return mutation.tests or self.tests
