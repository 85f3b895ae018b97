"""`twinline adapt`: what it refuses before it climbs, and what it says where nothing can be said or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinline.cli import adapt, main
from twinline.cli.adapt_text import Progress
from twinline.cli.parser import CliError
from twinline.verify.ladder import climb, messages

Capture = pytest.CaptureFixture[str]
ONE = ["adapt", "--device", "cpu", "--only", "ops.embedding.reference.float32"]


def test_a_check_that_nobody_makes_is_no_verdict_on_the_chip(capsys: Capture) -> None:
    assert main(["adapt", "--device", "cpu", "--only", "ops.nosuch"]) == 2
    captured = capsys.readouterr()
    assert "nothing was tried" in captured.err and "ops.nosuch" in captured.err and "grade" not in captured.out


def test_a_folder_that_cannot_be_written_to_is_told_before_the_climb(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main([*ONE, "--out", str(tmp_path / "file" / "deeper")]) == 1
    captured = capsys.readouterr()
    assert "cannot write to" in captured.err and captured.out == ""


def test_no_folder_is_left_where_nothing_came_of_the_climb(capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["adapt", "--device", "nosuchchip", "--only", "device", "--out", str(out)]) == 1
    assert not out.exists()
    out.mkdir()
    assert main(["adapt", "--device", "nosuchchip", "--only", "device", "--out", str(out)]) == 1
    assert out.exists()  # it was there before


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_does_not_take_the_findings_along(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path, as_json: bool
) -> None:
    def full(done: object, out: Path, with_profile: bool) -> None:
        raise CliError(f"cannot write to {out}: No space left on device")

    monkeypatch.setattr(adapt, "write", full)
    assert main([*ONE, "--out", str(tmp_path), *(["--json"] if as_json else [])]) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    if as_json:
        assert json.loads(captured.out)["grade"]["name"] == "sound"
    else:
        assert "grade: SOUND" in captured.out and "written" not in captured.out


def test_an_interrupted_climb_reports_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    tell = Progress.tell

    def interrupted(progress: Progress, message: messages.Message) -> None:
        tell(progress, message)
        if isinstance(message, messages.Entered) and message.level == "ops":
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "tell", interrupted)
    asked = ["adapt", "--device", "simchip:clean", "--out", str(tmp_path)]
    assert main([*asked, "--only", "device.copies", "--only", "ops.rope", "--only", "layers"]) == 130
    said = capsys.readouterr().out
    assert "  pass  device.copies" in said and "grade: SOUND" in said and "(not the whole ladder)" in said
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "report.md", "report.json"}
    findings = json.loads((tmp_path / "report.json").read_text("utf-8"))["findings"]
    left = {found["check"] for found in findings if found["text"] == "not climbed to its end: interrupted"}
    assert left == {"ops", "layers"}


def test_nothing_is_made_of_a_climb_that_is_interrupted_before_the_device_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    def interrupted(child: climb.Child, seconds: float) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(climb.Child, "line", interrupted)
    out = tmp_path / "new"
    assert main(["adapt", "--device", "simchip:clean", "--only", "ops.rope", "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err and not out.exists()
