"""What `gpustack-runtime detect --format json` prints: another project's detector, which asks the makers' libraries.

Owns reading it. Memory is in MiB, `power` is the limit, `power_used` what is drawn. Must not know how it was run.
"""

from __future__ import annotations

import msgspec

from twinline.cards.ask import empty
from twinline.cards.card import Card, Reading
from twinline.cards.fields import Cell, card, condition
from twinline.cards.objects import objects, parsed, text_at

TOOL = "gpustack-runtime"
COMMAND = "gpustack-runtime detect --format json"
# Its names for makers, where they are not ours.
MAKERS = {"ascend": "huawei", "thead": "t-head", "mthreads": "moorethreads", "intel": "intel-xpu"}
PLACES: dict[str, tuple[str, ...]] = {
    "logical": ("index",),
    "name": ("name",),
    "uuid": ("uuid",),
    "driver": ("driver_version",),
    "utilisation": ("cores_utilization",),
    "memory_total": ("memory",),
    "memory_used": ("memory_used",),
    "temperature": ("temperature",),
    "watts": ("power_used",),
    "watt_limit": ("power",),
    "bus": ("appendix", "bdf"),
}
# Ascend's card and device are npu-smi's; elsewhere card_id is the number under /dev/dri, which no maker's tool shows.
ASCEND = {"card": ("appendix", "card_id"), "device": ("appendix", "device_id")}


def detected(text: str) -> Reading:
    """Devices of any maker; `memory_status` is taken for their health."""
    cards = []
    for one in objects(parsed(text)):
        maker = text_at(one, "manufacturer")
        if maker is not None and text_at(one, "index") is not None:
            cards.append(_card(one, MAKERS.get(maker, maker)))
    return Reading(cards=tuple(cards), findings=() if cards else (empty("", TOOL, text),))


def _card(one: dict[str, object], vendor: str) -> Card:
    places = PLACES | (ASCEND if vendor == "huawei" else {"card": ("index",)})
    texts = {field: text_at(one, *path) for field, path in places.items()}
    fields = {f: Cell(t, "MiB" if f.startswith("memory") else None) for f, t in texts.items() if t is not None}
    state, reason = condition(text_at(one, "memory_status"), TOOL, "memory")
    return msgspec.structs.replace(card(vendor, TOOL, fields), health=state, reason=reason)
