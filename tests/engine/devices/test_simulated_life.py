"""The engine on a simulated chip: the CPU's tokens; and what becomes of requests when the chip dies or hangs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.devices.chips import heal, opened
from tests.engine.spawn import wait_for
from tests.engine.tiny import Heard, ask, write_checkpoint

from twinline.engine.build import Built, Options, build
from twinline.engine.devices.simulated import control
from twinline.engine.devices.simulated.chip import CHIPS, ChipLost


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


def load(folder: Path, device: str) -> tuple[Built, Heard]:
    told = Heard()
    return build(folder, Options(device=device, kv_tokens=4096), told), told


def answers(folder: Path, device: str) -> list[list[int]]:
    built, told = load(folder, device)
    asked = [
        ask("greedy", 12, max_tokens=24),
        ask("drawn", 5, max_tokens=24, temperature=1.0, seed=3),
        ask("filtered", 30, max_tokens=24, temperature=0.8, top_p=0.9, top_k=20, seed=4),
        ask("penalised", 7, max_tokens=24, repetition_penalty=1.3, logprobs=2),
    ]
    for request in asked:
        built.engine.submit(request)
    while built.engine.scheduler.has_work:
        built.engine.step()
    assert {told.finish(request.id) for request in asked} <= {"length", "stop"}
    return [told.tokens(request.id) for request in asked]


@pytest.mark.parametrize("device", ["simchip", "simchip:2", "simchip:like-310p"])
def test_the_engine_gives_the_cpus_tokens(folder: Path, device: str) -> None:
    with opened(device):
        assert answers(folder, device) == answers(folder, "cpu")


def test_memory_is_back_when_the_engine_is_gone(folder: Path) -> None:
    with opened():
        gc.collect()
        base = CHIPS[0].memory.used
        answers(folder, "simchip")
        gc.collect()
        assert CHIPS[0].memory.used == base


def test_a_cache_that_does_not_fit_is_refused_with_the_sum(folder: Path) -> None:
    with opened("simchip:small-memory"), pytest.raises(ValueError, match=r"0\.03 GiB are free: at most \d+ tokens fit"):
        build(folder, Options(device="simchip:small-memory", kv_tokens=10**7), lambda outputs: None)


def test_a_refused_dtype_is_refused_before_anything_is_loaded(folder: Path) -> None:
    with opened("simchip:like-310p"), pytest.raises(ValueError, match="in bfloat16: use --dtype float32 or float16"):
        build(folder, Options(device="simchip:like-310p", dtype="bfloat16"), lambda outputs: None)


def running(folder: Path) -> tuple[Built, Heard]:
    """An engine in its thread with two endless requests that have tokens."""
    built, told = load(folder, "simchip")
    for name in "ab":
        built.engine.submit(ask(name, max_tokens=2000))
    built.engine.start()
    wait_for(lambda: all(len(told.outputs[name]) > 3 for name in "ab"))
    return built, told


def ended(told: Heard) -> bool:
    return all(told.last(name).finish for name in "ab")


def test_a_chip_that_dies_ends_every_request_with_the_reason(folder: Path) -> None:
    with opened():
        built, told = running(folder)
        waits = ask("waits", max_tokens=5)
        died = time.monotonic()
        CHIPS[0].die("a test pulled the plug")
        wait_for(lambda: ended(told), 2)
        assert time.monotonic() - died < 2
        for name in "ab":
            last = told.last(name)
            assert last.finish == "error" and last.error is not None
            assert last.error.startswith("device lost: simchip:clean (simulated)") and "pulled the plug" in last.error
        assert built.engine.failure_code == "device_lost"
        with pytest.raises(RuntimeError, match="device lost"):
            built.engine.submit(waits)
        built.engine.stop()
        assert answers(folder, "simchip:1") == answers(folder, "cpu"), "another chip is as it was"


@pytest.mark.parametrize("back", [False, True], ids=["for good", "back later"])
def test_a_hang_is_noticed_and_told(folder: Path, back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened():
        built, told = running(folder)
        monkeypatch.setattr(built.device, "step_seconds", 0.5)
        CHIPS[0].hang()
        wait_for(lambda: ended(told), 5)
        assert built.engine.failure_code == "device_hung"
        assert {told.last(name).error for name in "ab"} == {built.engine.failure}
        assert "simchip:clean (simulated) has not ended a step within 0.5 s" in str(built.engine.failure)
        if back:
            CHIPS[0].heal()
        built.engine.stop()  # does not wait for a step that hangs; what comes of it is told to nobody (`Heard` checks)
        heal()
        wait_for(lambda: not built.engine._thread.is_alive())


def test_a_fault_of_one_step_is_not_a_lost_device(folder: Path) -> None:
    with opened():
        built, told = load(folder, "simchip")
        CHIPS[0].lacks({"topk"})
        built.engine.submit(ask("a"))
        built.engine.step()
        assert "NotImplementedError" in str(told.last("a").error) and built.engine.failure is None
        CHIPS[0].missing = frozenset()
        built.engine.submit(ask("b"))
        while built.engine.scheduler.has_work:
            built.engine.step()
        assert told.finish("b") in ("length", "stop")


def test_a_planted_hang_blocks_until_it_is_released() -> None:
    with opened("simchip:clean+hangs=3"):
        done = threading.Event()

        def work() -> None:
            x = torch.ones(2, device="simchip")
            for _ in range(5):
                x = x + 1
            done.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        wait_for(lambda: CHIPS[0].hangs)
        assert not done.wait(0.1)
        CHIPS[0].heal()
        assert done.wait(10)


# The control file.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("lost", dict.fromkeys(range(4), "lost")),
        ("1 hang\n", {1: "hang"}),
        ("lost\n2 ok\n", {0: "lost", 1: "lost", 2: "ok", 3: "lost"}),
        ("burn\n9 lost\n-1 lost\n1 2 3\n\0\n0 hang", {0: "hang"}),
    ],
)
def test_what_a_control_file_says(text: str, expected: dict[int, str]) -> None:
    assert control.read(text) == expected


def test_a_control_file_is_obeyed_while_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "control"
    monkeypatch.setenv(control.VARIABLE, str(file))
    with opened():
        control.watch.cache_clear()
        control.watch()
        x = torch.ones(2, device="simchip")

        def lost() -> bool:
            try:
                x + 1
            except ChipLost:
                return True
            return False

        steps: list[tuple[str, Callable[[], bool]]] = [
            ("0 lost", lost),
            ("ok", lambda: not lost()),
            ("1 lost", lambda: CHIPS[1].lost is not None),
        ]
        for text, seen in steps:
            file.write_text(text)
            wait_for(seen, 5)
        assert not lost()
        file.unlink()
    control.watch.cache_clear()
