"""The command line itself: verbs, one-line errors, exit codes, and what a start imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import twinline
from twinline.cli import VERBS, build_parser, main

SOURCE = Path(twinline.__file__).parents[1]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("twinline: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VERB"),
        (["fly"], "'fly'"),
        (["serve", "--port", "99999"], "between 0 and 65535"),
        (["serve", "--port", "http"], "not a whole number"),
        (["serve", "--dtype", "int8"], "bfloat16"),
        (["serve", "--max-running", "0"], "at least 1"),
        (["serve", "--no-such-option"], "--no-such-option"),
        (["bench"], "WHAT"),
        (["bench", "serve", "--rate", "5", "--concurrency", "2"], "not allowed with"),
        (["bench", "serve", "--rate", "-1"], "above 0"),
        (["bench", "serve", "--token-ids"], "--vocab"),
        (["bench", "serve", "--token-ids", "--vocab", "9", "--endpoint", "chat"], "completions"),
        (["bench", "serve", "--prompts", "f", "--prompt-tokens", "5"], "--prompt-tokens"),
        (["bench", "serve", "--output", "/no/such/folder/f.json"], "/no/such/folder"),
        (["models", "--url", "ftp://x"], "http://HOST:PORT/v1"),
    ],
)
def test_a_wrong_question_gets_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in error_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dif", "f.yaml"], "invalid choice: 'dif'; did you mean 'diff'? (choose from 'serve', 'up'"),
        (["up", "--detatch", "f.yaml"], "--detatch; did you mean --detach? (see twinline up --help)"),
        (["serve", "--prot=80"], "--prot=80; did you mean --port? (see twinline serve --help)"),
        (["keys", "create", "a", "--rpmm", "3"], "did you mean --rpm?"),
        (["fit", "deepseek-r1", "--engine", "vlm"], "'vlm'; did you mean 'vllm'?"),
        (["up", "f.yaml", "more"], "unrecognized arguments: more (see twinline up --help)"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in error_line(capsys)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert f"usage: twinline {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["chat", "--help"], ["bench", "serve", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "numpy", "aiohttp", "starlette", "uvicorn", "tokenizers", "jinja2", "safetensors"}
    code = (
        "import sys\nfrom twinline.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"sys.exit(' '.join({heavy!r} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)})
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_traceback_is_shown_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINLINE_DEBUG", "1")
    assert main(["serve", str(tmp_path / "none")]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("twinline: error: no model folder")


def test_only_the_asked_verb_is_configured() -> None:
    args = build_parser("models").parse_args(["models", "--json"])
    assert args.json is True
    assert args.verb == "models"
