"""A look at this node: which tools there are, what they print, and what that makes of cards, links and findings.

Owns whom to ask, in what order and with what patience, and what a tool's failure is called. Must not know any vendor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import msgspec

from twinline.cards import gpustack
from twinline.cards.ask import Ask
from twinline.cards.card import Card, Finding, Reading, Topology, Trouble
from twinline.cards.execute import Processes, Ran, Runner
from twinline.cards.fields import identity
from twinline.cards.identity import INSTALLED, PCI, Sighting, Sign, Software, printed_by, sightings, signs
from twinline.cards.join import joined
from twinline.cards.text import clipped
from twinline.cards.vendors import READERS, asks
from twinline.cards.vendors.processor import PROC, processor
from twinline.facts.chips import load

PATIENCE = 10.0  # seconds for one command; npu-smi takes 2 to 4 on a busy node
AT_ONCE = 8
HEEDED_SECONDS = 0.2  # a signal may come just before a wait, which does not end for it: each is this long


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """All that a look found. The processor is the last of the cards."""

    cards: tuple[Card, ...]
    topologies: tuple[Topology, ...]
    findings: tuple[Finding, ...]
    signs: tuple[Sign, ...]


class _Answer(msgspec.Struct, frozen=True):
    vendor: str
    ask: Ask
    reading: Reading
    text: str = ""


def look(
    runner: Runner | None = None,
    *,
    patience: float = PATIENCE,
    pci: Path = PCI,
    proc: Path = PROC,
    software: Software = INSTALLED,
) -> Seen:
    """Looks at the node once. Never raises for what tools do: what went wrong is a finding."""
    runner = runner or Processes()
    seen = sightings(pci)
    asked = _asked(seen, runner)
    with ThreadPoolExecutor(AT_ONCE) as pool, _ended_early(runner, pool):
        first = [(vendor, ask, ask.command) for vendor, ask in asked if ask.each == "node"]
        questions = _Questions(runner, patience)
        answers = _all(pool, questions, first)
        answers = _one_owner(answers)
        second = list(_following(asked, answers))
        answers += _all(pool, questions, second)
    cards, contradictions = joined(answer.reading.cards for answer in answers)
    findings = [finding for answer in answers for finding in answer.reading.findings]
    spoken = {card.vendor for card in cards}
    if runner.find(gpustack.TOOL) and {one.vendor for one in seen if one.sure} - spoken:
        other = _read(runner.run(gpustack.COMMAND.split(), patience), gpustack.TOOL)
        cards, more = joined([cards, tuple(card for card in other.cards if card.vendor not in spoken)])
        findings += [*other.findings, *more]
    unseen, missing = _silent(seen, cards, runner)
    return Seen(
        cards=(*_ordered(cards), *unseen, processor(proc)),
        topologies=_topologies(answers),
        findings=_once((*missing, *findings, *contradictions)),
        signs=signs(seen, software),
    )


@contextmanager
def _ended_early(runner: Runner, pool: ThreadPoolExecutor) -> Iterator[None]:
    """Where a look is interrupted, tools end with it: none may hold Ctrl-C up, nor outlive this program."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.stop()
        raise


def _read(ran: Ran, tool: str) -> Reading:
    if ran.trouble == "":
        return gpustack.detected(ran.out)
    return Reading(findings=(_failure("", tool, ran),))


def _asked(seen: Sequence[Sighting], runner: Runner) -> list[tuple[str, Ask]]:
    """All questions to tools that are here; of vendors whose tools share a name, those that the bus shows, if any."""
    catalog, on_bus = load(), {one.vendor for one in seen}
    chosen = []
    for vendor in READERS:
        for ask in asks(vendor):
            owners = {other for other in READERS for tool in catalog.vendors[other].tools if tool.name == ask.tool}
            if runner.find(ask.tool) and (vendor in on_bus or not owners & on_bus or owners == {vendor}):
                chosen.append((vendor, ask))
    return chosen


class _Questions:
    """Puts questions to tools. One that hung once is not asked again in this look: its driver hangs."""

    def __init__(self, runner: Runner, patience: float):
        self.runner, self.patience = runner, patience
        self.hung: set[str] = set()

    def put(self, one: tuple[str, Ask, str]) -> list[_Answer]:
        """The answer to (vendor, question, command). A tool that failed may have printed what can be read all the same
        (`One or more commands failed`)."""
        vendor, ask, command = one
        if ask.tool in self.hung:
            return []
        ran = self.runner.run(command.split(), self.patience)
        if ran.trouble == "timeout":
            self.hung.add(ask.tool)
        text = ran.files.get(ask.file, "") if ask.file else ran.out
        if ran.trouble in ("", "failed", "too-long") and text.strip():
            reading = _safely(vendor, ask, text, command)
            if reading.cards or reading.topology or ran.trouble == "":
                more = (_failure(vendor, ask.tool, ran),) if ran.trouble and ask.each == "node" else ()
                findings = (*reading.findings, *more)
                return [_Answer(vendor, ask, msgspec.structs.replace(reading, findings=findings), text)]
        if ask.each != "node" and ran.trouble in ("", "failed"):
            return []  # many chips do not know every question about a single device
        return [_Answer(vendor, ask, Reading(findings=(_failure(vendor, ask.tool, ran, command),)), text)]


def _all(pool: ThreadPoolExecutor, questions: _Questions, asked: Sequence[tuple[str, Ask, str]]) -> list[_Answer]:
    """The answers, in the order of the questions."""
    putting = [pool.submit(questions.put, one) for one in asked]
    while wait(putting, HEEDED_SECONDS).not_done:
        pass
    return [answer for put in putting for answer in put.result()]


def _safely(vendor: str, ask: Ask, text: str, command: str) -> Reading:
    """A reader never raises; if one does, that is a fault of ours which must not hide the other cards."""
    try:
        return ask.read(text, command)
    except Exception as exc:
        message = f"our reader of its output failed ({type(exc).__name__}: {exc}); please report it"
        return Reading(findings=(Finding(kind="unparsable", vendor=vendor, tool=ask.tool, message=message,
                                         text=clipped(text)),))  # fmt: skip


def _failure(vendor: str, tool: str, ran: Ran, command: str = "") -> Finding:
    said = ran.err.strip() or ran.out.strip()
    kinds: dict[str, tuple[Trouble, str]] = {
        "missing": ("missing", "it is not installed"),
        "timeout": ("timeout", "it did not end in time and was stopped"),
        "too-long": ("broken", "it printed without end and was stopped"),
        "permission": ("permission", "it may not be run by this user"),
    }
    if ran.trouble in kinds:
        kind, message = kinds[ran.trouble]
    elif re.search(r"permission|denied|not permitted|insufficient|root|sudo", said, re.IGNORECASE):
        kind, message = "permission", "it needs more rights than this user has"
    elif ran.trouble == "failed" and ran.code is None:
        kind, message = "broken", "it could not be started"
    elif ran.trouble == "failed":
        kind, message = "broken", f"it failed with exit code {ran.code}"
    else:
        kind, message = "broken", "it printed nothing"
    where = f" ({clipped(command, 60)})" if command and command != tool else ""
    return Finding(kind=kind, vendor=vendor, tool=tool, message=message + where, text=clipped(said))


def _one_owner(answers: list[_Answer]) -> list[_Answer]:
    """Where several vendors asked a tool of one name, what it printed says whose it is."""
    kept = []
    for answer in answers:
        alike = [one for one in answers if one.ask.tool == answer.ask.tool]
        rivals = tuple(dict.fromkeys(one.vendor for one in alike))
        owners = printed_by(answer.ask.tool, "\n".join(one.text for one in alike), rivals)
        if len(rivals) == 1 or owners == (answer.vendor,):
            kept.append(answer)
        elif len(owners) > 1 and answer.vendor == owners[0]:
            message = (
                f"it may be the tool of {' or '.join(owners)}, and what it prints does not say; nothing of it is shown"
            )
            doubt = Finding(kind="doubtful", vendor=answer.vendor, tool=answer.ask.tool, message=message,
                            text=clipped(answer.text))  # fmt: skip
            kept.append(msgspec.structs.replace(answer, reading=Reading(findings=(*_failures(answer), doubt))))
    return kept


def _failures(answer: _Answer) -> tuple[Finding, ...]:
    return tuple(one for one in answer.reading.findings if one.kind != "unparsable")


def _once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings without those that say the same of the same tool; a tool without its driver fails at every question."""
    kept: dict[tuple[str, ...], Finding] = {}
    for one in findings:
        same = one.text if one.kind in ("broken", "permission", "timeout") else one.message
        kept.setdefault((one.kind, one.vendor, one.tool, same, one.text), one)
    return tuple(kept.values())


def _following(asked: Iterable[tuple[str, Ask]], answers: Sequence[_Answer]) -> Iterable[tuple[str, Ask, str]]:
    """The questions about single cards and devices, for all that were found."""
    cards, _ = joined(answer.reading.cards for answer in answers)
    for vendor, ask in asked:
        mine = [one for one in cards if one.vendor == vendor and one.card is not None and ask.concerns(one)]
        if ask.each == "card":
            owners = [(number, 0) for number in dict.fromkeys(card.card for card in mine)]
        elif ask.each == "device":
            owners = [(card.card, card.device or 0) for card in mine]
        else:
            continue
        for number, device in owners:
            yield vendor, ask, ask.command.replace("NPU", str(number)).replace("CHIP", str(device))


def _topologies(answers: Iterable[_Answer]) -> tuple[Topology, ...]:
    return tuple(answer.reading.topology for answer in answers if answer.reading.topology)


def _ordered(cards: Iterable[Card]) -> list[Card]:
    order = list(READERS)

    def key(card: Card) -> tuple[int, int, int, str]:
        last = 1 << 31
        vendor = order.index(card.vendor) if card.vendor in order else len(order)
        number, device = card.card, card.device
        return vendor, last if number is None else number, last if device is None else device, card.bus or ""

    return sorted(cards, key=key)


def _passed_over(one: Sighting, seen: Sequence[Sighting], cards: Sequence[Card]) -> bool:
    """Whether a vendor's tool speaks of its other cards on the bus and not of this one: it may have fallen off."""
    mine = [card.bus for card in cards if card.vendor == one.vendor]
    known = {other.bus for other in seen if other.vendor == one.vendor}
    return one.bus not in mine and all(bus in known for bus in mine)


def _silent(seen: Sequence[Sighting], cards: Sequence[Card], runner: Runner) -> tuple[list[Card], list[Finding]]:
    """Cards that the bus shows and no tool speaks of, and a finding for each vendor whose tool is not here."""
    catalog, told = load(), {card.vendor for card in cards}
    quiet = [one for one in seen if one.sure and (one.vendor not in told or _passed_over(one, seen, cards))]
    shown = [
        Card(
            vendor=one.vendor,
            tool="pci",
            name=one.name,
            chip=identity(one.vendor, one.name),
            bus=one.bus,
            reason="it is on the PCI bus, and no tool speaks of it",
        )
        for one in quiet
    ]
    missing = []
    for vendor in dict.fromkeys(one.vendor for one in quiet):
        tools = [tool.name for tool in catalog.vendors[vendor].tools]
        if not any(runner.find(tool) for tool in tools):
            message = (
                f"cards of {catalog.vendors[vendor].name} are on the PCI bus, but {' and '.join(tools)} are not here"
            )
            missing.append(Finding(kind="missing", vendor=vendor, tool=tools[0], message=message))
    return shown, missing
