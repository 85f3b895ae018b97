"""Which faults can be planted in a simulated chip: `simchip:clean+NAME[=NUMBER]`.

Owns the list. What each does stands in the files it is gathered from.
"""

from __future__ import annotations

from twinline.engine.devices.simulated import breaking, wrong_functions, wrong_memory, wrong_places, wrong_products
from twinline.engine.devices.simulated.fault import Fault

FAULTS: dict[str, Fault] = {
    one.name: one
    for one in (*wrong_products.ALL, *wrong_functions.ALL, *wrong_places.ALL, *wrong_memory.ALL, *breaking.ALL)
}
