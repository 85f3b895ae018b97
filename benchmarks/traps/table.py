"""Every trap of the reference list, in its order."""

from __future__ import annotations

from benchmarks.traps import attention, experts, fp8, prediction, text

TRAPS = tuple(trap for module in (attention, experts, prediction, fp8, text) for trap in module.TRAPS)
