"""`twinline adapt`: what it asks for, what it writes, what it says, and when it succeeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinline.cli import main
from twinline.cli.adapt import plain
from twinline.cli.adapt_text import SIMULATED
from twinline.facts.profiles import read_profile

Capture = pytest.CaptureFixture[str]
FILES = {"report.html", "report.md", "report.json", "profile.json"}


def test_a_part_of_the_ladder_on_a_simulated_chip(capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert (
        main(["adapt", "--device", "simchip", "--only", "device.copies", "--only", "ops.rope", "--out", str(out)]) == 0
    )
    said = capsys.readouterr().out
    assert said.count(SIMULATED) == 2 and "level 0, the device" in said and "level 1" in said and "level 2" not in said
    assert "  pass  device.copies: " in said and "grade: SOUND" in said and "sound (not the whole ladder): " in said
    assert {f.name for f in out.iterdir()} == FILES
    assert "\x1b" not in said and "\r" not in said
    found = read_profile(out / "profile.json")
    assert found.simulated and not found.complete and found.model == "tiny-r1" and found.dtypes[0] == "float32"
    assert found.provider("rope", "float32") == "batched"


def test_json_goes_to_stdout_and_progress_to_stderr(capsys: Capture) -> None:
    arguments = ["adapt", "--device", "simchip:clean+no-topk", "--only", "ops.route", "--seed", "5", "--json"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["grade"]["name"] == "unfit" and report["trial"]["seed"] == 5
    check = "ops.route.batched.float32"
    assert report["commands"][check] == (
        f"twinline adapt --device simchip:clean+no-topk --model tiny-r1 --seed 5 --only {check}")  # fmt: skip
    assert any(f["check"] == check and f["verdict"] == "limit" for f in report["findings"])
    assert "LIMIT ops.route" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--device", "nosuchchip", "--only", "device"], 1, "nosuchchip"),
        (["--device", "cpu", "--only", "opps"], 2, "no level has a check 'opps'; levels are device, ops, layers"),
        (["--device", "cpu", "--model", "/nowhere/at/all"], 1, "no model folder at /nowhere/at/all"),
        (["--device", "cpu", "--dtype", "int3"], 2, "invalid choice"),
        ([], 2, "--device"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_a_line(arguments: list[str], code: int, said: str, capsys: Capture) -> None:
    assert main(["adapt", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_a_devices_name_as_part_of_a_files() -> None:
    assert plain("simchip:clean+drifts=3") == "simchip-clean-drifts-3"
