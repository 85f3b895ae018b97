"""Every command of docs/adapting-a-chip.md is run as it stands there, and does what the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving import serving

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adapting-a-chip.md"
BLOCKS = [block.strip() for block in re.findall(r"^```\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "twinline"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-m", "twinline.cli", *arguments], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The page's first command: the whole ladder, once for all that need what it writes."""
    folder = tmp_path_factory.mktemp("adapt")
    return run(BLOCKS[0], folder), folder


def test_there_are_the_commands_that_are_tried_here() -> None:
    assert len(BLOCKS) == 5 and all(block.startswith("twinline ") and "\n" not in block for block in BLOCKS)


def test_the_whole_ladder_finds_a_clean_chip_sound(
    whole: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = whole
    assert done.returncode == 0, done.stdout + done.stderr
    assert "grade: SOUND" in done.stdout and "SIMULATED" in done.stdout
    out = folder / "adapt-simchip"
    assert {f.name for f in out.iterdir()} == {"report.html", "report.md", "report.json", "profile.json"}
    report = json.loads((out / "report.json").read_text())
    assert [level["number"] for level in report["levels"]] == list(range(10)) and report["complete"]
    rows = re.findall(r"^\| (\d) (\w+) \|", PAGE.read_text("utf-8"), re.M)
    assert rows == [(str(level["number"]), level["name"]) for level in report["levels"]]
    profile = json.loads((out / "profile.json").read_text())
    assert profile["grade"] == "sound" and profile["efficiencies"] and profile["choices"]
    assert profile["measured"].keys() >= {"bandwidth_bytes_per_second", "peak_flops"}


def test_a_piece_of_it(tmp_path: Path) -> None:
    done = run(BLOCKS[1], tmp_path)
    assert done.returncode == 0 and "ops.rope.batched.bfloat16" in done.stdout and "ops.linear" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_missing_kernel_limits_and_the_reference_stands_in(tmp_path: Path) -> None:
    done = run(BLOCKS[2], tmp_path)
    assert done.returncode == 0 and "grade: LIMITED" in done.stdout
    assert "LIMIT device.aten.attention: missing" in done.stdout and "plan: " in done.stdout
    assert "fallback: the reference serves mla_prefill in float32, right and slow" in done.stdout


def test_a_faulty_kernel_is_told_with_all_that_the_page_promises(tmp_path: Path) -> None:
    done = run(BLOCKS[3], tmp_path)
    assert done.returncode == 1 and "grade: UNFIT" in done.stdout
    line = next(line for line in done.stdout.splitlines() if "FAIL  ops.rms_norm.batched.float32" in line)
    for said in ("elements beyond the bound", "worst at", "is right", "allowed"):
        assert said in line
    assert "worst op: rms_norm by" in done.stdout
    again = next(line for line in done.stdout.splitlines() if line.startswith("  again: "))
    assert again.startswith(
        "  again: twinline adapt --device simchip:clean+rsqrt-approximated --model tiny-r1 --seed 0"
    )


def test_serving_with_the_profile(whole: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, folder = whole
    program, verb, *arguments = shlex.split(BLOCKS[4])
    assert (program, verb) == ("twinline", "serve")
    at = arguments.index("--profile") + 1
    arguments[at] = str(folder / arguments[at])
    with serving(*arguments) as served:
        answer = served.chat("What is 17+25?", temperature=0, max_tokens=200).json()
        assert "42" in answer["choices"][0]["message"]["content"]
