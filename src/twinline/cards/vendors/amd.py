"""AMD: amd-smi and rocm-smi. Memory is in bytes in rocm-smi, in MB of 2**20 in amd-smi."""

from __future__ import annotations

from typing import Any

from twinline.cards.ask import Ask, empty, listing
from twinline.cards.card import Reading
from twinline.cards.fields import Cell, card
from twinline.cards.objects import objects, parsed, text_at
from twinline.cards.smi_json import by_card
from twinline.cards.text import lines

VENDOR = "amd"
# Columns of `amd-smi metric --csv` as its sources name them; no recorded output was found.
METRIC = {
    "gfxactivity": "utilisation",
    "socketpower": "watts",
    "hotspot": "temperature",
    "totalvram": "memory_total MB",
    "usedvram": "memory_used MB",
    "powermanagement": "",
}


def static(text: str, command: str) -> Reading:
    """An array of devices, in newer versions wrapped in `gpu_data`; keys of the driver in either case."""
    found = parsed(text)
    if isinstance(found, dict) and "gpu_data" in found:
        found = found["gpu_data"]
    cards = [card(VENDOR, "amd-smi", _static(one)) for one in objects(found) if text_at(one, "gpu") is not None]
    return Reading(cards=tuple(cards), findings=() if cards else (empty(VENDOR, "amd-smi", text),))


def _static(one: dict[str, Any]) -> dict[str, Cell]:
    places: dict[str, tuple[tuple[str, ...], ...]] = {
        "card": (("gpu",),),
        "name": (("asic", "market_name"),),
        "bus": (("bus", "bdf"),),
        "driver": (("driver", "version"), ("driver", "driver_version")),
        "memory_total": (("vram", "size", "value"), ("vram", "size"), ("vram", "vram_size_mb")),
    }
    fields = {}
    for field, paths in places.items():
        text = next((text for path in paths if (text := text_at(one, *path)) is not None), None)
        if text is not None:
            fields[field] = Cell(text, (text_at(one, "vram", "size", "unit") or "MB") if "memory" in field else None)
    return fields


def metric(text: str, command: str) -> Reading:
    start = next((at for at, line in enumerate(lines(text)) if line.startswith("gpu,")), 0)
    head, *rows = lines(text)[start:] or [""]
    asked = f"amd-smi --query-gpu={head} --format=csv,noheader"
    return listing(VENDOR, "amd-smi", "\n".join(rows), asked, METRIC)


def rocm(text: str, command: str) -> Reading:
    return by_card(VENDOR, "rocm-smi", text)


ASKS = (
    Ask("amd-smi static --json --asic --vram --bus --driver", static),
    Ask("amd-smi metric --csv", metric),
    Ask(
        "rocm-smi -i --showmeminfo vram --showpower --showserial --showuse --showtemp --showproductname --showuniqueid "
        "--json",
        rocm,
    ),
    Ask("rocm-smi", rocm),
)
