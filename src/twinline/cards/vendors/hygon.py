"""Hygon: hy-smi, and DTK's rocm-smi, which is the same under another name. Memory is in MiB; AMD's is in bytes."""

from __future__ import annotations

from twinline.cards.ask import Ask
from twinline.cards.card import Reading
from twinline.cards.smi_json import by_card

VENDOR = "hygon"


def read(text: str, command: str) -> Reading:
    return by_card(VENDOR, command.split()[0], text)


ASKS = (
    Ask(
        "hy-smi --showid --showmeminfo vram --showpower --showserial --showuse --showtemp --showproductname "
        "--showuniqueid --json",
        read,
    ),
    Ask("hy-smi --showserial --showmaxpower --showmemavailable --showbus --json", read),
    Ask("hy-smi", read),
    Ask(
        "rocm-smi --showmeminfo vram --showpower --showserial --showuse --showtemp --showproductname --showuniqueid "
        "--json",
        read,
    ),
)
