"""The recorded outputs, and which reader reads each."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

import msgspec
import yaml

from twinline.cards.ask import Reader
from twinline.cards.card import Card, Reading
from twinline.cards.gpustack import detected

FOLDER = Path(__file__).parent / "recorded"


class Recording(msgspec.Struct, frozen=True):
    """One output: `extent` says how much of what the tool prints was recorded."""

    id: str
    vendor: str
    chip: str
    command: str
    extent: str
    source: str

    @property
    def text(self) -> str:
        return _text(self.id)


@cache
def _text(identifier: str) -> str:
    return (FOLDER / f"{identifier}.txt").read_text("utf-8")


@cache
def recordings() -> dict[str, Recording]:
    found = msgspec.convert(yaml.safe_load((FOLDER / "index.yaml").read_text("utf-8")), list[Recording])
    return {one.id: one for one in found}


# vendor -> reader -> how the ids of its recordings begin.
READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "huawei": {
        "info": ("npu-smi-info-9", "npu-smi-info-3", "npu-smi-info-processes", "npu-smi-broken"),
        "mapping": ("npu-smi-info-m-",),
        "common": ("npu-smi-common",),
        "usages": ("npu-smi-usages",),
        "board": ("npu-smi-board",),
        "network": ("hccn-tool",),
        "links": ("npu-smi-hccs",),
        "topology": ("npu-smi-topo",),
    },
    "hygon": {"read": ("hy-smi", "rocm-smi-json-hygon")},
    "amd": {"rocm": ("rocm-smi",), "static": ("amd-smi-static",)},
    "cambricon": {"info": ("cnmon-table",), "written": ("cnmon-json",)},
    "iluvatar": {"query": ("ixsmi-csv",), "info": ("ixsmi-table",)},
    "metax": {"info": ("mx-smi-table",), "topology": ("mx-smi-topo",), "names": ("mx-smi-L",)},
    "moorethreads": {"info": ("mthreads-gmi",)},
    "kunlunxin": {"info": ("xpu-smi-table",), "detail": ("xpu-smi-q",)},
    "enflame": {"info": ("efsmi-l300", "efsmi-s60g"), "detail": ("efsmi-q",), "monitor": ("efsmi-dmon",)},
    "intel-gaudi": {"info": ("hl-smi",)},
    "intel-xpu": {"discovery": ("intel-xpu",)},
    "nvidia": {"query": ("nvidia-smi-csv",), "whole": ("nvidia-smi-xml",), "topology": ("nvidia-smi-topo",)},
    "biren": {"query": ("brsmi",)},
    "t-head": {"query": ("ppu-smi",)},
}


def reader(one: Recording) -> Reader:
    if one.id.startswith("gpustack-detect"):
        return lambda text, command: detected(text)
    module = importlib.import_module(f"twinline.cards.vendors.{one.vendor.replace('-', '_')}")
    name = next(name for name, starts in READERS[one.vendor].items() if one.id.startswith(starts))
    found: Reader = getattr(module, name)
    return found


def read(identifier: str) -> Reading:
    one = recordings()[identifier]
    return reader(one)(one.text, one.command)


def line(card: Card) -> str:
    """A card in one line: card/device/logical, chip, name, address, health, MiB, load, temperature, watts, and what
    else there is."""

    def shown(value: object, unit: str = "") -> str:
        return "-" if value is None else (f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}")

    def mib(count: int | None) -> str:
        return "-" if count is None else f"{count / 2**20:.8g}"

    parts = [
        f"{shown(card.card)}/{shown(card.device)}/{shown(card.logical)}",
        shown(card.chip),
        shown(card.name),
        shown(card.bus),
        card.health,
        f"{mib(card.memory_used)}/{mib(card.memory_total)} MiB",
        shown(card.utilisation, "%"),
        shown(card.temperature, "C"),
        f"{shown(card.watts)}/{shown(card.watt_limit)} W",
    ]
    for name in ("uuid", "serial", "driver"):
        if getattr(card, name) is not None:
            parts.append(f"{name} {getattr(card, name)}")
    if card.processes is not None:
        parts.append("pids " + (" ".join(f"{p.pid}:{mib(p.memory)}" for p in card.processes) or "none"))
    return "; ".join(parts)
