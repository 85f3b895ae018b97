"""fleet.yaml: what a fleet is to be, read and checked whole (docs/fleets.md).

Owns the file's fields, their defaults and what must hold between them. Must not know what runs at present.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from twinline.lines.fleet import home, kinds
from twinline.lines.fleet.lines import LineReader
from twinline.lines.fleet.marked import Fault, FileFaults, Section, nearest, read
from twinline.lines.roster import GatewaySpec, Goals, ModelSpec
from twinline.lines.spec import LineSpec

POLICIES = ("fastest", "cheapest", "weighted", "prefer")
EMBEDDED = "tiny-r1"
DRAIN_SECONDS = 30.0
LONGEST = 1 << 20  # bytes of a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is wanted. `lines` are in the file's order.

    `surge` holds the lines whose replicas are replaced new one first; `notes` are lines left out because they are
    `optional` and cannot run here, by name, with the reason. `doubts` are what may be meant otherwise and holds all
    the same. `drain_seconds` is how long a line that is taken away may finish what it has.
    """

    name: str
    models: tuple[ModelSpec, ...]
    lines: tuple[LineSpec, ...]
    gateway: GatewaySpec
    surge: frozenset[str] = frozenset()
    drain_seconds: float = DRAIN_SECONDS
    notes: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[Fault, ...] = ()

    def line(self, name: str) -> LineSpec | None:
        return next((spec for spec in self.lines if spec.name == name), None)


def embedded() -> Path:
    """The folder of the demonstration model that comes with the package."""
    return Path(str(resources.files("twinline"))) / "models" / EMBEDDED


def name_of(path: Path) -> str:
    """The name of the fleet in a file whose other fields may be wrong, or lack variables here. Raises OSError, or
    FileFaults if it is no fleet file at all or its name is none."""
    top = _top(path)
    others = len(top.faults)
    name = _name(top, path.stem)
    if faults := top.faults[others:]:
        raise FileFaults(path, faults)
    return name


def _name(top: Section, default: str) -> str:
    name = top.get("name", kinds.text, default)
    if not home.NAME.fullmatch(name):
        whose = "" if "name" in top.values else " (it is the file's, as the file gives none)"
        top.fault("name", f"expected letters, digits, '.', '_' and '-', not {name!r}{whose}: it names a folder")
    return name


def _top(path: Path) -> Section:
    """All of it. Of a file that is not a fleet's at all nothing is quoted: whoever may apply one by the management API
    names a file of this machine, and need not be one who may read it."""
    top = read(path, _text(path))
    if top.values.keys().isdisjoint(("models", "lines")):
        raise FileFaults(path, [Fault(1, "expected models: and lines:, it has neither")])
    return top


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(LONGEST + 1)  # some give without end
    if len(data) > LONGEST:
        raise FileFaults(path, [Fault(1, f"longer than {LONGEST} bytes: no fleet's file is")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFaults(path, [Fault(1, f"not text in UTF-8: {error.reason} at byte {error.start}")]) from None


def load(path: Path, environ: Mapping[str, str]) -> Fleet:
    """Reads the fleet file. Raises OSError, or FileFaults with every mistake in it."""
    top = _top(path)
    fleet = _Reader(path, top, environ).fleet()
    if top.faults:
        raise FileFaults(path, top.faults)
    return fleet


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path, top: Section, environ: Mapping[str, str]) -> None:
        self.top = top
        self.folder = path.resolve().parent
        self.environ = environ
        self.default_name = path.stem

    def fleet(self) -> Fleet:
        top = self.top
        name = _name(top, self.default_name)
        drain = top.get("drain_seconds", kinds.number(0), DRAIN_SECONDS)
        currency = top.get("currency", kinds.currency, None)
        models, lines, gateway = top.section("models"), top.section("lines"), top.section("gateway")
        top.finish()
        if not lines.values:
            top.fault("lines", "a fleet needs at least one line")
        reader = LineReader(self.folder, self.environ, list(models.values), currency, embedded(), EMBEDDED)
        specs = [spec for line, section in lines.sections() if (spec := reader.line(line, section)) is not None]
        named = (
            models.values or {spec.model: (0, None) for spec in specs} or dict.fromkeys(reader.models_named, (0, None))
        )
        made = [self._model(model, models.section(model), lines, reader) for model in named]
        for model in named:
            self._alike(lines, [spec for spec in specs if spec.model == model])
        return Fleet(
            name=name,
            models=tuple(made),
            lines=tuple(specs),
            gateway=self._gateway(gateway, reader.currency or "USD"),
            surge=frozenset(reader.surge),
            drain_seconds=drain,
            notes=reader.notes,
            doubts=tuple(reader.doubts),
        )

    def _model(self, name: str, section: Section, lines: Section, reader: LineReader) -> ModelSpec:
        mine = reader.of_model.get(name, [])
        text = section.get("text", kinds.text, None)
        if text is None:
            folder = next((Path(w) for line in mine if (w := reader.weights.get(line)) and Path(w).is_dir()), None)
            if folder is None and name == EMBEDDED:
                folder = embedded()
            if folder is None:
                section.fault(None, "text: needs the folder of its tokenizer, as no line of it loads a model folder")
        else:
            folder = embedded() if text == "embedded" else self._path(section, "text", text)
        if folder is not None and not any(
            (folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")
        ):
            section.fault("text", f"there is no tokenizer in {folder}")
        goals = section.section("goals")
        policy = section.get("policy", kinds.choice(POLICIES), "cheapest")
        order = section.get("order", kinds.names, ())
        for line in order:
            if line not in mine:
                section.fault("order", f"model {name} has no line {line!r}{nearest(line, mine)}")
        if order and policy != "prefer":
            section.fault("order", f"an order is for the policy prefer; this model's is {policy}")
        if policy == "prefer" and not order and "policy" in section.values:
            section.fault("policy", "prefer needs an order: a list of lines, the first preferred")
        positive = kinds.number(0, above=True)
        spec = ModelSpec(
            name=name,
            text=str(folder),
            policy=policy,
            order=order,
            goals=Goals(
                ttft_seconds=goals.get("ttft_seconds", positive, Goals().ttft_seconds),
                inter_token_seconds=goals.get("inter_token_seconds", positive, Goals().inter_token_seconds),
            ),
            label=section.get("label", kinds.text, "demonstration model" if folder == embedded() else None),
        )
        goals.finish()
        section.finish()
        if not mine:
            section.fault(None, "no line serves this model")
        return spec

    def _alike(self, lines: Section, specs: list[LineSpec]) -> None:
        """A name gives texts or vectors, and vectors that compare: a client that stores them cannot tell them apart."""
        embed = [spec for spec in specs if spec.embeds]
        for spec in specs:
            if embed and not spec.embeds:
                what = f"it generates, and line {embed[0].name} of the same model gives vectors: give it another model"
                lines.section(spec.name).fault("embeds", what)
        for spec in embed[1:]:
            if spec.weights_class != embed[0].weights_class:
                lines.section(spec.name).fault(
                    "weights_class",
                    f"{spec.weights_class} where line {embed[0].name} has {embed[0].weights_class}: vectors do not "
                    "compare; give it another model or, if they do compare, the same weights_class",
                )

    def _path(self, section: Section, name: str, value: str) -> Path | None:
        try:
            return kinds.path(self.folder, value)
        except ValueError as error:
            section.fault(name, str(error))
            return None

    def _gateway(self, section: Section, currency: str) -> GatewaySpec:
        default = GatewaySpec()
        wants: dict[str, Any] = {
            "host": kinds.text,
            "port": kinds.whole(1, 65535),
            "workers": kinds.whole(1, 256),
            "keys": kinds.choice(("required", "off")),
            "admin_key_env": kinds.text,
            "tls_certificate": kinds.text,
            "tls_key": kinds.text,
            "max_body_bytes": kinds.whole(1024),
            "queue_requests": kinds.whole(0),
            "queue_seconds": kinds.number(0, above=True),
            "access_log": kinds.flag,
            "log_prompts": kinds.flag,
            "log_format": kinds.choice(("text", "json")),
        }
        given = {name: section.get(name, kind, getattr(default, name)) for name, kind in wants.items()}
        section.finish()
        loopback = is_loopback(given["host"])
        if "keys" not in section.values and not loopback:
            given["keys"] = "required"
        if given["keys"] == "off" and not loopback:
            section.fault("keys", f"keys cannot be off at {given['host']}: anybody could use it; write keys: required")
        if (given["tls_certificate"] is None) != (given["tls_key"] is None):
            missing = "tls_key" if given["tls_key"] is None else "tls_certificate"
            section.fault("tls_key" if given["tls_key"] else "tls_certificate", f"TLS needs {missing} too")
        for name in ("tls_certificate", "tls_key"):
            if given[name] is not None:
                path = self._path(section, name, given[name])
                given[name] = str(path)
                if path is not None and not path.is_file():
                    section.fault(name, f"there is no file {path}")
        admin = given["admin_key_env"]
        if admin is not None and not self.environ.get(admin):
            section.fault("admin_key_env", f"the environment variable {admin} {kinds.NOT_SET}")
        return GatewaySpec(currency=currency, **given)


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
