"""`twinline fit`: answers and exit codes, the ledger that adds up, the table, the same for machines, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from twinline.cli import main
from twinline.facts.chips import load
from twinline.facts.engine_rules import RULES
from twinline.facts.forms import FORMS
from twinline.facts.memory import CACHE_FORMS
from twinline.facts.model_files import bundled

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, code: int, *arguments: str) -> str:
    assert main(["fit", *arguments]) == code
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 120
    assert not any(line != line.rstrip() for line in out.splitlines())
    return out


def machine(capsys: Capture, code: int, *arguments: str) -> Any:
    assert main(["fit", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, code: int, *arguments: str) -> str:
    assert main(["fit", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("chip", "more", "code", "answer"),
    [
        ("h800x8", (), 1, "no"),
        ("a100x8", (), 1, "no"),
        ("h20x8", (), 0, "yes"),
        ("8xh20", (), 0, "yes"),
        ("h20", ("--cards", "8"), 0, "yes"),
        ("910bx16", ("--precision", "W8A8"), 0, "yes"),
        ("910bx16", (), 1, "no"),
        ("biren-106", (), 1, "unknown"),
        ("biren-166x16", (), 1, "unknown"),
    ],
)
def test_answers_and_exit_codes(capsys: Capture, chip: str, more: tuple[str, ...], code: int, answer: str) -> None:
    out = said(capsys, code, "deepseek-r1", "--chip", chip, *more)
    assert out.startswith(f"{answer}: deepseek-r1 for 1 request of 8,192 tokens on ")
    assert "688.57 GB (688,574,839,360 bytes)" in out or "690.83 GB" in out


def amounts(out: str) -> tuple[list[float], float]:
    """The ledger: the terms above `left for the cache`, and what it says is left."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith("memory of a device"))
    terms = []
    for line in lines[start:]:
        if line.startswith(" " * 40):
            continue  # the rest of a note
        number = re.search(r"\s(-?[\d,]+\.\d\d)(\s|$)", line)
        assert number is not None, line
        if line.strip().startswith("left for the cache"):
            return terms, float(number[1].replace(",", ""))
        terms.append(float(number[1].replace(",", "")))
    raise AssertionError("nothing is said to be left")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "twinline"])
@pytest.mark.parametrize("chip", ["h800x8", "h200x8", "910bx32", "rtx4090x64"])
def test_the_printed_lines_add_up(capsys: Capture, engine: str, chip: str) -> None:
    main(["fit", "deepseek-r1", "--chip", chip, "--engine", engine])
    terms, left = amounts(capsys.readouterr().out)
    assert sum(terms) == pytest.approx(left, abs=0.005 * (len(terms) + 1))


def test_a_no_offers_what_would_fit_and_it_does(capsys: Capture) -> None:
    found = machine(capsys, 1, "deepseek-r1", "--chip", "a100x8")
    assert found["answer"] == "no" and "fp8 is not for this chip" in found["fit"]["why"]
    assert found["changes"]
    for change in found["changes"]:
        again = machine(capsys, 0, "deepseek-r1", "--chip", "a100", "--cards", "8", *change["options"].split()) if (
            "--cards" not in change["options"]
        ) else machine(capsys, 0, "deepseek-r1", "--chip", "a100", *change["options"].split())  # fmt: skip
        assert again["answer"] == "yes" and again["fit"]["users"] == change["fit"]["users"]


def test_for_machines_every_line_has_its_origin(capsys: Capture) -> None:
    found = machine(capsys, 0, "deepseek-r1", "--chip", "h20x8", "--context", "4096", "--concurrency", "4")
    assert found["model"]["weight_bytes"] == 688_574_839_360 and found["model"]["parameters"] == 684_489_845_504
    assert found["fit"]["token_bytes"] == 70_272 and found["fit"]["concurrency"] == 4
    for line in found["fit"]["lines"]:
        assert line["how"] and line["source"] and line["bytes"] >= 0
    assert found["changes"] == []


def test_the_table_has_every_chip_and_invents_nothing(capsys: Capture) -> None:
    out = said(capsys, 0, "deepseek-r1")
    rows = {row["chip"]: row for row in machine(capsys, 0, "deepseek-r1")["chips"]}
    assert set(rows) == set(load().chips)
    for name, chip in load().chips.items():
        assert re.search(rf"^  {re.escape(name)} ", out, re.MULTILINE)
        if chip.memory_bytes().value is None:
            assert rows[name]["fit"] is None and rows[name]["why"] == "memory not known"
    assert rows["h20"]["fit"]["cards"] == 8 and rows["h800-sxm"]["fit"]["cards"] == 16
    assert (rows["ascend-910b3"]["fit"]["cards"], rows["ascend-910b3"]["fit"]["form"]) == (16, "int8")
    assert rows["ascend-910c"]["fit"]["cards"] == 8


def test_a_table_for_a_number_of_cards(capsys: Capture) -> None:
    rows = {row["chip"]: row for row in machine(capsys, 0, "deepseek-r1", "--cards", "8")["chips"]}
    assert rows["h20"]["fit"]["cards"] == 8
    assert rows["h800-sxm"]["fit"] is None and rows["h800-sxm"]["why"] == "does not fit on 8"
    said(capsys, 1, "deepseek-r1", "--precision", "fp32", "--cards", "1")


def test_a_config_file_and_the_embedded_model(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(bundled()["qwen3-8b"].config))
    assert "8.19 B parameters" in said(capsys, 0, str(file), "--chip", "h100")
    assert "DeepseekV3ForCausalLM" in said(capsys, 0, "tiny-r1", "--chip", "h100")


def test_a_folder_that_holds_something_else_is_said(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(bundled()["qwen3-8b"].config))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 16_381_470_720}}))
    assert "beware" not in said(capsys, 0, str(tmp_path), "--chip", "h100")
    index.write_text(json.dumps({"metadata": {"total_size": 17_000_000_000}}))
    assert "beware: the folder's own files hold 17,000,000,000 bytes, +3.8%" in said(
        capsys, 0, str(tmp_path), "--chip", "h100"
    )


def test_models_that_are_known_are_listed(capsys: Capture) -> None:
    out = said(capsys, 0)
    assert all(name in out for name in bundled())
    assert machine(capsys, 0)["deepseek-r1"] == "deepseek-ai/DeepSeek-R1"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing-like-it",), 1, "no model known here"),
        (("deepseek-r1", "--chip", "h21x8"), 1, "no chip is called"),
        (("deepseek-r1", "--precision", "int3"), 1, "no precision is called"),
        (("deepseek-r1", "--context", "0"), 2, "between 1 and"),
        (("deepseek-r1", "--chip", "h20x8", "--cards", "4"), 2, "says 8 cards and --cards 4"),
        (("deepseek-r1", "--chip", "h20x99999"), 2, "from 1 to 4096 cards"),
        (("deepseek-r1", "--chip", "h20x0"), 2, "from 1 to 4096 cards"),
        (("deepseek-r1", "--chip", "0xh20"), 2, "from 1 to 4096 cards"),
        (("deepseek-r1", "--chip", "h20x" + "9" * 5000), 1, "no chip is called"),
        (("deepseek-r1", "--chip", ""), 1, "no chip is called ''"),
        (("deepseek-r1", "--precision", ""), 1, "no precision is called ''"),
        (("deepseek-r1", "--chip", "h20x8", "--layout", ""), 1, "names no degree"),
        (("deepseek-r1", "--chip", "h20x8", "--layout", "tp²"), 1, "'tp²' is not one of"),
        (("--chip", "h20"), 2, "name a model"),
        (("deepseek-r1", "--chip", "h20x8", "--chip", "h800x8"), 2, "one --chip is answered at a time"),
        (("qwen3-8b", "--chip", "h20", "--precision", "w4a8"), 1, "qwen3-8b has none"),
        (("r1", "--chip", "h20x8"), 1, "did you mean deepseek-r1"),
        (("deepseek-r1", "--layout", "tp8"), 2, "name a --chip too"),
        (("deepseek-r1", "--chip", "h20x8", "--layout", "8"), 1, "tpN, ppN, dpN"),
    ],
)
def test_refusals(capsys: Capture, arguments: tuple[str, ...], code: int, words: str) -> None:
    assert words in refused(capsys, code, *arguments)


def test_an_unknown_architecture_names_those_known(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    assert "Qwen3MoeForCausalLM" in refused(capsys, 1, str(tmp_path))


DOCUMENT = Path(__file__).parents[2] / "docs" / "fit.md"


def consoles() -> list[list[str]]:
    blocks = re.findall(r"^```console\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks]


@pytest.mark.parametrize("block", consoles(), ids=lambda block: block[0].removeprefix("$ twinline fit "))
def test_what_the_guide_shows_is_what_is_printed(block: list[str], capsys: Capture) -> None:
    command, *shown = block
    code = 0 if shown[0].startswith("yes") else 1
    printed = said(capsys, code, *command.removeprefix("$ twinline fit ").split())
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    for line in shown:  # in this order, others between them
        wanted = " ".join(line.split())
        assert any(found.startswith(wanted) for found in lines), line


def test_the_guide_has_every_form_and_engine() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert len(consoles()) >= 4
    assert all(f"`{name}`" in text for name in [*FORMS, *RULES, *CACHE_FORMS])


def test_a_layout_says_how_many_cards_where_nothing_else_does(capsys: Capture) -> None:
    assert "on 8 x H20 96GB" in said(capsys, 0, "deepseek-r1", "--chip", "h20", "--layout", "tp8")
    # Two devices on a card.
    words = said(capsys, 0, "deepseek-r1", "--chip", "910c", "--layout", "tp16", "--precision", "w8a8")
    assert "on 8 x Ascend 910C" in words
    words = said(capsys, 1, "deepseek-r1", "--chip", "h20x4", "--layout", "tp8")
    assert "tp8 is for 8 devices, and there are 4" in words
