"""NVIDIA: nvidia-smi. The list gives the numbers, the XML the processes and what the driver thinks of a card.

`nounits` leaves MiB out, and no other unit is possible there (nvidia-smi --help-query-gpu).
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

import msgspec

from twinline.cards import quantity
from twinline.cards.ask import Ask, empty, listing
from twinline.cards.card import Card, Condition, Process, Reading
from twinline.cards.fields import Cell, card
from twinline.cards.matrix import matrix
from twinline.cards.text import clipped, plain

VENDOR, TOOL = "nvidia", "nvidia-smi"
END = "</nvidia_smi_log>"
_LOST = re.compile(r"\bGPU (?:is lost|requires reset)", re.IGNORECASE)
OWN = {"memorytotal": "memory_total MiB", "memoryused": "memory_used MiB"}
PLACES: dict[str, tuple[str, ...]] = {
    "name": ("product_name",),
    "uuid": ("uuid",),
    "serial": ("serial",),
    "memory_total": ("fb_memory_usage/total",),
    "memory_used": ("fb_memory_usage/used",),
    "utilisation": ("utilization/gpu_util",),
    "temperature": ("temperature/gpu_temp",),
    "watts": tuple(
        f"{where}/{what}"
        for where in ("gpu_power_readings", "power_readings")
        for what in ("instant_power_draw", "power_draw", "average_power_draw")
    ),
    "watt_limit": tuple(
        f"{where}/{what}"
        for where in ("gpu_power_readings", "power_readings")
        for what in ("current_power_limit", "power_limit")
    ),
}


def query(text: str, command: str) -> Reading:
    return listing(VENDOR, TOOL, text, command, OWN)


def whole(text: str, command: str) -> Reading:
    """`-q -x`. No XML that declares entities is read."""
    try:
        start = (text := plain(text)).find("<")
        if start < 0 or "<!ENTITY" in text:
            raise ElementTree.ParseError
        end = text.rfind(END)  # what the driver says of a card that it cannot reach may follow
        root = ElementTree.fromstring(text[start : end + len(END) if end > 0 else None])
    except (ElementTree.ParseError, ValueError):
        return Reading(findings=(empty(VENDOR, TOOL, text),))
    driver = root.findtext("driver_version")
    cards = tuple(_card(gpu, driver) for gpu in root.iter("gpu"))
    return Reading(cards=cards, findings=() if cards else (empty(VENDOR, TOOL, text),))


def _card(gpu: ElementTree.Element, driver: str | None) -> Card:
    fields = {"bus": Cell(gpu.get("id", ""))}
    for field, paths in PLACES.items():
        texts = [found for path in paths if (found := gpu.findtext(path)) is not None]
        usable = [one for one in texts if quantity.split(one)] if field.startswith("watt") else texts
        if usable:
            fields[field] = Cell(usable[0])
    health, reason = _health(gpu)
    return msgspec.structs.replace(
        card(VENDOR, TOOL, fields, driver), health=health, reason=reason, processes=_processes(gpu)
    )


def _health(gpu: ElementTree.Element) -> tuple[Condition, str]:
    """What the driver would have done to the card, and whether its memory could be mended."""
    if lost := next((text for text in map(str.strip, gpu.itertext()) if _LOST.search(text)), None):
        return "bad", f"nvidia-smi: {clipped(lost.strip('[]'), 60)}"
    failed = (gpu.findtext("remapped_rows/remapped_row_failure") or "").strip().casefold()
    if failed == "yes":
        return "bad", "nvidia-smi: a row of its memory is bad and could not be remapped"
    action = (gpu.findtext("gpu_recovery_action") or "").strip()
    if action.casefold() == "none":
        return "ok", f"nvidia-smi: recovery action {clipped(action, 60)}"
    if action.casefold() in ("", "n/a"):
        return "unknown", "nvidia-smi does not say"
    return "bad", f"nvidia-smi: recovery action {clipped(action, 60)}"


def _processes(gpu: ElementTree.Element) -> tuple[Process, ...] | None:
    found = gpu.find("processes")
    if found is None or (not len(found) and (found.text or "").strip().casefold() in ("n/a", "[n/a]")):
        return None
    out = []
    for one in found.iter("process_info"):
        pid = quantity.whole(one.findtext("pid") or "")
        if pid is not None:
            memory = quantity.memory(one.findtext("used_memory") or "")
            out.append(Process(pid=pid, name=clipped(one.findtext("process_name") or "", 80) or None, memory=memory))
    return tuple(out)


def topology(text: str, command: str) -> Reading:
    return matrix(VENDOR, TOOL, text)


ASKS = (
    Ask(
        "nvidia-smi --query-gpu=index,uuid,name,memory.total,memory.used,utilization.gpu,temperature.gpu,power.draw,"
        "power.limit,driver_version --format=csv,noheader,nounits",
        query,
    ),
    Ask("nvidia-smi -q -x", whole),
    Ask("nvidia-smi topo -m", topology),
)
