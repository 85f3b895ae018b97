"""`twinline devices`: what a person and a machine see of the cards, and what watching tells."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from tests.cards.recordings import FOLDER, recordings
from tests.cards.scripted import Script, bus, software

from twinline.cards.card import Card, Finding, Process
from twinline.cards.execute import Ran
from twinline.cards.look import Seen, look
from twinline.cli import devices, main
from twinline.cli.devices_changes import changes
from twinline.cli.devices_text import described

Capture = pytest.CaptureFixture[str]


def text(identifier: str) -> str:
    return recordings()[identifier].text


def looked(tmp_path: Path, answers: Mapping[str, str | Ran]) -> Seen:
    return look(Script(answers), pci=bus(tmp_path / "bus"), proc=tmp_path, software=software())


MIXED = {
    "npu-smi info": text("npu-smi-info-910c"),
    "npu-smi info -t topo": text("npu-smi-topo"),
    "mx-smi": text("mx-smi-table-c500"),
    "mx-smi topo -n": text("mx-smi-topo-n"),
    "hl-smi": Ran(code=1, err="needs root", trouble="failed"),
}


def row(lines: list[str], label: str) -> list[str]:
    line = next(line for line in lines if line.startswith(f"{label} "))
    return line.split()[2:]


def test_the_table_shows_every_card_and_what_is_not_known(tmp_path: Path) -> None:
    lines = list(described(looked(tmp_path, MIXED)))
    assert max(map(len, lines)) <= 120
    assert row(lines, "huawei 0/0") == [
        "ascend-910c",
        "ok",
        "3.0",
        "64.0",
        "0%",
        "32C",
        "161.9",
        "?",
        "0000:9d:00.0",
        "?",
    ]
    assert row(lines, "huawei 0/1") == ["ascend-910c", "bad", "2.8", "64.0", "0%", "32C", "?", "?", "0000:9f:00.0", "?"]
    assert row(lines, "metax 3") == ["metax-c500", "ok", "0.8", "64.0", "0%", "35C", "60", "350", "0000:12:00.0", "0"]
    assert "  huawei 0/1: npu-smi: health Warning" in lines
    assert "  permission: intel-gaudi hl-smi: it needs more rights than this user has: needs root" in lines
    assert "  metax (mx-smi): GPU0 GPU1 GPU2 GPU3 directly over MX" in lines
    assert "  huawei (npu-smi): NPU4 NPU5 NPU6 NPU7 directly over HCCS" in lines
    assert "  otherwise over NODE (node)" in [f"  {line.strip()}" for line in lines]


def test_this_machine_sees_itself(capsys: Capture) -> None:
    assert main(["devices"]) == 0
    out = capsys.readouterr().out
    assert any(line.startswith("cpu 0 ") for line in out.splitlines())


def test_json_holds_all_and_null_for_what_is_not_known(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = looked(tmp_path, MIXED)
    monkeypatch.setattr(devices, "look", lambda **given: seen)
    assert main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cards"][1]["watts"] is None
    assert found["cards"][1]["memory_total"] == 64 << 30
    assert {finding["kind"] for finding in found["findings"]} >= {"permission"}
    assert msgspec.convert(found, Seen) == seen


@pytest.mark.parametrize(("arguments", "word"), [
    (["--watch", "0"], "above 0"), (["--watch", "0.01"], "at least"),
    (["--watch", "soon"], "not a number"), (["--timeout", "-1"], "above 0"),
])  # fmt: skip
def test_wrong_arguments(arguments: list[str], word: str, capsys: Capture) -> None:
    assert main(["devices", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word in captured.err


def card(**given: object) -> Card:
    return Card(**{"vendor": "huawei", "tool": "npu-smi", "card": 0, "health": "ok", "reason": "", **given})  # type: ignore[arg-type]


def of(*cards: Card, findings: tuple[Finding, ...] = ()) -> Seen:
    return Seen(cards=cards, topologies=(), findings=findings, signs=())


def test_changes_in_words() -> None:
    gone = Finding(kind="timeout", vendor="huawei", tool="npu-smi", message="it did not end in time and was stopped")
    old = card(memory_used=3 << 30, memory_total=64 << 30, processes=(Process(pid=7),), temperature=40.0)
    new = card(memory_used=60 << 30, memory_total=64 << 30, processes=(Process(pid=9),), temperature=80.0,
               health="bad", reason="npu-smi: health Alarm")  # fmt: skip
    assert list(changes(of(old, card(card=1)), of(new, card(card=2), findings=(gone,)))) == [
        "huawei 1: gone",
        "huawei 0: health ok -> bad (npu-smi: health Alarm)",
        "huawei 0: memory in use 3.0 -> 60.0 GiB",
        "huawei 0: process 7 ended",
        "huawei 0: process 9 began",
        "huawei 2: new",
        "huawei npu-smi: it did not end in time and was stopped",
    ]


def test_a_flicker_of_memory_and_heat_are_no_change() -> None:
    assert not list(
        changes(of(card(memory_used=100 << 20, temperature=40.0)), of(card(memory_used=120 << 20, temperature=70.0)))
    )
    assert list(changes(of(card(memory_used=1 << 30)), of(card()))) == ["huawei 0: memory in use 1.0 -> ? GiB"]
    assert list(changes(of(card(uuid="A")), of(card(uuid="B")))) == ["huawei 0: another card, A -> B"]


def watched(monkeypatch: pytest.MonkeyPatch, looks: list[Seen], machines: bool, terminal: bool) -> int:
    remaining: Iterator[Seen] = iter(looks)
    left = [len(looks)]

    def sleep(seconds: float) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    return devices.watch(lambda: next(remaining), 2.0, machines, terminal, sleep)


def test_watching_redraws_tells_changes_and_ends_well(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    looks = [of(card()), of(card()), of(card(health="bad", reason="npu-smi: health Alarm"))]
    assert watched(monkeypatch, looks, machines=False, terminal=True) == 0
    screens = capsys.readouterr().out.split(devices.CLEAR)[1:]
    assert len(screens) == 3
    assert "changes" not in screens[1]
    assert "huawei 0: health ok -> bad (npu-smi: health Alarm)" in screens[2]


def test_watching_into_a_file_writes_changes_alone(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    looks = [of(card()), of(card()), of(card(health="bad", reason="x")), of(card(health="bad", reason="x"))]
    assert watched(monkeypatch, looks, machines=False, terminal=False) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("huawei 0") == 2
    assert out.splitlines()[-1].endswith("huawei 0: health ok -> bad (x)")


def test_watching_for_machines_writes_a_line_for_each_look(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert watched(monkeypatch, [of(card()), of(card(health="bad"))], machines=True, terminal=True) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["cards"][0]["health"] for one in found] == ["ok", "bad"]


def test_real_tools_on_the_path_and_a_real_interrupt(tmp_path: Path) -> None:
    """A process of its own, a tool that prints a recording, and Ctrl-C."""
    tool = tmp_path / "mx-smi"
    recording = FOLDER / "mx-smi-table-c500.txt"
    tool.write_text(f'#!/bin/sh\n[ $# = 0 ] && exec cat "{recording}"\necho "no such option" >&2\nexit 1\n')
    tool.chmod(0o755)
    command = [sys.executable, "-m", "twinline.cli", "devices", "--json", "--watch", "60"]
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    mine = [card for card in found["cards"] if card["vendor"] == "metax"]
    assert [card["logical"] for card in mine] == list(range(8))
    assert {card["memory_used"] for card in mine} == {826 << 20}
    assert "no such option" in {finding["text"] for finding in found["findings"]}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("watching", [False, True])
def test_a_hanging_tool_neither_holds_the_end_up_nor_outlives_it(
    tmp_path: Path, number: signal.Signals, code: int, watching: bool
) -> None:
    tool = tmp_path / "cnmon"
    tool.write_text(f"#!/bin/sh\ntrap '' TERM INT HUP\necho $$ > {tmp_path}/begun.part\n"
                    f"mv {tmp_path}/begun.part {tmp_path}/begun\nsleep 300\n")  # fmt: skip
    tool.chmod(0o755)
    command = [sys.executable, "-m", "twinline.cli", "devices", "--timeout", "250", *["--watch"][: int(watching)]]
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        child = int((tmp_path / "begun").read_text())
        process.send_signal(number)
        _, said = process.communicate(timeout=60)  # far less than the patience with tools
    finally:
        process.kill()
    # Watching is ended by Ctrl-C, and ends well.
    assert process.returncode == (0 if watching and number == signal.SIGINT else code)
    assert said.count(b"\n") <= 1 and b"Traceback" not in said
    while not _dead(child):
        assert time.monotonic() < until
        time.sleep(0.02)


def _dead(process: int) -> bool:
    """Gone, or ended and not yet asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_words_that_a_terminal_cannot_show_are_no_error(tmp_path: Path) -> None:
    tool = tmp_path / "cnmon"
    tool.write_bytes(b"#!/bin/sh\nprintf '\\351\\251 \\344\\270\\255\\346\\226\\207 driver\\n' >&2; exit 9\n")
    tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONUTF8": "0"}
    for encoding in ("ascii", "gbk", "utf-8"):
        for more in ([], ["--json"]):
            command = [sys.executable, "-m", "twinline.cli", "devices", *more]
            env["PYTHONIOENCODING"] = encoding
            ended = subprocess.run(command, env=env, capture_output=True, timeout=60)
            assert (ended.returncode, ended.stderr) == (0, b"")
            shown = ended.stdout.decode(encoding)
            assert "it failed with exit code 9" in shown and "driver" in shown
            if more:
                assert "\u4e2d\u6587" in json.loads(ended.stdout)["findings"][0]["text"]


def test_findings_are_not_called_no_accelerator(tmp_path: Path) -> None:
    hung = looked(tmp_path, {"npu-smi info": Ran(trouble="timeout"), "cnmon": Ran(trouble="failed", err="Exec format")})
    words = "\n".join(described(hung))
    assert "no accelerator could be read; the findings say" in words
    assert "cnmon: it could not be started" in words and "None" not in words
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no accelerator: none is seen" in "\n".join(described(looked(empty, {})))
