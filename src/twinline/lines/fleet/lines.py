"""The `lines:` of a fleet file: one mapping to one LineSpec.

Owns a line's fields, their defaults and the checks of one line. What an engine accepts is its driver's to say.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twinline.facts.chips import UnknownChip
from twinline.facts.chips import load as catalog
from twinline.facts.mistaken import no_model_folder
from twinline.facts.pooling import MODULES
from twinline.lines.cards import check_cards
from twinline.lines.drivers import DRIVERS, driver
from twinline.lines.drivers.driver import FEATURES
from twinline.lines.drivers.gguf import metadata
from twinline.lines.fleet import home, kinds
from twinline.lines.fleet.home import NAME
from twinline.lines.fleet.marked import Fault, Section, nearest
from twinline.lines.http import Target
from twinline.lines.spec import LineSpec, weights_class

FROM_FILES = frozenset({"native", "llamacpp", "simulated"})  # engines that load nothing by name
PATHS = frozenset({"executable", "tokenizer"})  # options of drivers that name files
GGUF_POOLINGS = (1, 2, 3)  # `enum llama_pooling_type`: mean, cls, last
CPU, UNKNOWN = "cpu", "unknown"  # the chip of a line that names none: of one that is started here, of a remote
# What a driver checks: where one of these is wrong already, it would only say so again.
FOR_DRIVER = frozenset("engine weights url upstream embeds precision cards context slots options env container".split())


def surges(spec: LineSpec) -> bool:
    """Whether there is room for a line's new engine beside its old one: nothing to load, or only memory of the host."""
    return spec.url is not None or spec.engine == "simulated" or (not spec.cards and spec.chip.split("-")[0] == "cpu")


def pools(engine: str | None, weights: str | None) -> bool:
    """Whether what a line loads gives vectors where nobody says so: what the engines themselves look at."""
    if weights is None or not (path := Path(weights)).is_absolute():
        return False
    if engine in ("native", "vllm", "sglang"):
        return (path / MODULES).is_file()
    if engine != "llamacpp":
        return False
    try:
        found = metadata(path, lambda name: name.endswith(".pooling_type"))
    except (OSError, ValueError):
        return False
    return any(kind in GGUF_POOLINGS for kind in found.values())


class LineReader:
    """Reads the lines of one file, one after the other; what concerns several is gathered here."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        models: list[str],
        currency: str | None,
        embedded: Path,
        embedded_name: str,
    ) -> None:
        """`models` are the names under `models:`; none given means that lines name them freely."""
        self._folder, self._environ, self._models = folder, environ, models
        self._embedded, self._embedded_name = embedded, embedded_name
        self.currency = currency
        self.models_named: list[str] = []
        self.of_model: dict[str, list[str]] = {}
        self.weights: dict[str, str] = {}
        self.surge: list[str] = []
        self.notes: dict[str, str] = {}
        self.doubts: list[Fault] = []

    def line(self, name: str, section: Section) -> LineSpec | None:
        """The line; None for one that is optional and cannot run here. Mistakes go to the section's faults."""
        before = len(section.faults)
        if not NAME.fullmatch(name):
            section.fault(None, "expected letters, digits, '.', '_' and '-' as a line's name")
        elif home.OURS.fullmatch(name):
            section.fault(None, f"{name!r} is what a process of the fleet itself is called: name the line otherwise")
        engine = section.get("engine", kinds.choice(DRIVERS), None)
        if "engine" not in section.values:
            section.fault(None, f"engine: needed, one of {', '.join(DRIVERS)}")
        model = self._model(section)
        url = self._url(section)
        weights = self._weights(section, engine, model, url)
        spec = LineSpec(
            name=name,
            model=model,
            engine=engine or "native",
            weights=weights,
            url=url,
            upstream=section.get("upstream", kinds.text, None),
            embeds=section.get("embeds", kinds.flag, url is None and pools(engine, weights)),
            precision=section.get("precision", kinds.text, "auto"),
            chip=self._chip(section, url),
            cards=section.get("cards", kinds.cards, ()),
            replicas=section.get("replicas", kinds.whole(1, 1024), 1),
            price_per_hour=self._price(section, "price"),
            price_per_million_input=self._price(section, "price_per_million_input"),
            price_per_million_output=self._price(section, "price_per_million_output"),
            weight=section.get("weight", kinds.number(0), 1.0),
            context=section.get("context", kinds.whole(1), None),
            slots=section.get("slots", kinds.whole(1), None),
            lacks=self._lacks(section),
            options=self._options(section),
            env=section.get("env", kinds.environment, {}),
            container=section.get("container", kinds.text, None),
            api_key_env=section.get("api_key_env", kinds.text, None),
            start_seconds=section.get("start_seconds", kinds.number(0, above=True), 600.0),
            weights_class="",
        )
        spec = changed(spec, weights_class=section.get("weights_class", kinds.text, weights_class(spec)))
        if section.get("surge", kinds.flag, surges(spec)):
            self.surge.append(name)
        optional = section.get("optional", kinds.flag, False)
        section.finish()
        self._together(spec, section)
        self.of_model.setdefault(model, []).append(name)
        if spec.weights:
            self.weights[name] = spec.weights
        wrong = {fault.text.removeprefix(f"{section.where}.").partition(":")[0] for fault in section.faults[before:]}
        if engine is None or wrong & FOR_DRIVER:
            return spec
        missing = self._cannot(spec)
        if missing is None:
            return spec
        if optional:
            self.notes[name] = missing
            return None
        section.blame(missing)
        return spec

    def _model(self, section: Section) -> str:
        model = section.get("model", kinds.text, None)
        if model is None:
            if len(self._models) == 1:
                model = self._models[0]
            elif not self._models and "model" not in section.values:
                model = self._embedded_name
            elif "model" not in section.values:
                section.fault(None, f"model: needed, one of {', '.join(self._models)}")
        elif self._models and model not in self._models:
            section.fault("model", f"there is no model {model!r}{nearest(model, self._models)}")
        if model and model not in self.models_named:
            self.models_named.append(model)
        return model or ""

    def _chip(self, section: Section, url: str | None) -> str:
        """A chip may be newer than the catalog, so a name that is not there is a doubt and no mistake."""
        chip = section.get("chip", kinds.text, CPU if url is None else UNKNOWN)
        if chip not in (CPU, UNKNOWN):
            try:
                catalog().find(chip)
            except UnknownChip as unknown:
                self.doubts.append(section.at("chip", f"taken as it stands, though {unknown}"))
        return chip

    def _url(self, section: Section) -> str | None:
        url = section.get("url", kinds.text, None)
        if url is None:
            return None
        try:
            url = kinds.substituted(url, self._environ)
            Target.parse(url)
            if urlsplit(url).password:
                raise ValueError("a password in an address is a secret in a file: use api_key_env")
        except ValueError as error:
            section.fault("url", str(error))
        return url

    def _weights(self, section: Section, engine: str | None, model: str, url: str | None) -> str | None:
        """Paths are taken from the file's folder; a name that is no path there goes to the engine as it is."""
        given = section.get("weights", kinds.text, None)
        if given is None:
            return str(self._embedded) if engine == "native" and model == self._embedded_name and not url else None
        if given == "embedded":
            return str(self._embedded)
        try:
            given = kinds.substituted(given, self._environ)
        except ValueError as error:
            section.fault("weights", str(error))
        try:
            path = kinds.path(self._folder, given)
        except ValueError as error:
            section.fault("weights", str(error))
            return None
        if path.exists() or engine in FROM_FILES or given.startswith(("/", "./", "../", "~")):
            return str(real(path))
        return given

    def _options(self, section: Section) -> Mapping[str, Any]:
        """Paths among them are taken from the file's folder, too."""
        options = dict(section.get("options", kinds.options, {}))
        for name in PATHS & options.keys():
            value = options[name]
            if not isinstance(value, str):
                continue
            try:
                path = kinds.path(self._folder, value)
            except ValueError as error:
                section.fault("options", f"{name}: {error}")
                continue
            if "/" in value or path.exists():
                options[name] = str(real(path))
        return options

    def _price(self, section: Section, name: str) -> float:
        amount, currency = section.get(name, kinds.price, (0.0, None))
        if currency is not None and self.currency is not None and currency != self.currency:
            section.fault(name, f"{currency} beside {self.currency}: a fleet counts in one currency")
        self.currency = self.currency or currency
        return amount

    def _lacks(self, section: Section) -> frozenset[str]:
        lacks = section.get("lacks", kinds.names, ())
        for feature in lacks:
            if feature not in FEATURES:
                hint = nearest(feature, FEATURES) or f"; there are {', '.join(FEATURES)}"
                section.fault("lacks", f"there is no feature {feature!r}{hint}")
        return frozenset(lacks)

    def _together(self, spec: LineSpec, section: Section) -> None:
        if spec.url is not None:
            for name in ("container", "cards", "env", "replicas"):
                if name in section.values:
                    section.fault(name, "the engine at a url is started by somebody else: this would be ignored")
        if spec.replicas > 1 and spec.cards:
            section.fault("replicas", "replicas on the same cards: write one line for each set of cards")
        try:
            check_cards(spec)
        except ValueError as error:
            section.blame(str(error))

    def _cannot(self, spec: LineSpec) -> str | None:
        """Why this machine cannot run it, or None."""
        if spec.url is None and spec.weights and Path(spec.weights).is_absolute():
            if not Path(spec.weights).exists():
                return f"weights: there is nothing at {spec.weights}"
            if spec.engine == "native" and (wrong := no_model_folder(Path(spec.weights))):
                return f"weights: {wrong}"
        try:
            drives = driver(spec.engine)
            drives.check(spec)
            if spec.embeds and drives.vectors(spec) is None:
                return f"embeds: the {spec.engine} engine gives no vectors"
            drives.headers(spec, self._environ)
            for name, value in spec.env.items():
                try:
                    kinds.substituted(value, self._environ)
                except ValueError as error:
                    return f"env: {name}: {error}"
            if spec.url is None:
                program = drives.command(spec, 1).argv[0]
                if shutil.which(program) is None:
                    return f"engine: the {spec.engine} engine's program {program} is not on this machine"
        except ImportError as error:
            return f"engine: no driver for {spec.engine} ({error})"
        except (ValueError, OSError) as error:
            return " ".join(str(error).split())
        return None


def real(path: Path) -> Path:
    """Without links and `..`, but for a file's own name: stores keep files under links that alone are named right."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def changed(spec: LineSpec, **values: object) -> LineSpec:
    """`dataclasses.replace` for a class with slots, typed."""
    return replace(spec, **values)  # type: ignore[arg-type]
