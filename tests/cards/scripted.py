"""A machine whose tools print what a test says, and whose PCI bus holds what a test puts there."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from twinline.cards.execute import Ran
from twinline.cards.identity import Software


class Script:
    """Answers by command; a tool is there if any of its commands has an answer. Other commands of it fail."""

    def __init__(self, answers: Mapping[str, str | Ran]):
        self.answers = answers
        self.asked: list[str] = []
        self.lock = threading.Lock()
        self.stopped = False

    def find(self, tool: str) -> str | None:
        return f"/usr/bin/{tool}" if any(command.split()[0] == tool for command in self.answers) else None

    def run(self, command: Sequence[str], timeout: float) -> Ran:
        text = " ".join(command)
        with self.lock:
            self.asked.append(text)
        answer = self.answers.get(text)
        if answer is None:
            return Ran(code=2, err="unknown option", trouble="failed")
        return answer if isinstance(answer, Ran) else Ran(code=0, out=answer)

    def stop(self) -> None:
        self.stopped = True


def bus(folder: Path, *devices: tuple[str, str, str, str]) -> Path:
    """A PCI bus of (address, vendor, device, class), the numbers as the system writes them, without 0x."""
    folder.mkdir(exist_ok=True)
    for address, vendor, device, pci_class in devices:
        (folder / address).mkdir()
        for name, text in (("vendor", vendor), ("device", device), ("class", pci_class)):
            (folder / address / name).write_text(f"0x{text}\n")
    return folder


def software(version: str | None = None, modules: Sequence[str] = (), fields: Sequence[str] = ()) -> Software:
    return Software(lambda: version, lambda name: name in modules, lambda: frozenset(fields))
