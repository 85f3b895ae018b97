"""What is asked of a tool, and how its table of cards becomes a reading.

Owns the form of a question and the steps that all table readers share. Must not know any vendor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from twinline.cards import quantity
from twinline.cards.card import Card, Finding, Process, Reading
from twinline.cards.fields import Fields, card
from twinline.cards.lists import listed
from twinline.cards.tables import Table, banner, every, tables
from twinline.cards.text import clipped, plain, said

Reader = Callable[[str, str], Reading]
"""(output, command) -> what it holds. Never raises."""


class Ask(msgspec.Struct, frozen=True):
    """A command of the catalog, and its reader. `each`: once for the node, or for every card or device found before;
    then NPU and CHIP in the command stand for their numbers. `lacks`: only about cards of which one of these is not
    known yet. `file`: it writes there instead of printing."""

    command: str
    read: Reader
    each: Literal["node", "card", "device"] = "node"
    lacks: tuple[str, ...] = ()
    file: str = ""

    def concerns(self, card: Card) -> bool:
        """Whether there is something to learn of a card that earlier answers did not say."""
        return not self.lacks or any(getattr(card, name) is None for name in self.lacks)

    @property
    def tool(self) -> str:
        return self.command.split()[0]


IDENTITY = ("card", "logical", "uuid", "bus", "serial")


def unread(vendor: str, tool: str, rows: Sequence[str], what: str = "does not read under its header") -> list[Finding]:
    """Findings for rows that gave nothing, at most three with their text."""
    found = [Finding(kind="unparsable", vendor=vendor, tool=tool, message=f"a line {what}", text=clipped(row))
             for row in rows[:3]]  # fmt: skip
    if len(rows) > 3:
        found.append(
            Finding(kind="unparsable", vendor=vendor, tool=tool, message=f"{len(rows) - 3} more lines like these")
        )
    return found


def empty(vendor: str, tool: str, text: str) -> Finding:
    """The finding for an output without any card."""
    return Finding(
        kind="broken" if broken(text) else "unparsable",
        vendor=vendor,
        tool=tool,
        message="it printed no card that can be read" if plain(text).strip() else "it printed nothing",
        text=clipped(text),
    )


def broken(text: str) -> bool:
    """Whether a text is a tool's complaint rather than an output in an unknown form."""
    return bool(re.search(r"fail|error|couldn't|cannot|could not|not found|no devices", text, re.IGNORECASE))


def processes(table: Table, text: str) -> dict[tuple[int, int | None], list[Process]] | None:
    """The processes by card and device; None if the text has no list of them."""
    found: dict[tuple[int, int | None], list[Process]] = {}
    for fields in every(table.records, process=True):
        owner = next((quantity.whole(fields[one].text) for one in ("card", "logical") if one in fields), None)
        pid = quantity.whole(fields["pid"].text)
        if owner is None or pid is None:
            continue
        device = quantity.whole(fields["device"].text) if "device" in fields else None
        memory = fields.get("process_memory")
        name = fields.get("process_name")
        one = Process(
            pid=pid,
            name=clipped(name.text, 80) if name and said(name.text) else None,
            memory=quantity.memory(memory.text, memory.unit) if memory else None,
        )
        found.setdefault((owner, device), []).append(one)
    if found or re.search(r"\bno\b[^\n]*process", plain(text), re.IGNORECASE):
        return found
    return None


def table(
    vendor: str,
    tool: str,
    text: str,
    own: Mapping[str, str] = {},
    driver: Sequence[str] = (),
    blanks: int = 2,
    mend: Callable[[Fields], Fields] = lambda fields: fields,
) -> Reading:
    """The cards of a table, the driver from the lines above it, the processes from the table below it."""
    read = tables(text, own, blanks)
    version = banner(text, driver)
    found = [card(vendor, tool, mend(fields), version) for fields in every(read.records, process=False)]
    cards = [one for one in found if any(getattr(one, name) is not None for name in IDENTITY)]
    shown = processes(read, text)
    if shown is not None:
        cards = [_with_processes(one, shown) for one in cards]
    findings = unread(vendor, tool, read.unread)
    findings += unread(vendor, tool, [""] * (len(found) - len(cards)), "does not say which card it is of")
    findings += unread(vendor, tool, read.loose, "stands under no header, so its numbers have no names")
    if not cards and not findings:
        findings.append(empty(vendor, tool, text))
    return Reading(cards=tuple(cards), findings=tuple(findings))


def listing(vendor: str, tool: str, text: str, command: str, own: Mapping[str, str] = {}) -> Reading:
    """The cards of a comma-separated list, its columns named by the command that was asked or by its first line."""
    read = listed(text, command, own)
    cards = tuple(card(vendor, tool, fields) for fields in read.records if fields)
    findings = unread(vendor, tool, read.unread, "does not have the columns that were asked for")
    return Reading(cards=cards, findings=tuple(findings or ([] if cards else [empty(vendor, tool, text)])))


def _with_processes(one: Card, shown: Mapping[tuple[int, int | None], Sequence[Process]]) -> Card:
    """Lists without a device's number speak of the whole card, whose processes then stand at each of its devices."""
    if one.card is None:
        return one
    number = one.logical if one.logical is not None and one.device is None else one.card
    mine = (*shown.get((number, one.device), ()), *(shown.get((number, None), ()) if one.device is not None else ()))
    return msgspec.structs.replace(one, processes=tuple(mine))
