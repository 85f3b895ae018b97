"""`twinline convert` as it is typed: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinline.cli import main
from twinline.cli.folder import embedded
from twinline.engine.build import Options, build


def test_tiny_r1_as_int8_with_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "tiny-int8"
    options = ["--to", "int8", "--tokens", "120", "--problems", "6"]
    assert main(["convert", str(embedded()), str(new), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bytes_after"] < 0.6 * report["bytes_before"]
    assert report["matrices"]["int8"] == 227 and report["kept_plain"] == [] and report["copied_exactly"] == 0
    quality = report["quality"]
    assert quality["positions"] >= 120 and 0 < quality["kl_nats"] < 0.05 and quality["top1_agreement"] > 0.95
    tasks = quality["tasks"]
    assert tasks["problems"] == 6 and tasks["source_right"] >= 5 and tasks["target_right"] >= 5
    assert tasks["source_right"] - tasks["lost"] + tasks["won"] == tasks["target_right"]
    built = build(new, Options(device="cpu", kv_tokens=64), lambda outputs: None)
    assert built.ops.facts.weights.kind == "int8"
    # On, from there, on a text of one's own, for people.
    texts = tmp_path / "texts.txt"
    texts.write_text("17+25=42\n\nWhat is larger, 7 or 9?\n计算3+4\n", "utf-8")
    assert main(["convert", str(new), str(tmp_path / "again"), "--to", "int8", "--texts", str(texts)]) == 0
    text = capsys.readouterr().out
    assert "have the source's own numbers" in text and str(texts) in text and "problems" not in text
    agreement = next(line for line in text.splitlines() if "same likeliest token" in line)
    assert agreement.endswith(" 100.00%")
    assert "\x1b" not in text


def test_without_quality_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinline.verify.quality.quality", lambda *args: pytest.fail("measured"))
    assert main(["convert", str(embedded()), str(tmp_path / "new"), "--to", "bf16", "--quality", "off"]) == 0
    assert "not measured (not asked for)" in capsys.readouterr().out


def test_a_report_that_cannot_be_made_is_a_failure_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    asked = ["convert", str(embedded()), str(tmp_path / "new"), "--to", "int4:32", "--texts", str(empty), "--json"]
    assert main(asked) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["quality"] is None and "no line of at least two tokens" in report["quality_missing"]
    assert (tmp_path / "new" / "model.safetensors").exists(), "the folder is whole"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{tiny}", "{new}", "--to", "int3"], 2, "'int3' is nothing to convert to; use one of bfloat16"),
        (["{tiny}", "{new}", "--to", "int8:64"], 2, "a form of this engine alone"),
        (["{tiny}", "{new}"], 2, "--to"),
        (["{tiny}", "{tiny}", "--to", "fp8"], 1, "exists already"),
        (["{new}", "{new}2", "--to", "fp8"], 1, "no model folder at"),
        (["{tiny}", "{new}", "--to", "fp8", "--texts", "{new}"], 1, "no file at"),
        (["{tiny}", "{new}", "--to", "fp8", "--texts", "x", "--quality", "off"], 2, "--quality is off"),
    ],
)
def test_what_is_refused(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(tiny=embedded(), new=tmp_path / "new") for a in arguments]
    assert main(["convert", *filled]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
