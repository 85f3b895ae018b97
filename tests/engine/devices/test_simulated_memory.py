"""A simulated chip's memory: what is taken and given back, the limit, and what the driver says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engine.devices.chips import opened

from twinline.engine.devices.simulated.chip import CHIPS, GIB
from twinline.engine.devices.simulated.profiles import PROFILES


def used(index: int = 0) -> int:
    return CHIPS[index].memory.used


def test_every_byte_is_taken_once_and_given_back() -> None:
    with opened(), torch.inference_mode():
        base = used()
        x = torch.zeros(1000, device="simchip")
        assert used() - base == 4000
        views = [x[5:], x.view(10, 100).T, x.reshape(100, 10), x.contiguous(), x.float()]
        assert used() - base == 4000, "a view takes nothing"
        y = x.half()
        assert used() - base == 6000
        del x, y
        assert used() - base == 4000, "views hold the memory"
        del views
        assert used() == base


def test_each_chip_has_memory_of_its_own() -> None:
    with opened():
        base = [used(i) for i in range(4)]
        x = torch.zeros(100, device="simchip:3")
        y = x.to("simchip:1")
        assert [used(i) - b for i, b in enumerate(base)] == [0, 400, 0, 400]
        del x, y


def test_running_out_is_pytorchs_own_error_and_the_chip_lives() -> None:
    with opened("simchip:small-memory") as device:
        free, total = device.module.mem_get_info()
        assert total == PROFILES["small-memory"].memory and free <= total
        with pytest.raises(
            torch.OutOfMemoryError, match=rf"out of memory: {8 * GIB} bytes wanted, \d+ of {total} free"
        ):
            device.zeros((2 * GIB,), torch.float32)  # more than the host has to spare: it is never asked
        x = torch.zeros(total // 16, device="simchip")
        with pytest.raises(torch.OutOfMemoryError):
            torch.cat([x] * 8)  # a result whose size nobody knew before
        assert device.free_memory() == free - total // 4
        assert (x + 1).sum().item() == total // 16


def test_the_peak_is_kept_until_it_is_reset() -> None:
    with opened() as device:
        module: Any = device.module
        module.reset_peak_memory_stats()
        base = module.memory_allocated()
        torch.zeros(1000, device="simchip")
        assert module.max_memory_allocated() == base + 4000
        module.reset_peak_memory_stats()
        assert module.max_memory_allocated() == module.memory_allocated() == used()


def test_planted_leaks_grow_and_a_planted_driver_lies() -> None:
    with opened("simchip:clean+leaks=2+memory-misreported") as device:
        base = used()
        for _ in range(10):
            torch.zeros(1000, device="simchip")
        assert used() == base + 5 * 4000
        assert device.module.mem_get_info() == (GIB, GIB)
    with opened():
        assert used() == base, "a chip that is healthy again has what had leaked"
        torch.zeros(1000, device="simchip")
        assert used() == base


def test_running_out_untyped() -> None:
    with opened("simchip:small-memory+oom-untyped"), pytest.raises(RuntimeError, match="error code 2") as raised:
        torch.zeros(GIB, device="simchip")
    assert not isinstance(raised.value, torch.OutOfMemoryError)
