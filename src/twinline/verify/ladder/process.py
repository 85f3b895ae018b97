"""The process that climbs: takes an order as a line on stdin, tells what it does and finds as lines on stdout.

    python -m twinline.verify.ladder.process

Owns the climb of the levels one after the other, in a process that may hang or die for it, and ends where the device
is lost. What a library prints goes to stderr. It ends when its stdin does, so that it never outlives who started it.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import threading
import time
from typing import Any

import msgspec

from twinline.verify.ladder import messages
from twinline.verify.ladder.finding import UNCLIMBED
from twinline.verify.ladder.levels import LEVELS

SMALL_WEIGHTS = 64 * 2**20  # as in engine/build.py: below, a second thread costs more than it computes


class Teller:
    """Writes messages to the pipe that stdout was."""

    def __init__(self) -> None:
        self.pipe = os.fdopen(os.dup(1), "wb", buffering=0)
        self.turn = threading.Lock()  # signs of life come from a thread
        os.dup2(2, 1)

    def tell(self, message: messages.Message) -> None:
        with self.turn:
            self.pipe.write(msgspec.json.encode(message) + b"\n")


def main() -> int:
    teller = Teller()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=messages.Order)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        bench, known = _open(order, teller)
    except Exception as error:
        text = str(error).strip().splitlines()
        teller.tell(messages.Ended(error=text[0] if text else type(error).__name__))
        return 1
    teller.tell(known)
    for level in LEVELS:
        if level.name in order.levels and order.trial.wants(level.name):
            teller.tell(messages.Entered(level=level.name))
            if not _climb(level.name, level.module, bench, teller):
                return 1
            if level.name == "ops":
                teller.tell(messages.Chosen(choices=_choices(bench)))
    teller.tell(messages.Chosen(choices=_choices(bench)))
    teller.tell(messages.Ended())
    return 0


def _climb(name: str, module: str, bench: Any, teller: Teller) -> bool:
    """Whether the device still lives. A level that breaks outside of its checks is a finding, not the end."""
    started = time.perf_counter()
    try:
        for finding in importlib.import_module(module).climb(bench):
            if finding.verdict == "fail" and _lost(bench):
                teller.tell(messages.Lost(finding=finding))
                return False
            teller.tell(messages.Found(finding=finding))
    except Exception as error:
        from twinline.verify.ladder.attempt import broken

        finding = broken(name, error, rule=UNCLIMBED, seconds=time.perf_counter() - started)
        teller.tell(messages.Found(finding=msgspec.structs.replace(finding, verdict="fail")))
    return True


def _lost(bench: Any) -> bool:
    from twinline.engine.devices.device import silence

    return silence(bench.device) is not None


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(3)


def _open(order: messages.Order, teller: Teller) -> tuple[Any, messages.Known]:
    """The bench, and what is on it. Raises what the device or the model raises when opened."""
    import torch

    from twinline import __version__
    from twinline.engine.sizes import weight_bytes
    from twinline.verify.ladder.bench import Bench
    from twinline.verify.ladder.ops import dtypes, model_of

    bench = Bench(order.trial, lambda check: teller.tell(messages.Doing(check=check)))
    bench.refused.update({(r.op, r.provider, r.dtype): r.reason for r in order.refused})
    device, spec = bench.device, bench.spec
    device.prepare_thread()
    if weight_bytes(model_of(spec)) < SMALL_WEIGHTS:
        device.set_threads(1)
    here = device.torch_device
    versions = {"twinline": __version__, "torch": str(torch.__version__), "python": platform.python_version(),
                "system": f"{platform.system()} {platform.machine()}"}  # fmt: skip
    module: Any = None if here.type == "cpu" else torch.get_device_module(here)
    printed = str(module.get_device_name(here)) if hasattr(module, "get_device_name") else ""
    return bench, messages.Known(
        device_name=device.name, simulated=device.simulated, device_type=here.type, printed=printed,
        dtype=spec.dtype if order.trial.dtype == "auto" else order.trial.dtype, dtypes=tuple(dtypes(bench)),
        architecture=spec.architecture, versions=versions)  # fmt: skip


def _choices(bench: Any) -> tuple[messages.Choice, ...]:
    """Who would serve each op that the model uses, dtype by dtype."""
    from twinline.engine.build import DTYPES, ops_for
    from twinline.verify.ladder.ops import dtypes, used

    found = []
    uses = used(bench)
    for name in dtypes(bench):
        ops = ops_for(bench.device, DTYPES[name], bench.spec, bench.refusals(DTYPES[name]))
        found += [messages.Choice(op=c.op, dtype=name, provider=c.provider, passed_over=c.passed_over)
                  for c in ops.choices if c.op in uses and (c.op, c.provider, name) not in bench.refused]  # fmt: skip
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
