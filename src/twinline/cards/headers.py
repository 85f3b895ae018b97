"""The words that tools put over their columns and before their values, and what each means.

Owns the vocabulary and the form that a value under each word has. Must not know how words and values are arranged.
Every word is looked up by name; nothing is ever read by its place alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from twinline.cards.quantity import NUMBER
from twinline.cards.text import ABSENT

_UNIT = re.compile(r"[(\[]\s*(%|W|mW|°?C|℃|[KMGT]i?B|B|Bytes)\s*[)\]]\s*$", re.IGNORECASE)

# Word, without case and punctuation -> field. A tool that means something else gives its own words first.
WORDS: dict[str, str] = {
    **dict.fromkeys(("npu", "npuid", "gpu", "hcu", "dcu", "card", "cardnum", "xpu", "aip", "dev", "devid", "id",
                     "index", "board", "device"), "card"),
    **dict.fromkeys(("chip", "chipid"), "device"),
    "chiplogicid": "logical",
    **dict.fromkeys(("name", "devname", "productname", "cardseries", "chipname", "devicename", "marketname"), "name"),
    **dict.fromkeys(("busid", "pcibus", "pcibusid", "bdf", "pciebusinfo", "gpubusid", "pcibdfaddress", "pcie"), "bus"),
    **dict.fromkeys(("uuid", "uniqueid", "vdieid", "dieid", "devuuid"), "uuid"),
    **dict.fromkeys(("sn", "devsn", "serialnumber", "serial", "gpuserial"), "serial"),
    **dict.fromkeys(("health", "gpustate"), "health"),
    **dict.fromkeys(("power", "avgpwr", "pwr", "powerdraw", "npurealtimepower", "curpower",
                     "averagegraphicspackagepower", "currentsocketgraphicspackagepower"), "watts"),
    **dict.fromkeys(("pwrusagecap",), "watts_pair"),
    **dict.fromkeys(("pwrcap", "powercapa", "enforcedpowerlimit", "powerlimit", "maxgraphicspackagepower",
                     "gpupowerlimit"), "watt_limit"),
    **dict.fromkeys(("temp", "temperature", "temperaturegpu", "temperatureaip", "gputemp", "gcutemp", "dtemp",
                     "xpucurrenttemp", "gpucurrenttemp"), "temperature"),
    **dict.fromkeys(("aicore", "aicoreusagerate", "npuutil", "gpuutil", "xpuutil", "aiputil", "util", "gpu%", "%gpu",
                     "hcu%", "dcu%", "gpuuse", "hcuuse", "dcuuse", "utilizationgpu", "utilizationaip", "gcuusage",
                     "dused"), "utilisation"),
    **dict.fromkeys(("memoryusage", "hbmusage"), "memory_pair"),
    **dict.fromkeys(("memorytotal", "vramtotalmemory", "totalsize", "memsize", "hbmcapacity"), "memory_total"),
    **dict.fromkeys(("memoryused", "vramtotalusedmemory", "usedsize", "memusage"), "memory_used"),
    **dict.fromkeys(("driverversion", "driver"), "driver"),
    **dict.fromkeys(("pid", "processid"), "pid"),
    **dict.fromkeys(("processname", "commandline"), "process_name"),
    **dict.fromkeys(("processmemory", "gpumemory", "mlumemoryusage", "usage", "gpumemoryusage"), "process_memory"),
}  # fmt: skip
# Words that belong to tables of cards and mean nothing here.
KNOWN = frozenset(
    "fan perf firmware vf eccerror sriov mode computemode computem persistencem dispa volatileuncorrecc clocksm "
    "clockmem "
    "lpm bootfwver ecc gcuvirt persistm sgpum hugepagesusage node ids partitions sclk mclk vram% dec% enc% phyid "
    "devicetype pcielanewidth mpccapable eccmode sip dpm mused mclk txpci rxpci chiplogicid mi type".split()
)

_ABSENT = f"(?:{ABSENT})"
# A number without a unit of its own has none of another quantity behind it: `106` is no temperature in `106 W`.
_BARE = r"(?!\s{0,3}(?:m?W|%|°|℃|C|[KMGT]i?B|MHz)(?![A-Za-z]))"
_MEMORY = rf"{NUMBER}(?:\s?[KMGT]i?[Bb]?|\s?[Bb]|{_BARE})"
_WATT = rf"{NUMBER}(?:\s?m?W|{_BARE})"
BUS = r"(?:[0-9A-Fa-f]{1,8}:)?[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]"
TEXT = r"(?:/|[^\s/]\S*(?: \S+)*?)"

# Field -> the form of its values. Texts may hold single blanks, so two must follow them.
FORMS: dict[str, str] = {
    "card": r"[0-9]{1,5}",
    "device": r"[0-9]{1,5}",
    "logical": rf"[0-9]{{1,5}}|{_ABSENT}",
    "bus": rf"{BUS}|{_ABSENT}",
    "watts": rf"{_WATT}|{_ABSENT}",
    "watt_limit": rf"{_WATT}|{_ABSENT}",
    "watts_pair": rf"(?:{_WATT}|{_ABSENT})\s*/\s*(?:{_WATT}|{_ABSENT})|{_ABSENT}",
    "temperature": rf"{NUMBER}(?:\s?(?:°?\s?C|℃|°)|{_BARE})|{_ABSENT}",
    "utilisation": rf"{NUMBER}(?:\s?%|{_BARE})|{_ABSENT}",
    "memory_pair": rf"(?:{_MEMORY}|{_ABSENT})\s*/\s*(?:{_MEMORY}|{_ABSENT})|{_MEMORY}\s?\({_MEMORY}\)|{_ABSENT}",
    "memory_total": rf"{_MEMORY}|{_ABSENT}",
    "memory_used": rf"{_MEMORY}|{_ABSENT}",
    "process_memory": rf"{_MEMORY}|{_ABSENT}",
    "pid": r"[0-9]{1,10}",
    "health": r"[^\W\d_][^\s:]*(?: [^\s:]+){0,3}",
    "uuid": r"\S+",
    "serial": r"\S+",
}
FORMS["ddr_pair"] = FORMS["memory_pair"]
UNKNOWN = rf"{_MEMORY}\s*/\s*{_MEMORY}|{TEXT}"


class Header(msgspec.Struct, frozen=True):
    """One word over a column: as printed, what it means (None: nothing here), and the unit in its brackets."""

    printed: str
    field: str | None
    unit: str | None
    known: bool


def bare(word: str) -> str:
    """`HBM-Usage(MB)` -> `hbmusage`; the percent sign stays, since `HCU` is a number and `HCU%` a load."""
    return re.sub(r"[^0-9a-z%]+", "", _UNIT.sub("", word.strip()).lower())


def header(word: str, own: Mapping[str, str] = {}) -> Header:
    """What a word means to a tool with `own` words: `{"mem": "memory_total MiB"}` names the field and the unit that the
    tool leaves out; an empty text says that the word means nothing there."""
    name = bare(word)
    field, _, assumed = (own[name] if name in own else WORDS.get(name, "")).partition(" ")
    unit = _UNIT.search(word.strip())
    known = bool(field) or name in own or name in KNOWN
    return Header(word, field or None, unit[1] if unit else assumed or None, known)
