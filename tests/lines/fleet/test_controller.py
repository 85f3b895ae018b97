"""A fleet is made what is wanted: engines die and come back, change one by one, and are taken up again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.lines.fleet.harness import PACE, controlled, fleet, line, lives, pid_of, serves, until

from twinline.lines import roster
from twinline.lines.fleet import home, identity
from twinline.lines.fleet.controller import Controller
from twinline.lines.fleet.engine import Engine, Standing
from twinline.lines.fleet.file import Fleet
from twinline.lines.fleet.status import status
from twinline.lines.roster import Entry, GatewaySpec
from twinline.lines.state import LineState


def entries(controller: Controller) -> dict[str, Entry]:
    return {entry.name: entry for entry in roster.read(controller.directory).entries}


def test_lines_and_gateway_come_up_and_the_roster_says_so() -> None:
    async def test() -> None:
        async with controlled(fleet(line(replicas=2), line("b"))) as controller:
            assert controller.failures == []
            assert await controller.doors() == []
            await asyncio.sleep(0)
            read = roster.read(controller.directory)
            assert [(e.name, e.state) for e in read.entries] == [(n, LineState.SERVING) for n in ("a", "a#2", "b")]
            assert all(e.url and e.born for e in read.entries)
            pids = [pid_of(controller, name) for name in ("a", "a#2", "b")]
            assert (controller.directory / roster.ROSTER).stat().st_mode & 0o777 == 0o600
        assert not any(map(lives, pids))
        assert not (controller.directory / roster.ROSTER).exists()

    asyncio.run(test())


def test_a_killed_engine_is_started_again() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"))) as controller:
            dead, other = pid_of(controller), pid_of(controller, "b")
            born = entries(controller)["a"].born
            os.kill(dead, signal.SIGKILL)
            await until(lambda: any("SIGKILL" in event.reason for event in controller.events.after(0)))
            await until(lambda: serves(controller))
            await until(lambda: entries(controller)["a"].state is LineState.SERVING)
            assert entries(controller)["a"].born > born
            assert pid_of(controller) != dead
            assert pid_of(controller, "b") == other and controller.keepers["b"].restarts == 0

    asyncio.run(test())


@pytest.mark.parametrize(("fault", "why"), [("stalled", "no progress for 0.4 s"), ("mute", "3 health checks")])
def test_an_engine_that_hangs_counts_as_dead(tmp_path: Path, fault: str, why: str) -> None:
    faults = tmp_path / "fault"
    faults.write_text(fault)

    async def test() -> None:
        pace = replace(PACE, question=0.3) if fault == "mute" else PACE
        async with controlled(fleet(line(env={"FAULT_FILE": str(faults)})), pace) as controller:
            first = pid_of(controller)
            faults.write_text("")
            await until(lambda: serves(controller) and pid_of(controller) != first)
            assert any(why in event.reason for event in controller.events.after(0))
            assert not lives(first)

    asyncio.run(test())


def test_an_engine_that_is_being_ended_is_not_forgotten(tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("stalled,stubborn")

    async def test() -> None:
        pace = replace(PACE, hang_grace=30)
        async with controlled(fleet(line(env={"FAULT_FILE": str(faults)})), pace) as controller:
            stubborn = pid_of(controller)
            await until(lambda: controller.keepers["a"].state is LineState.STOPPED)
            await asyncio.sleep(0.1)
            assert lives(stubborn)  # it was asked to end, and does not
            await controller.end(leave_running=False)
            assert not lives(stubborn)

    asyncio.run(test())


def test_a_busy_engine_is_left_alone(tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("busy")

    async def test() -> None:
        async with controlled(fleet(line(env={"FAULT_FILE": str(faults)}))) as controller:
            first = pid_of(controller)
            await asyncio.sleep(3 * PACE.stalled)
            assert serves(controller) and pid_of(controller) == first

    asyncio.run(test())


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("crash", "out of memory: a card has 1 GB"),
        ("error", "the folder has no config.json"),
        ("wrong", "its test request failed: a card fell off"),
    ],
)
def test_three_failures_are_quarantine_until_resumed(tmp_path: Path, fault: str, why: str) -> None:
    faults = tmp_path / "fault"
    faults.write_text(fault)

    async def test() -> None:
        async with controlled(fleet(line(env={"FAULT_FILE": str(faults)}), line("b"))) as controller:
            assert any("a: " in failure and why in failure for failure in controller.failures)
            await until(lambda: controller.keepers["a"].state is LineState.QUARANTINED)
            assert controller.keepers["a"].restarts == 3
            assert "3 failures" in controller.keepers["a"].reason and why in controller.keepers["a"].reason
            assert controller.keepers["a"].engine is None
            assert serves(controller, "b")
            faults.write_text("")
            controller.resume("a")
            assert await controller.keepers["a"].verdict() is None
            assert serves(controller)

    asyncio.run(test())


def test_quarantine_ends_by_itself_with_half_open_tests(tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("crash")
    pace = replace(PACE, cool_down=0.2, longest_cool_down=0.3)

    async def test() -> None:
        async with controlled(fleet(line(env={"FAULT_FILE": str(faults)})), pace) as controller:
            keeper = controller.keepers["a"]
            await until(lambda: keeper.restarts >= 4)  # one more failure was enough to bring it back
            assert keeper.failures.cool_down == 0.3
            faults.write_text("")
            await until(lambda: serves(controller))

    asyncio.run(test())


def test_a_reported_fault_is_tested_and_only_a_failed_test_ends_a_line(tmp_path: Path) -> None:
    faults = tmp_path / "fault"
    faults.write_text("two faced")

    async def test() -> None:
        sick, sound = line(env={"FAULT_FILE": str(faults)}), line("b")
        async with controlled(fleet(sick, sound)) as controller:
            first, other = pid_of(controller), pid_of(controller, "b")
            faults.write_text("")
            for name in ("a", "b"):
                controller.fault(name, "a stream broke off")
            await until(lambda: serves(controller) and pid_of(controller) != first)
            assert any("a stream broke off" in event.reason for event in controller.events.after(0))
            assert serves(controller, "b") and pid_of(controller, "b") == other

    asyncio.run(test())


def test_faults_that_come_again_quarantine_a_line_but_never_the_last_one() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"))) as controller:

            async def fail_until(name: str, state: LineState) -> None:
                while controller.keepers[name].state is not state:
                    controller.fault(name, "it broke off")
                    await asyncio.sleep(PACE.same_failure + 0.1)

            await fail_until("a", LineState.QUARANTINED)
            await fail_until("b", LineState.DEGRADED)
            assert "no other line serves its model" in controller.keepers["b"].reason

    asyncio.run(test())


def test_a_changed_line_is_replaced_and_no_other() -> None:
    async def test() -> None:
        async with controlled(fleet(line(replicas=2), line("b"))) as controller:
            before = {name: pid_of(controller, name) for name in ("a", "a#2", "b")}
            least = 2

            async def watch() -> None:
                nonlocal least
                while True:
                    least = min(least, sum(serves(controller, name) for name in ("a", "a#2")))
                    await asyncio.sleep(0.005)

            watching = asyncio.create_task(watch())
            changed = fleet(line(replicas=2, options={"x": 1}), line("b", price_per_hour=2.0))
            assert await controller.apply(changed) == []
            watching.cancel()
            after = {name: pid_of(controller, name) for name in ("a", "a#2", "b")}
            assert after["b"] == before["b"] and not {after["a"], after["a#2"]} & {before["a"], before["a#2"]}
            assert least == 1  # one by one
            assert entries(controller)["b"].spec.price_per_hour == 2.0
            assert not lives(before["a"]) and not lives(before["a#2"])

    asyncio.run(test())


def test_with_surge_the_new_engine_serves_before_the_old_one_ends() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), surge=frozenset({"a"}))) as controller:
            old = pid_of(controller)
            await controller.apply(fleet(line(options={"x": 1}), surge=frozenset({"a"})))
            assert list(controller.keepers) == ["a#2"] and serves(controller, "a#2")
            assert not lives(old)
            told = [(event.name, event.state) for event in controller.events.after(0)]
            assert told.index(("a#2", "serving")) < told.index(("a", "draining"))

    asyncio.run(test())


@pytest.mark.parametrize("surge", [True, False])
def test_a_change_that_does_not_start_leaves_the_line_as_it_was(tmp_path: Path, surge: bool) -> None:
    faults = tmp_path / "fault"
    faults.write_text("crash")

    async def test() -> None:
        surging = frozenset({"a"}) if surge else frozenset()
        async with controlled(fleet(line(), surge=surging)) as controller:
            broken = line(env={"FAULT_FILE": str(faults)})
            (failure,) = await controller.apply(fleet(broken, surge=surging))
            assert "a stays as it was" in failure and "out of memory" in failure
            await until(lambda: serves(controller))
            assert list(controller.keepers) == ["a"] and not controller.keepers["a"].spec.env
            faults.write_text("")
            assert await controller.apply(fleet(broken, surge=surging)) == []
            (keeper,) = controller.keepers.values()
            assert keeper.spec.env and keeper.state is LineState.SERVING

    asyncio.run(test())


def test_what_drains_is_ended_only_when_the_gateways_have_nothing_there() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"), drain_seconds=60)) as controller:
            assert await controller.doors() == []
            old, flying = pid_of(controller), controller.directory / "in_flight.json"
            flying.write_text('{"a": 1}')
            removing = asyncio.create_task(controller.apply(fleet(line("b"), drain_seconds=60)))
            await until(lambda: controller.keepers["a"].state is LineState.DRAINING)
            await asyncio.sleep(0.5)
            assert lives(old) and controller.keepers["a"].state is LineState.DRAINING
            stale = controller.directory / "stale"
            stale.touch()
            flying.write_text("{}")
            await asyncio.sleep(0.5)
            assert lives(old)  # nothing is there, but a gateway that does not know of the drain may send something
            stale.unlink()
            assert await removing == []
            assert not lives(old) and list(controller.keepers) == ["b"]
            seen = [json.loads(each) for each in (controller.directory / "seen.jsonl").read_text().splitlines()]
            assert seen[-1]["a"] == "draining"  # the last answer was given in knowledge of it

    asyncio.run(test())


def test_a_drain_ends_with_the_fleets_patience() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"), drain_seconds=0.3)) as controller:
            await controller.doors()
            (controller.directory / "in_flight.json").write_text('{"a": 1}')
            await controller.drain("a")
            assert controller.keepers["a"].state is LineState.STOPPED and controller.keepers["a"].engine is None
            assert any("requests are left" in event.reason for event in controller.events.after(0))
            with pytest.raises(KeyError):
                await controller.drain("nobody")

    asyncio.run(test())


def test_what_runs_is_adopted_and_serves_without_a_break() -> None:
    async def test() -> None:
        wanted = fleet(line(), line("b"), line("c"))
        async with controlled(wanted) as first:
            await first.doors()
            pids = {name: pid_of(first, name) for name in "abc"}
            door = first.gateways[0].engine
            await first.drain("c")
            generation = first.generation
            await first.end(leave_running=True)
            assert all(map(lives, (pids["a"], pids["b"])))
            os.kill(pids["b"], signal.SIGKILL)
            await until(lambda: not lives(pids["b"]))
            said = await status(first.directory)
            assert said["control"] is None
            assert {row["name"]: row["state"] for row in said["lines"]}["b"] == "stopped"

            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            states = []
            second.events._told = lambda event: states.append((event.name, event.state))
            try:
                assert await second.begin(wanted) == []
                assert pid_of(second) == pids["a"] and pid_of(second, "b") != pids["b"]
                assert door is not None and second.gateways[0].engine is not None
                assert second.gateways[0].engine.pid == door.pid
                assert second.generation > generation
                assert {state for name, state in states if name == "a"} == {"adopted", "serving"}
                assert second.keepers["c"].state is LineState.STOPPED and second.keepers["c"].held
                second.resume("c")
                assert await second.keepers["c"].verdict() is None
            finally:
                await second.end(leave_running=False)
            assert not lives(pids["a"])

    asyncio.run(test())


def test_a_changed_file_at_the_next_start_replaces_what_runs_one_by_one() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("gone"))) as first:
            old, gone = pid_of(first), pid_of(first, "gone")
            await first.end(leave_running=True)
            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            try:
                surge = frozenset({"a"})
                assert await second.begin(fleet(line(options={"x": 1}), surge=surge)) == []
                assert list(second.keepers) == ["a#2"] and not lives(old) and not lives(gone)
                told = [(event.name, event.state) for event in second.events.after(0)]
                assert told.index(("a#2", "serving")) < told.index(("a", "draining"))
            finally:
                await second.end(leave_running=False)

    asyncio.run(test())


def test_a_changed_gateway_at_the_next_start_is_tried_before_the_old_one_ends() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), gateway=GatewaySpec(port=1, workers=2))) as first:
            assert await first.doors() == []
            doors = {index: pid_of_gateway(first, index) for index in (0, 1)}
            await first.end(leave_running=True)
            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            try:
                (failure,) = await second.begin(fleet(line(), gateway=GatewaySpec(port=1, log_format="broken")))
                assert "the gateway stays as it was" in failure and "no such log format" in failure
                assert {index: pid_of_gateway(second, index) for index in second.gateways} == doors
                assert all(map(lives, doors.values()))
                assert await second.apply(fleet(line(), gateway=GatewaySpec(port=1, log_format="json"))) == []
                assert list(second.gateways) == [0] and not any(map(lives, doors.values()))
            finally:
                await second.end(leave_running=False)

    asyncio.run(test())


def test_a_control_side_that_ends_while_a_gateway_is_tried_leaves_the_old_one_to_the_next() -> None:
    async def test() -> None:
        broken = fleet(line(), gateway=GatewaySpec(port=1, log_format="broken"))
        async with controlled(fleet(line(), gateway=GatewaySpec(port=1))) as first:
            assert await first.doors() == []
            old = pid_of_gateway(first, 0)
            applying = asyncio.create_task(first.apply(broken))
            await until(lambda: 1 in first.gateways)
            applying.cancel()
            await asyncio.wait((applying,))
            await first.end(leave_running=True)
            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            try:
                (failure,) = await second.begin(broken)
                assert "the gateway stays as it was" in failure
                assert pid_of_gateway(second, 0) == old and lives(old) and list(second.gateways) == [0]
            finally:
                await second.end(leave_running=False)

    asyncio.run(test())


def pid_of_gateway(controller: Controller, index: int) -> int:
    engine = controller.gateways[index].engine
    assert engine is not None
    return engine.pid


def test_a_drain_that_waited_for_an_apply_drains_what_runs_then() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), line("b"))) as controller:
            old = pid_of(controller)
            applying = asyncio.create_task(controller.apply(fleet(line(env={"X": "2"}), line("b"))))
            await until(lambda: controller.fleet is not None and controller.fleet.line("a") == line(env={"X": "2"}))
            await controller.drain("a")
            assert applying.done() and applying.result() == []
            assert controller.keepers["a"].state is LineState.STOPPED
            assert controller.keepers["a"].engine is None and not lives(old)
            removing = asyncio.create_task(controller.apply(fleet(line("b"))))
            await until(lambda: controller.fleet is not None and controller.fleet.line("a") is None)
            with pytest.raises(KeyError):
                await controller.drain("a")
            assert await removing == []

    asyncio.run(test())


def test_a_recycled_pid_is_neither_adopted_nor_touched() -> None:
    async def test() -> None:
        async with controlled(fleet(line())) as first:
            await first.end(leave_running=True)
            path = home.state_file(first.directory, "a")
            standing = msgspec.json.decode(path.read_bytes(), type=Standing)
            os.kill(standing.pid, signal.SIGKILL)
            bystander = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
            try:
                boot, _, ticks = standing.start.rpartition(":")
                recycled = msgspec.structs.replace(standing, pid=bystander.pid, start=f"{boot}:{int(ticks)}")
                assert identity.started(bystander.pid) != recycled.start
                path.write_bytes(msgspec.json.encode(recycled))
                assert Engine.find(first.directory, "a") is None
                path.write_bytes(msgspec.json.encode(recycled))
                second = Controller(first.directory, first._gateway_argv, pace=PACE)
                assert await second.begin(fleet(line())) == []
                assert pid_of(second) != bystander.pid
                await second.end(leave_running=False)
                assert bystander.returncode is None and lives(bystander.pid)
            finally:
                bystander.kill()
                await bystander.wait()

    asyncio.run(test())


def test_a_line_at_a_url_is_waited_for_and_never_started() -> None:
    async def test() -> None:
        async with controlled(fleet(line("own"))) as controller:
            url = controller.keepers["own"].entry.url
            wanted = fleet(line("own"), line("far", url=url), line("gone", url="http://127.0.0.1:9"))
            (failure,) = await controller.apply(wanted)
            assert "gone" in failure and "cannot connect" in failure
            far, gone = controller.keepers["far"], controller.keepers["gone"]
            assert far.state is LineState.SERVING and far.engine is None
            assert gone.state is LineState.STOPPED
            os.kill(pid_of(controller, "own"), signal.SIGKILL)
            await until(lambda: far.state is LineState.STOPPED)
            assert "health checks unanswered" in far.reason or "cannot connect" in far.reason
            assert far.restarts == 0

    asyncio.run(test())


def test_a_remote_without_health_is_judged_by_requests_alone() -> None:
    async def test() -> None:
        async with controlled(fleet(line("own"))) as controller:
            url = controller.keepers["own"].entry.url
            far = line("far", engine="remote", url=url)
            assert await controller.apply(fleet(line("own"), far)) == []
            keeper = controller.keepers["far"]
            os.kill(pid_of(controller, "own"), signal.SIGKILL)
            await asyncio.sleep(3 * PACE.poll)
            assert keeper.state is LineState.SERVING  # nobody has asked it anything
            controller.fault("far", "a stream broke off")
            await until(lambda: keeper.state is LineState.STOPPED)
            assert "cannot connect" in keeper.reason
            seen, generation = len(controller.events.after(0)), controller.generation
            await until(lambda: serves(controller, "own"))
            told = [event for event in controller.events.after(seen) if event.name == "far"]
            assert told == [] and keeper.restarts == 0  # waited for without a word
            assert controller.generation - generation < 8

    asyncio.run(test())


def test_one_replica_drained_by_hand_stays_so_and_the_other_serves() -> None:
    async def test() -> None:
        wanted = fleet(line(replicas=2))
        async with controlled(wanted) as first:
            await first.drain("a#2")
            await first.end(leave_running=True)
            second = Controller(first.directory, first._gateway_argv, pace=PACE)
            try:
                assert await second.begin(wanted) == []
                assert serves(second) and second.keepers["a#2"].state is LineState.STOPPED
                assert await second.apply(wanted) == []
                assert serves(second, "a#2")
            finally:
                await second.end(leave_running=False)

    asyncio.run(test())


def test_gateways_are_started_again_and_counted() -> None:
    async def test() -> None:
        async with controlled(fleet(line(), gateway=GatewaySpec(port=1, workers=2))) as controller:
            assert await controller.doors() == []
            first = controller.gateways[0].engine
            assert first is not None
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: controller.gateways[0].restarts == 1)
            await until(lambda: controller.gateways[0].state == "serving")
            await controller.apply(fleet(line(), gateway=GatewaySpec(port=1, workers=1)))
            assert list(controller.gateways) == [0] and not home.gateway_socket(controller.directory, 1).exists()

    asyncio.run(test())


def test_a_gateway_that_hangs_is_started_again_and_one_that_only_paused_is_not() -> None:
    async def test() -> None:
        pace = replace(PACE, question=0.5, gateway_mute_polls=10)
        async with controlled(fleet(line(), gateway=GatewaySpec(port=1)), pace=pace) as controller:
            assert await controller.doors() == []
            door = controller.gateways[0]
            first = door.engine
            assert first is not None
            os.kill(first.pid, signal.SIGSTOP)
            await until(lambda: door.state == "degraded")
            assert "health checks went unanswered" in door.reason and door.restarts == 0
            os.kill(first.pid, signal.SIGCONT)
            await until(lambda: door.state == "serving")
            assert door.engine is first and door.reason == "it answers again"
            os.kill(first.pid, signal.SIGSTOP)
            await until(lambda: door.restarts == 1)
            await until(lambda: door.state == "serving")
            assert door.engine is not None and door.engine.pid != first.pid and not lives(first.pid)
            reasons = [event.reason for event in controller.events.after(0) if event.name == "gateway-0"]
            assert any(reason.startswith("it left 10 health checks unanswered") for reason in reasons)

    asyncio.run(test())


def test_a_changed_gateway_is_tried_before_the_old_one_ends() -> None:
    async def test() -> None:
        def wanted(log_format: str) -> Fleet:
            return fleet(line(), gateway=GatewaySpec(port=1, log_format=log_format))

        async with controlled(wanted("text")) as controller:
            assert await controller.doors() == []
            old = controller.gateways[0].engine
            assert old is not None
            (failure,) = await controller.apply(wanted("broken"))
            assert "the gateway stays as it was" in failure and "no such log format" in failure
            assert controller.gateways[0].engine is old and list(controller.gateways) == [0]
            assert roster.read(controller.directory).gateway.log_format == "text"

            seen = controller.events.after(0)[-1].seq
            assert await controller.apply(wanted("json")) == []
            new = controller.gateways[0].engine
            assert new is not None and new.pid != old.pid and list(controller.gateways) == [0]
            told = [(event.name, event.state) for event in controller.events.after(seen)]
            doors = [each for each in told if each[1] != "starting"]
            assert doors == [
                ("gateway-1", "serving"), ("gateway-0", "stopped"), ("gateway-0", "serving"), ("gateway-1", "stopped"),
            ]  # fmt: skip

    asyncio.run(test())


def test_a_gateway_that_dies_while_a_changed_one_is_tried_comes_back_as_it_was() -> None:
    async def test() -> None:
        def wanted(log_format: str) -> Fleet:
            return fleet(line(), gateway=GatewaySpec(port=1, log_format=log_format))

        async with controlled(wanted("text")) as controller:
            assert await controller.doors() == []
            door = controller.gateways[0]
            applying = asyncio.create_task(controller.apply(wanted("slowly broken")))
            await until(lambda: 1 in controller.gateways)
            os.kill(pid_of_gateway(controller, 0), signal.SIGKILL)
            await until(lambda: door.restarts == 1 and door.state == "serving")
            assert not applying.done()
            (failure,) = await applying
            assert "the gateway stays as it was" in failure and "no such log format" in failure
            assert controller.gateways == {0: door} and door.restarts == 1

    asyncio.run(test())


@pytest.mark.parametrize(("needs", "patience"), [(0.3, 30.0), (30.0, 0.3)])
def test_a_gateway_that_is_replaced_may_finish_what_it_has(needs: float, patience: float) -> None:
    async def test() -> None:
        def wanted(workers: int) -> Fleet:
            made = fleet(line(), gateway=GatewaySpec(port=1, workers=workers))
            return replace(made, drain_seconds=patience)

        async with controlled(wanted(2)) as controller:
            assert await controller.doors() == []
            (controller.directory / "leaves").write_text(str(needs))
            began = time.monotonic()
            assert await controller.apply(wanted(1)) == []
            assert 0.9 < time.monotonic() - began < 20  # each of three, one after another
            told = [(e.name, e.state) for e in controller.events.after(0) if e.state in ("draining", "stopped")]
            assert told == [(f"gateway-{i}", state) for i in (0, 1, 2) for state in ("draining", "stopped")]

    asyncio.run(test())
