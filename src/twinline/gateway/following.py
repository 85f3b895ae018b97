"""Keeps a door as the roster says: models and lines that come, change and go, while requests are under way.

Owns the difference between the roster and what is served. Must not know who wrote the roster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from twinline.gateway.door import Door
from twinline.gateway.judging import traits_of
from twinline.gateway.meters import ModelMeter
from twinline.gateway.routing import Policy
from twinline.gateway.served import ModelText, ServedModel
from twinline.gateway.supply import Bounds, Supply
from twinline.gateway.watch import Patience, Watch
from twinline.lines import roster
from twinline.lines.line import Line
from twinline.lines.roster import Entry, ModelSpec, Roster
from twinline.lines.spec import LineSpec

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
# Of a line's spec, what changes nothing about how it is spoken to: the line goes on as it is.
SOFT = frozenset(
    "weight price_per_hour price_per_million_input price_per_million_output slots chip replicas start_seconds lacks "
    "weights_class".split()
)


@dataclass(slots=True)
class _Model:
    """One model as it is served."""

    spec: ModelSpec
    served: ServedModel
    watching: asyncio.Task[None]


@dataclass(slots=True)
class Following:
    """`run` until cancelled. `on_trip` hears of each circuit that opens."""

    directory: Path
    door: Door
    bounds: Bounds
    on_trip: Callable[[Line, str], None]
    patience: Patience | None = None
    generation: int = 0
    _models: dict[str, _Model] = field(default_factory=dict)
    _seen: tuple[int, int] | None = None

    async def look(self) -> None:
        """Reads the roster if it is another. Raises OSError or DecodeError when it cannot be read."""
        found = (self.directory / roster.ROSTER).stat()
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._seen:
            await self.take(roster.read(self.directory))
            self._seen = stamp

    async def run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
                failing = False
            except (OSError, msgspec.DecodeError) as error:
                if not failing:
                    log.warning("the roster cannot be read, the last one holds: %s", error)
                failing = True
            except Exception:
                log.exception("the roster cannot be followed, the last one holds")

    async def take(self, told: Roster) -> None:
        """Serves what `told` says. A model whose text cannot be read is not served, and the log says why."""
        wanted = {spec.name: spec for spec in told.models}
        for name in [name for name in self._models if name not in wanted]:
            self._close(name)
        for spec in told.models:
            model = self._models.get(spec.name)
            if model is None or model.spec.text != spec.text or model.spec.label != spec.label:
                await self._open(spec)
            elif model.spec != spec:
                model.spec = spec
        for name, model in self._models.items():
            self._lines(model, [entry for entry in told.entries if entry.spec.model == name])
        self.generation = told.generation

    async def _open(self, spec: ModelSpec) -> None:
        """A new model, or one whose text is another: its lines go over to it."""
        try:
            text = await asyncio.to_thread(ModelText.load, Path(spec.text))
        except ValueError as error:
            log.error("model %s cannot be served: %s", spec.name, error)
            return
        old = self._models.get(spec.name)
        if old is None:
            meter = ModelMeter(self.door.meters, spec.name)
            supply = Supply(spec.name, policy_of(spec, ()), meter, self.bounds)
            supply.on_trip = partial(self._tripped, meter)
            watching = asyncio.create_task(Watch(supply, self.patience).run(), name=f"watch {spec.name}")
        else:
            supply, watching = old.served.supply, old.watching
            self.door.shut(spec.name)
        served = ServedModel(spec.name, text, supply, spec.label)
        self.door.open(served)
        self._models[spec.name] = _Model(spec, served, watching)

    def _tripped(self, meter: ModelMeter, line: Line, reason: str) -> None:
        log.warning("line %s is not asked for a while: %s", line.name, reason)
        meter.tripped(line.name)
        self.on_trip(line, reason)

    def _close(self, name: str) -> None:
        model = self._models.pop(name)
        self.door.shut(name)
        model.watching.cancel()
        model.served.supply.close()

    def _lines(self, model: _Model, entries: list[Entry]) -> None:
        supply = model.served.supply
        names = [entry.name for entry in entries]
        for name in [name for name in supply.lines if name not in names]:
            supply.remove(name)
        supply.router.follow(policy_of(model.spec, names))
        for entry in entries:
            line = supply.lines.get(entry.name)
            if line is not None and hardened(line.spec) != hardened(entry.spec):
                supply.remove(entry.name)
                line = None
            try:
                if line is None:
                    self._add(supply, entry)
                else:
                    self._change(supply, line, entry)
            except (ValueError, OSError) as error:  # a secret that this process does not have
                log.error("line %s cannot be used: %s", entry.name, error)
        model.served.refresh()

    def _add(self, supply: Supply, entry: Entry) -> None:
        line = Line(entry.name, entry.spec, entry.url)
        line.declare(entry.spec, entry.facts)
        line.born = entry.born
        line.life.state, line.life.reason = entry.state, entry.reason
        supply.add(line)

    def _change(self, supply: Supply, line: Line, entry: Entry) -> None:
        if line.url != entry.url:
            line.at(entry.url)
        if line.spec != entry.spec or line.facts != entry.facts:
            line.declare(entry.spec, entry.facts)
            supply.router.update(traits_of(line))
        reborn = entry.born != line.born
        line.born = entry.born
        line.life.told(entry.state, entry.reason)
        if reborn:
            supply.restarted(line)


def policy_of(spec: ModelSpec, lines: list[str] | tuple[str, ...]) -> Policy:
    """The model's rule of choice; a line's name in its order stands for all its replicas."""
    order = [name for wanted in spec.order for name in lines if name == wanted or name.partition("#")[0] == wanted]
    return Policy(
        rule=spec.policy,  # type: ignore[arg-type]  # checked when the fleet was read, and by Policy
        ttft_seconds=spec.goals.ttft_seconds,
        inter_token_seconds=spec.goals.inter_token_seconds,
        order=tuple(order),
    )


def hardened(spec: LineSpec) -> LineSpec:
    """The spec without what may change under a line that goes on."""
    plain = LineSpec(name="", model="", engine="")
    return replace(spec, **{name: getattr(plain, name) for name in SOFT})
