"""Huawei Ascend: npu-smi and hccn_tool.

Traps: `NPU` numbers a card and `Chip` a device on it; 910C prints power for its first device only; in `-t common` the
line `Chip ID` opens a block, in `-t usages` it closes one; rows of the MCU are no devices; MB are of 2**20 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from twinline.cards import quantity
from twinline.cards.ask import Ask, empty, table
from twinline.cards.card import Finding, Reading
from twinline.cards.fields import Cell, Fields, card, pair
from twinline.cards.headers import bare
from twinline.cards.listings import Entry, blocks, entries, gathered
from twinline.cards.matrix import matrix
from twinline.cards.tables import every, tables
from twinline.cards.text import clipped, said

VENDOR = "huawei"
# `Device` is the number by which programs count. Training chips have HBM and, some, DDR beside it; inference chips have
# one memory, which is called Memory-Usage.
OWN = {"memoryusage": "ddr_pair", "hbmusage": "memory_pair", "ddrcapacity": "ddr_total", "device": "logical"}
DRIVER = (r"npu-smi\s.*\bVersion:\s*([^\s|]+)",)


def _memory(fields: Fields) -> Fields:
    """HBM where there is some; the other memory on chips without HBM."""
    out = dict(fields)
    other, other_total = out.pop("ddr_pair", None), out.pop("ddr_total", None)
    if other is not None and ("memory_pair" not in out or _none(out["memory_pair"])):
        out["memory_pair"] = other
    if other_total is not None:
        out.setdefault("memory_total", other_total)
    return out


def _none(cell: Cell) -> bool:
    both = pair(cell.text)
    return both is not None and quantity.memory(both[1], cell.unit) == 0


def info(text: str, command: str) -> Reading:
    return table(VENDOR, "npu-smi", text, OWN, DRIVER, mend=_memory)


def mapping(text: str, command: str) -> Reading:
    """`npu-smi info -m`: card, device on it, and the number that programs use. The MCU's rows have none."""
    found = [fields for fields in every(tables(text, OWN).records, process=False) if "logical" in fields]
    cards = tuple(card(VENDOR, "npu-smi", fields) for fields in found if said(fields["logical"].text))
    return Reading(cards=cards, findings=() if cards else (empty(VENDOR, "npu-smi", text),))


def common(text: str, command: str) -> Reading:
    """A block begins at `Chip ID`; the MCU's, which begins at `Chip Name`, is left out."""
    split = blocks(entries(text), lambda entry: bare(entry.key) in ("chipid", "chipname"))
    return _devices(text, split)


def usages(text: str, command: str) -> Reading:
    """A block ends at `Chip ID`."""
    found, block = [], []
    for entry in entries(text):
        block.append(entry)
        if bare(entry.key) == "chipid":
            found.append(block)
            block = []
    return _devices(text, found)


def board(text: str, command: str) -> Reading:
    """One device: its identity (the die's number, with blanks in it) and its bus address."""
    return _devices(text, [list(entries(text))])


def _devices(text: str, split: Iterable[list[Entry]]) -> Reading:
    owners = {entry.value for entry in entries(text) if bare(entry.key) == "npuid"}
    cards = []
    for block in split:
        fields = gathered(block, OWN)
        named = fields.get("name")
        if "device" in fields and len(owners) == 1 and not (named and named.text.casefold() == "mcu"):
            fields["card"] = Cell(next(iter(owners)))
            cards.append(card(VENDOR, "npu-smi", _memory(fields)))
    return Reading(cards=tuple(cards), findings=() if cards else (empty(VENDOR, "npu-smi", text),))


def topology(text: str, command: str) -> Reading:
    return matrix(VENDOR, "npu-smi", text, {"HCCS": "direct", "HCCS_SW": "direct", "SIO": "direct"})


def links(text: str, command: str) -> Reading:
    """The state of a device's HCCS links: a finding if it is not well."""
    states = [e.value for e in entries(text) if bare(e.key) == "hccshealthstatus"]
    bad = [state for state in states if state.casefold() != "ok" and said(state)]
    return _links("npu-smi", f"HCCS links of {_which(command)} are not well", bad)


def network(text: str, command: str) -> Reading:
    """The state of a card's network port: a finding if its link is down."""
    states = [e.value for e in entries(text) if bare(e.key) == "linkstatus"]
    return _links("hccn_tool", f"the network port of {_which(command)} has no link", [s for s in states if s != "UP"])


def _links(tool: str, message: str, bad: list[str]) -> Reading:
    return Reading(
        findings=tuple(
            Finding(kind="not-available", vendor=VENDOR, tool=tool, message=message, text=clipped(one)) for one in bad
        )
    )


def _which(command: str) -> str:
    return "card " + "/".join(re.findall(r"-[ic] (\w+)", command))


ASKS = (
    Ask("npu-smi info", info),
    Ask("npu-smi info -m", mapping),
    Ask("npu-smi info -t topo", topology),
    Ask("npu-smi info -t common -i NPU", common, each="card", lacks=("temperature", "utilisation")),
    Ask("npu-smi info -t usages -i NPU", usages, each="card", lacks=("memory_total", "utilisation")),
    Ask("npu-smi info -t board -i NPU -c CHIP", board, each="device", lacks=("uuid",)),
    Ask("npu-smi info -t hccs -i NPU -c CHIP", links, each="device"),
    Ask("hccn_tool -i NPU -link -g", network, each="card"),
)
