"""What is true of a maker of chips: how its cards are recognised, and the software that they need.

Owns the shapes of those facts. Must not know chips or where facts are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from twinline.facts.evidence import How


class Pci(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`ids` are PCI vendor ids, four hex digits; `devices` names device ids of that vendor by what they are.

    `shared` says that other devices than accelerators carry the vendor id, so that the PCI class must decide too.
    """

    ids: tuple[str, ...]
    devices: dict[str, str] = {}
    shared: bool = False
    evidence: How
    source: str
    note: str = ""


class Markers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What tells this vendor's PyTorch from others': any one that is there is enough, none is imported to look.

    `wheel`: part of `torch.__version__` or of the wheel's version (`+metax`). `modules`: importable modules that only
    this vendor ships. `version_fields`: attributes of `torch.version` that are set, not sure where others set them too.
    `device_names`: how `torch.*.get_device_name` begins. `architectures`: what the device calls its architecture.
    """

    wheel: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    version_fields: tuple[str, ...] = ()
    device_names: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


class Pytorch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The PyTorch side: what to install, what to import, what the device type is called and who else calls it so."""

    package: str
    import_name: str
    device: str
    """The device type as PyTorch spells it."""
    cuda_api: str
    """What `torch.cuda.*` does here."""
    accelerator: str
    """What `torch.accelerator` says here."""
    autoload: str
    """The entry point that PyTorch loads by itself; `none` where the module must be imported."""
    detect: str
    """How a person would make sure."""
    markers: Markers
    evidence: How
    source: str


class Collective(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `torch.distributed` backend, the library behind the name, and the environment variables that it reads."""

    backend: str
    library: str
    env: tuple[str, ...] = ()
    evidence: How
    source: str
    note: str = ""


class Visible(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How devices are shown to a container and to a process; `order` is the trap in their numbering.

    `set` is the environment that shows a process some cards and no others, `{cards}` standing for their numbers; empty
    where no variable takes those. `also` are further variables by which a process may choose devices: beside those of
    `set` they would choose among what is left.
    """

    container: str
    process: str
    set: dict[str, str] = {}
    also: tuple[str, ...] = ()
    order: str = ""
    evidence: How
    source: str

    @property
    def choosing(self) -> frozenset[str]:
        """All variables that choose devices."""
        return frozenset(self.also) | {name for name, value in self.set.items() if "{cards}" in value}


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A management tool: `commands` as typed; `signs` are texts in its output that tell it from a namesake's."""

    name: str
    commands: tuple[str, ...]
    signs: tuple[str, ...] = ()
    evidence: How
    source: str
    note: str = ""


class EngineSupport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of an engine on this vendor's chips. `works` and `breaks` are dated statements of `source`."""

    engine: str
    repository: str
    register: str = ""
    version: str = ""
    works: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    date: str = ""
    evidence: How
    source: str


class Told(msgspec.Struct, frozen=True):
    """A fact in words, for a page: what it is about, the words, how they are known and where they were read."""

    about: str
    text: str
    how: How = "unknown"
    source: str = ""


class Vendor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One vendor's software side; the hardware is in its chips. `unknown` in a text field means: not found."""

    id: str
    name: str
    pci: Pci
    pytorch: Pytorch
    collective: Collective
    visible: Visible
    tools: tuple[Tool, ...]
    triton: str
    graphs: str
    precision: str
    """What the sources say of precisions over all its chips; each chip's own table decides."""
    container: str
    kubernetes: str
    cdi: str = ""
    """The kind under the Container Device Interface, where one is known."""
    ray: str
    engines: tuple[EngineSupport, ...]
    notes: tuple[str, ...] = ()

    @property
    def pci_ids(self) -> tuple[str, ...]:
        """PCI vendor ids, four lower-case hex digits each; empty where none is known."""
        return self.pci.ids

    def told(self) -> Iterator[Told]:
        """All but engines and notes, in words, for a person; what is not known is left out."""
        torch, collective, visible, pci = self.pytorch, self.collective, self.visible, self.pci
        devices = ", ".join(f"{device} {name}" for device, name in pci.devices.items())
        shown = f"container: {visible.container}; process: {visible.process}"
        facts = [
            Told(
                "PCI vendor",
                joined(", ".join(pci.ids), devices and f"devices {devices}", pci.note),
                pci.evidence,
                pci.source,
            ),
            Told(
                "PyTorch",
                f"{torch.package}; import {torch.import_name}; device type {torch.device}",
                torch.evidence,
                torch.source,
            ),
            Told("  torch.cuda", torch.cuda_api),
            Told("  accelerator", torch.accelerator),
            Told("  loads itself", torch.autoload),
            Told("  recognised by", torch.detect),
            Told("collectives", f"{collective.backend} ({collective.library})", collective.evidence, collective.source),
            Told("  variables", joined(", ".join(collective.env), collective.note)),
            Told("visible devices", shown, visible.evidence, visible.source),
            Told("  set for a line", ", ".join(f"{name}={value}" for name, value in visible.set.items())),
            Told("  order", visible.order),
            *(Told(f"tool {t.name}", joined("; ".join(t.commands), t.note), t.evidence, t.source) for t in self.tools),
            Told("Triton", self.triton),
            Told("graphs", self.graphs),
            Told("precisions", self.precision),
            Told("container", self.container),
            Told("Kubernetes", joined(self.kubernetes, self.cdi and f"CDI {self.cdi}")),
            Told("Ray", self.ray),
        ]
        yield from (fact for fact in facts if fact.text not in ("", "unknown"))


def joined(*parts: str) -> str:
    """The parts that are there, as one text."""
    return "; ".join(part for part in parts if part)
