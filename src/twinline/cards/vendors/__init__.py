"""The vendors whose tools can be read: one file each, imported when asked."""

from __future__ import annotations

import importlib

from twinline.cards.ask import Ask

# vendor -> module with ASKS: tuple[Ask, ...]. The CPU has no tool to ask: `processor.py` reads what the system says.
READERS: dict[str, str] = {
    "nvidia": "twinline.cards.vendors.nvidia",
    "huawei": "twinline.cards.vendors.huawei",
    "metax": "twinline.cards.vendors.metax",
    "moorethreads": "twinline.cards.vendors.moorethreads",
    "biren": "twinline.cards.vendors.biren",
    "kunlunxin": "twinline.cards.vendors.kunlunxin",
    "hygon": "twinline.cards.vendors.hygon",
    "cambricon": "twinline.cards.vendors.cambricon",
    "iluvatar": "twinline.cards.vendors.iluvatar",
    "enflame": "twinline.cards.vendors.enflame",
    "t-head": "twinline.cards.vendors.t_head",
    "amd": "twinline.cards.vendors.amd",
    "intel-xpu": "twinline.cards.vendors.intel_xpu",
    "intel-gaudi": "twinline.cards.vendors.intel_gaudi",
}


def asks(vendor: str) -> tuple[Ask, ...]:
    """What is asked of this vendor's tools, the most telling first; nothing for a vendor that nobody wrote for."""
    path = READERS.get(vendor)
    found: tuple[Ask, ...] = importlib.import_module(path).ASKS if path else ()
    return found
