"""The engine's handle on devices: which one is opened, what each must offer, and the generic one for unknown chips.

No accelerator is needed: PyTorch's module of a device type is replaced by a pretended one, or the generic device is
laid over the CPU, which then knows the reference ops only.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.tiny import ask, load_tiny, write_checkpoint

from twinline.engine import build as building
from twinline.engine.build import Options, build
from twinline.engine.devices import cpu, device
from twinline.engine.devices.accelerator import Accelerator
from twinline.engine.devices.cpu import Cpu
from twinline.engine.devices.cuda import Cuda
from twinline.engine.devices.device import DEVICES, GENERIC, Device, open_device

MEMBERS = set(Device.__annotations__) | {name for name in vars(Device) if callable(getattr(Device, name))}
MEMBERS = {name for name in MEMBERS if not name.startswith("_")}


class Chip:
    """What a chip's PyTorch plugin offers as `torch.<type>`."""

    def __init__(self, *, available: bool = True) -> None:
        self.available = available

    def is_available(self) -> bool:
        return self.available

    def device_count(self) -> int:
        return 4

    def mem_get_info(self, which: torch.device) -> tuple[int, int]:
        return 1000 + (which.index or 0), 2000


def test_a_device_is_small() -> None:
    assert 5 < len(MEMBERS) <= 16


@pytest.mark.parametrize("path", [*DEVICES.values(), GENERIC])
def test_every_device_offers_every_member(path: str) -> None:
    module, _, name = path.partition(":")
    offered = getattr(importlib.import_module(module), name)
    # `name` and `torch_device` may be set when it is made.
    assert MEMBERS - {"name", "torch_device"} <= set(dir(offered))


# Which device is opened


def test_the_cpu_is_found_by_its_name_and_when_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for name in ("cpu", "auto"):
        opened: object = open_device(name)
        assert isinstance(opened, Cpu)
        assert open_device(name).torch_device == torch.device("cpu")


def test_auto_takes_the_accelerator_that_pytorch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "xpu", Chip())
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu", 0))
    assert open_device("auto").name == "xpu"


@pytest.mark.parametrize("name", ["abacus", "", "a b", "cpu:x", "cuda:-1"])
def test_what_pytorch_does_not_know_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match="is not known to PyTorch: ") as caught:
        open_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["xpu", "xpu:1", "meta", "privateuseone", "vulkan"])
def test_what_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "xpu", Chip(available=False))
    with pytest.raises(ValueError, match=f"device '{name}' is not available on this machine"):
        open_device(name)


def test_a_chip_without_a_file_gets_the_generic_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "xpu", Chip())
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    opened = open_device("xpu:3")
    assert type(opened) is Accelerator
    assert (opened.name, opened.torch_device) == ("xpu", torch.device("xpu", 3))
    assert opened.providers == ("reference",)
    assert opened.free_memory() == 1003  # of its own index
    opened.synchronize()
    assert waited == [opened.torch_device]
    assert opened.capture_rows == ()
    with pytest.raises(device.NotCaptured, match="xpu records no steps"):
        opened.capture(lambda: torch.zeros(1))


def test_an_index_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "xpu", Chip())
    with pytest.raises(ValueError, match="'xpu:9' is not there: this machine has 4 of them"):
        open_device("xpu:9")


@pytest.mark.parametrize(("capability", "first"), [((8, 0), "batched"), ((9, 0), "grouped"), ((12, 0), "batched")])
def test_a_device_type_with_a_file_gets_its_own(
    capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the providers that its generation runs without a look at the host."""
    chip = Chip()
    monkeypatch.setattr(chip, "get_device_capability", lambda device: capability, raising=False)
    monkeypatch.setattr(torch, "cuda", chip)
    opened = open_device("cuda")
    assert type(opened) is Cuda and opened.providers[0] == first and opened.providers[-1] == "reference"


def test_a_vendors_package_is_imported_where_pytorch_has_not_done_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import gives PyTorch the module of its device type."""
    package = tmp_path / "habana_frameworks"
    package.mkdir()
    (package / "torch.py").write_text("import torch\nfrom tests.engine.test_devices import Chip\ntorch.hpu = Chip()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for names in (vars(torch), sys.modules):
        for name in ("hpu", "habana_frameworks", "habana_frameworks.torch"):
            monkeypatch.setitem(names, name, None)  # so that it is gone afterwards
            monkeypatch.delitem(names, name)
    opened = open_device("hpu:2")
    assert (opened.name, opened.torch_device, opened.free_memory()) == ("hpu", torch.device("hpu", 2), 1002)


@pytest.mark.parametrize("there", [False, True])
def test_a_vendors_package_for_a_type_of_others_is_imported_where_nothing_else_is_there(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kunlunxin's makes `cuda` its own."""
    (tmp_path / "torch_xmlir.py").write_text("import torch\ntorch.cuda.available = torch.cuda.theirs = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torch_xmlir", None)
    monkeypatch.delitem(sys.modules, "torch_xmlir")
    chip = Chip(available=there)
    monkeypatch.setattr(chip, "get_device_capability", lambda device: (8, 0), raising=False)
    monkeypatch.setattr(torch, "cuda", chip)
    assert type(open_device("cuda")) is Cuda
    assert hasattr(chip, "theirs") != there


def test_a_type_of_others_needs_nobodys_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Chip(available=False))
    with pytest.raises(ValueError, match=r"^device 'cuda' is not available on this machine"):
        open_device("cuda")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "No module named 'torch_mlu'"),
        ("raise OSError('libcnrt.so: cannot open\\nmore')", "libcnrt.so: cannot open"),
        ("assert False", "AssertionError"),
    ],
)
def test_a_vendors_package_that_cannot_be_imported_is_named(
    source: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is not None:
        (tmp_path / "torch_mlu.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
    words = "a device 'mlu' is Cambricon's and needs torch + torch_mlu (with CNNL and Neuware); import torch_mlu: "
    with pytest.raises(ValueError, match=f"^{re.escape(words + said)}$"):
        open_device("mlu")


# What they do


def generic_over_cpu(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    monkeypatch.setattr(torch.cpu, "mem_get_info", lambda which: (2**30, 2**31), raising=False)
    return Accelerator(torch.device("cpu"))


def test_the_generic_device_tries_a_dtype_and_believes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = generic_over_cpu(monkeypatch)
    assert opened.supports(torch.float32)
    assert opened.supports(torch.bfloat16)
    assert not opened.supports(torch.bool)  # raises: there is no such product
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, **more: ones(*size, **more) * 1.5)
    assert not opened.supports(torch.float32)  # computes, but wrongly


def test_a_model_runs_on_a_chip_without_a_file_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    folder = write_checkpoint(tmp_path)
    outputs = []
    for generic in (False, True):
        if generic:
            monkeypatch.setattr(building, "open_device", lambda name: generic_over_cpu(monkeypatch))
        built = load_tiny(folder)
        assert generic == ({choice.provider for choice in built.ops.choices} == {"reference"})
        requests = [ask(f"r{i}", 5 + i, max_tokens=12) for i in range(2)]
        for request in requests:
            built.engine.submit(request)
        while built.engine.scheduler.has_work:
            built.engine.step()
        outputs.append([request.output for request in requests])
    assert outputs[0] == outputs[1]
    assert [len(output) for output in outputs[0]] == [12, 12]


def test_a_dtype_that_the_device_cannot_is_refused_with_those_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = generic_over_cpu(monkeypatch)
    monkeypatch.setattr(opened, "supports", lambda dtype: dtype == torch.float16)
    monkeypatch.setattr(building, "open_device", lambda name: opened)
    with pytest.raises(ValueError, match="does not compute in float32: use --dtype float16"):
        build(write_checkpoint(tmp_path), Options(), lambda outputs: None)


GIB = 2**30
AVAILABLE_8 = "MemAvailable: 8388608 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\n" + AVAILABLE_8}, 8 * GIB),
        (
            {
                "/proc/meminfo": AVAILABLE_8,
                "memory.max": f"{3 * GIB}\n",
                "memory.current": f"{GIB}\n",
                "memory.stat": f"anon 7\ninactive_file {GIB // 2}\n",
            },
            5 * GIB // 2,
        ),
        (
            {
                "/proc/meminfo": "MemAvailable: 1048576 kB\n",
                "memory.max": f"{3 * GIB}\n",
                "memory.current": "0\n",
                "memory.stat": "inactive_file 0\n",
            },
            GIB,
        ),
        ({"/proc/meminfo": AVAILABLE_8, "memory.max": "max\n", "memory.current": "5\n"}, 8 * GIB),
        ({"/proc/meminfo": "nothing useful\n"}, 5 * 4096),
        ({}, 5 * 4096),
    ],
    ids=["machine", "container's limit", "machine within it", "no limit", "strange", "no files"],
)
def test_the_cpus_free_memory(files: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_open(path: Any) -> io.StringIO:
        for name, text in files.items():
            if str(path).endswith(name):
                return io.StringIO(text)
        raise FileNotFoundError(path)

    monkeypatch.setattr(cpu, "open", fake_open, raising=False)
    monkeypatch.setattr(cpu.os, "sysconf", {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert Cpu(torch.device("cpu")).free_memory() == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000\n", None), ("250000 100000\n", 2), ("50000 100000\n", 1), ("odd", None)]
)
def test_a_containers_share_of_the_cpus(text: str, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "open", lambda path: io.StringIO(text), raising=False)
    assert cpu._cpu_quota() == expected


def test_the_cpu_computes_in_the_dtypes_of_checkpoints_only() -> None:
    opened = open_device("cpu")
    assert all(opened.supports(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert not opened.supports(torch.int8)
    opened.synchronize()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device that PyTorch calls cuda")
def test_captured_steps_read_their_tensors_anew_each_time() -> None:
    """Two that share their memory, in turns."""
    opened = device.open_device("cuda")
    x = torch.ones(4, device=opened.torch_device)
    steps = [(opened.capture(lambda: (x + 1) * 2), 2), (opened.capture(lambda: (x + 1) * 3), 3)]
    for value in (3.0, 5.0):
        for (replay, result), by in (*steps, *steps[::-1]):
            x.fill_(value)
            replay()
            opened.synchronize()
            assert result.tolist() == [by * (value + 1)] * 4
    assert opened.supports(torch.bfloat16)
    assert opened.free_memory() > 2**30
