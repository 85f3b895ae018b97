"""The control side of a fleet: what runs is made what is wanted, and the gateways are told.

Owns the order of starting, replacing and ending, and the roster's writing. Must not know how one replica is kept
(`keeper`) nor how the control side is asked (`control`). What is done follows from what is wanted and what is there,
never from what was done before, so it can be done again at any time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from twinline.lines import roster
from twinline.lines.fleet import held, home
from twinline.lines.fleet.diff import Change, diff, engine_fields, fleet_of
from twinline.lines.fleet.draining import drained
from twinline.lines.fleet.engine import Engine, Ports
from twinline.lines.fleet.events import Event, Events
from twinline.lines.fleet.file import Fleet
from twinline.lines.fleet.gateways import Gateway
from twinline.lines.fleet.keeper import Keeper
from twinline.lines.fleet.left import left
from twinline.lines.fleet.pace import Pace
from twinline.lines.roster import GatewaySpec, Roster
from twinline.lines.spec import LineSpec
from twinline.lines.state import LineState

log = logging.getLogger(__name__)


class Controller:
    """One fleet's. Use: `begin`, then any of the others, `end` at last; all on one event loop."""

    def __init__(
        self,
        directory: Path,
        gateway_argv: Sequence[str],
        *,
        pace: Pace | None = None,
        environ: Mapping[str, str] = os.environ,
        told: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.directory = directory
        self.fleet: Fleet | None = None
        self.keepers: dict[str, Keeper] = {}
        self.gateways: dict[int, Gateway] = {}
        self.events = Events(told)
        self.generation = 0
        self._gateway_argv = list(gateway_argv)
        self._pace = pace or Pace()
        self._environ = environ
        self._ports = Ports()
        self._lock = asyncio.Lock()
        self._old_models: tuple[roster.ModelSpec, ...] = ()
        self._quiet = True  # nothing is written before what an earlier control side left is taken up
        self._dirty = False
        self._written: Roster | None = None
        self._again: asyncio.TimerHandle | None = None  # for a roster that could not be written

    # What is asked of it.

    async def begin(self, fleet: Fleet) -> list[str]:
        """Takes up what still runs, then makes everything as `fleet` says; what failed, in words."""
        self._adopt(fleet)
        self._quiet = False
        return await self._made(fleet)

    async def apply(self, fleet: Fleet) -> list[str]:
        """Makes the fleet what `fleet` says, replica by replica, and tries again what is quarantined or was drained by
        hand; what failed, in words.
        """
        held.write(self.directory, ())
        return await self._made(fleet)

    async def _made(self, fleet: Fleet) -> list[str]:
        async with self._lock:
            before = self.fleet
            self._old_models = () if before is None else before.models
            self.fleet = fleet
            for name, why in fleet.notes.items():
                self.events.add(name, "left out", why)
            self._in_place(fleet)
            by_hand = held.read(self.directory)
            for keeper in self.keepers.values():
                if keeper.state is LineState.QUARANTINED or (keeper.held and keeper.name not in by_hand):
                    keeper.resume()
            self._publish()
            failures = await self._gateways(fleet)
            failures += await self._lines(fleet)
            self._old_models = ()
            self._publish()
            return failures

    def plan(self, fleet: Fleet) -> tuple[Change, ...]:
        return diff(self.fleet, fleet)

    async def drain(self, name: str) -> None:
        """Moves everything away from a line, or from one replica, and ends it until it is resumed. Raises KeyError."""
        async with self._lock:
            keepers = self._named(name)  # not before: what held the lock may have replaced them
            for keeper in keepers:
                keeper.held = True
            held.write(self.directory, held.read(self.directory) | {keeper.name for keeper in keepers})
            await asyncio.gather(*(keeper.retire(partial(self._drained, keeper), held.BY_HAND) for keeper in keepers))
            self._publish()

    def resume(self, name: str) -> None:
        """Tries a quarantined or drained line again. Raises KeyError."""
        for keeper in self._named(name):
            keeper.resume()
            held.write(self.directory, held.read(self.directory) - {keeper.name})

    def fault(self, name: str, reason: str) -> None:
        """A gateway saw a replica fail. Raises KeyError."""
        self.keepers[name].fault(reason)

    async def end(self, *, leave_running: bool) -> None:
        """Stops working; with everything, or so that engines and gateways go on and can be adopted."""
        await asyncio.gather(*(g.retire(leave_running=leave_running) for g in self.gateways.values()))
        await asyncio.gather(
            *(k.retire(None, "the fleet goes down", leave_running=leave_running) for k in self.keepers.values())
        )
        if leave_running:
            self._publish()
        else:
            self._quiet = True
            (self.directory / roster.ROSTER).unlink(missing_ok=True)

    # Taking up what runs.

    def _adopt(self, fleet: Fleet) -> None:
        """Keepers for all that an earlier control side left alive; every other process of it is forgotten later."""
        found = left(self.directory, fleet)
        old, by_hand = found.roster, found.by_hand
        for told in found.mended:
            self.events.add(fleet.name, "mended", told)
        self.generation = old.generation
        self.fleet = fleet_of(old)
        for entry in old.entries:
            wanted = fleet.line(entry.spec.name)
            same = wanted is not None and engine_fields(wanted) == engine_fields(entry.spec)
            try:
                keeper = self._keeper(entry.name, wanted if same and wanted is not None else entry.spec)
            except ValueError as error:  # an engine that this version does not know, or a secret that has gone
                self.events.add(entry.name, "given up", str(error))
                continue
            if entry.name in by_hand or not keeper.adopt(entry):
                del self.keepers[entry.name]
            elif keeper.engine is not None:
                self.events.add(entry.name, "adopted", f"process {keeper.engine.pid} has gone on")
        self._adopt_gateways(old)
        for name in sorted(by_hand):
            spec = fleet.line(name.partition("#")[0])
            if spec is not None:
                self._keeper(name, spec).hold(held.BY_HAND)

    def _adopt_gateways(self, old: Roster) -> None:
        """Each by its own spec: another one is tried before it is replaced."""
        for index in range(max(spec.workers for spec in (old.gateway, *old.doors.values()))):
            for spec in (old.door(index), old.gateway):
                if index not in self.gateways:
                    self._gateway(index, spec, found=True)

    async def end_strays(self) -> None:
        """Ends every process of this fleet that nobody keeps."""
        kept = {*self.keepers, *(gateway.name for gateway in self.gateways.values())}
        await end_processes(self.directory, self._pace.grace, kept)

    # Lines.

    def _keeper(self, name: str, spec: LineSpec) -> Keeper:
        keeper = Keeper(
            name,
            spec,
            self.directory,
            pace=self._pace,
            ports=self._ports,
            changed=self._changed,
            is_sole=self._is_sole,
            environ=self._environ,
        )
        self.keepers[name] = keeper
        return keeper

    def _in_place(self, fleet: Fleet) -> None:
        for keeper in self.keepers.values():
            wanted = fleet.line(keeper.spec.name)
            if wanted is not None and engine_fields(wanted) == engine_fields(keeper.spec):
                keeper.update(wanted)

    async def _lines(self, fleet: Fleet) -> list[str]:
        wanted = {spec.name: spec for spec in fleet.lines}
        for keeper in self.keepers.values():
            if not keeper.held:
                keeper.start()
        gone = [keeper for keeper in self.keepers.values() if keeper.spec.name not in wanted]
        lacking = {card for spec in fleet.lines if not self._of(spec.name) for card in spec.cards}
        early = [keeper for keeper in gone if lacking & set(keeper.spec.cards)]
        await self._remove(early, "it is no longer in the fleet")
        await self.end_strays()
        fresh = [self._add(spec) for spec in fleet.lines for _ in range(spec.replicas - len(self._of(spec.name)))]
        failures = [f"{k.name}: {why}" for k in fresh if (why := await k.verdict()) is not None]
        for spec in fleet.lines:
            await self._remove(self._surplus(spec), "there are fewer replicas of it")
            failure = await self._roll(spec, spec.name in fleet.surge)
            if failure is not None:
                failures.append(failure)
        await self._remove([k for k in gone if k not in early], "it is no longer in the fleet")
        for keeper in self.keepers.values():
            if keeper not in fresh and not keeper.held and (why := await keeper.verdict()) is not None:
                failures.append(f"{keeper.name}: {why}")
        return list(dict.fromkeys(failures))

    async def _roll(self, spec: LineSpec, surge: bool) -> str | None:
        """Replaces the replicas that were started for another spec, one by one; why it stopped half-way, or None."""
        fields = engine_fields(spec)
        for old in [keeper for keeper in self._of(spec.name) if engine_fields(keeper.spec) != fields]:
            served = old.state.takes_requests
            if surge and served:
                fresh = self._add(spec)
                why = await fresh.verdict()
                await self._remove([old if why is None else fresh], "its replacement serves" if why is None else why)
            else:
                await self._remove([old], "it is replaced")
                fresh = self._add(spec)
                why = await fresh.verdict()
                if why is not None and served:
                    await self._remove([fresh], why)
                    self._keeper(old.name, old.spec).start()
            if why is not None:
                return f"{spec.name} {'stays as it was' if served else 'does not serve'}: the changed one failed: {why}"
        return None

    def _surplus(self, spec: LineSpec) -> list[Keeper]:
        """The replicas that are too many: those first that would have to be replaced, then those that do not serve."""
        fields, mine = engine_fields(spec), self._of(spec.name)
        mine.sort(key=lambda k: (engine_fields(k.spec) != fields, not k.state.takes_requests))
        return mine[spec.replicas :]

    def _add(self, spec: LineSpec) -> Keeper:
        keeper = self._keeper(self._free_name(spec.name), spec)
        self._changed(keeper)
        keeper.start()
        return keeper

    async def _remove(self, keepers: Iterable[Keeper], why: str) -> None:
        async def remove(keeper: Keeper) -> None:
            await keeper.retire(partial(self._drained, keeper), why)
            if self.keepers.get(keeper.name) is keeper:
                del self.keepers[keeper.name]

        await asyncio.gather(*(remove(keeper) for keeper in keepers))
        self._publish()

    async def _drained(self, keeper: Keeper) -> None:
        """Until the gateways have nothing at the replica, at most the fleet's patience."""
        self._publish()
        patience = self.fleet.drain_seconds if self.fleet is not None else 0.0
        if not await drained(self.directory, self._doors, keeper.name, self.generation, patience, self._pace):
            self.events.add(
                keeper.name, "draining", f"requests are left there after {patience:g} s: they are broken off"
            )

    def _doors(self) -> list[int]:
        return [g.index for g in self.gateways.values() if g.engine is not None and g.engine.alive]

    def _of(self, line: str) -> list[Keeper]:
        """The replicas of a line, by their numbers."""
        found = [keeper for keeper in self.keepers.values() if keeper.spec.name == line]
        return sorted(found, key=lambda keeper: (len(keeper.name), keeper.name))

    def _named(self, name: str) -> list[Keeper]:
        found = self._of(name) or [keeper for keeper in self.keepers.values() if keeper.name == name]
        if not found:
            raise KeyError(name)
        return found

    def _free_name(self, line: str) -> str:
        names = (line if index == 1 else f"{line}#{index}" for index in range(1, len(self.keepers) + 2))
        return next(name for name in names if name not in self.keepers)

    def _is_sole(self, keeper: Keeper) -> bool:
        others = (other for other in self.keepers.values() if other is not keeper)
        return not any(other.spec.model == keeper.spec.model and other.state.takes_requests for other in others)

    # Gateways.

    async def _gateways(self, fleet: Fleet) -> list[str]:
        """As many as wanted, each for the present spec; what failed, in words.

        Those that were started for another spec are replaced one by one, after one more has shown that the new spec
        works: it keeps the door open meanwhile. If it does not come up, the others stay as they are.
        """
        failures = []
        replaced = [gateway for gateway in self.gateways.values() if gateway.spec != fleet.gateway]
        if replaced:
            spare = self._gateway(max(self.gateways) + 1, fleet.gateway)
            if (why := await spare.verdict()) is not None:
                await self.gateways.pop(spare.index).retire()
                fleet = self.fleet = replace(fleet, gateway=replaced[0].spec)
                failures.append(f"the gateway stays as it was, the changed one failed: {why}")
                replaced = []
        for gateway in replaced:
            await gateway.retire(patience=fleet.drain_seconds)
            if gateway.index < fleet.gateway.workers:
                await self._gateway(gateway.index, fleet.gateway).verdict()
        for index in range(fleet.gateway.workers):
            if index not in self.gateways:
                self._gateway(index, fleet.gateway)
        for index in [index for index in self.gateways if index >= fleet.gateway.workers]:
            await self.gateways.pop(index).retire(patience=fleet.drain_seconds)
        return failures

    def _gateway(self, index: int, spec: GatewaySpec, *, found: bool = False) -> Gateway:
        """`found`: one that runs, or none."""
        gateway = Gateway(index, self._gateway_argv, spec, self.directory, self._pace, self._gateway_changed)
        if gateway.adopt() or not found:
            self.gateways[index] = gateway
            self._publish()  # its process reads its settings there
            gateway.start()
        return gateway

    async def doors(self) -> list[str]:
        """Waits until every gateway answered or failed once; what failed, in words."""
        return [f"{g.name}: {why}" for g in list(self.gateways.values()) if (why := await g.verdict()) is not None]

    def _gateway_changed(self, gateway: Gateway) -> None:
        self.events.add(gateway.name, gateway.state, gateway.reason)

    # Telling.

    def _changed(self, keeper: Keeper) -> None:
        if self.keepers.get(keeper.name) is keeper:
            self.events.add(keeper.name, keeper.state, keeper.reason)
        self._changed_soon()

    def _changed_soon(self) -> None:
        if not self._dirty and not self._quiet:
            self._dirty = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        """Writes the roster, if there is anything new in it; where it cannot, it tries again after a while."""
        self._dirty = False
        if self._again is not None:
            self._again.cancel()
        if self._quiet or self.fleet is None:
            return
        kept = {model.name for model in self.fleet.models}
        fresh = Roster(
            fleet=self.fleet.name,
            generation=0,
            gateway=self.fleet.gateway,
            doors={g.index: g.spec for g in self.gateways.values() if g.spec != self.fleet.gateway},
            models=self.fleet.models + tuple(model for model in self._old_models if model.name not in kept),
            entries=tuple(keeper.entry for keeper in self.keepers.values()),
        )
        if fresh != self._written:
            self.generation += 1
            try:
                roster.write(self.directory, msgspec.structs.replace(fresh, generation=self.generation))
            except OSError as error:
                log.error("the roster cannot be written, the gateways go on by the last one: %s", error)
                self._dirty = True
                self._again = asyncio.get_running_loop().call_later(self._pace.poll, self._publish)
            else:
                self._written = fresh


async def end_processes(directory: Path, grace: float, but: Iterable[str] = ()) -> list[str]:
    """Ends every process of a fleet whose state file is there, but those named; the names of those that lived."""
    names = [path.stem for path in home.state_files(directory)]
    found = [e for name in names if name not in set(but) and (e := Engine.find(directory, name)) is not None]
    await asyncio.gather(*(engine.stop(grace) for engine in found))
    return [engine.name for engine in found]


__all__ = ["Controller", "end_processes"]
