"""The example fleet as a newcomer meets it: `twinline up`, the README's trick, `ps`, `usage`, `down`, all real."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

ROOT = Path(__file__).parents[1]
CLI = [sys.executable, "-m", "twinline.cli"]


class Fleet:
    """The example on a free port, in a home of its own."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        text = (ROOT / "examples/laptop.yaml").read_text("utf-8").replace("port: 8000", f"port: {self.port}")
        self.file = folder / "laptop.yaml"
        self.file.write_text(text, "utf-8")
        scripts = folder / "bin"  # a `twinline` on the search path that is this tree's
        scripts.mkdir()
        (scripts / "twinline").write_text(f'#!/bin/sh\nexec {" ".join(CLI)} "$@"\n')
        (scripts / "twinline").chmod(0o755)
        self.env = os.environ | {
            "TWINLINE_HOME": str(folder / "home"),
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "NO_PROXY": "127.0.0.1",
        }

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run([*CLI, *words], capture_output=True, text=True, env=self.env, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def lines(self) -> dict[str, Any]:
        return {line["name"]: line for line in json.loads(self.run("ps", "--json"))["lines"]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("f"))
    try:
        assert f"http://127.0.0.1:{made.port}/v1" in made.run("up", "--detach", str(made.file))
        yield made
    finally:
        made.run("down")


def test_the_readmes_trick(fleet: Fleet, tmp_path: Path) -> None:
    (trick,) = re.findall(
        r"^```sh\n(for i in [^`]*?twinline ps.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    trick = trick.replace("127.0.0.1:8000", f"127.0.0.1:{fleet.port}")
    under_way = """for i in $(seq 100); do twinline ps --json | grep -qE '"in_flight": *[1-9]' && break; done"""
    trick = trick.replace("kill -9", f"{under_way}\nkill -9", 1)
    done = subprocess.run(
        ["bash", "-c", trick], cwd=tmp_path, env=fleet.env, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    answers = sorted(tmp_path.glob("answer*.txt"))
    assert len(answers) == 16
    for answer in answers:
        *events, end = answer.read_text("utf-8").strip().split("\n\n")
        assert end == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert len("".join(chunk["choices"][0]["text"] for chunk in chunks)) > 900  # a token has at least a character
    with openai.OpenAI(base_url=f"http://127.0.0.1:{fleet.port}/v1", api_key="none") as client:
        whole = client.completions.create(
            model="tiny-r1", prompt="17+25=", max_tokens=900, seed=1, extra_body={"ignore_eos": True}
        )
    assert whole.usage is not None and whole.usage.completion_tokens == 900
    assert any(line["restarts"] for line in fleet.lines().values())


def test_the_simulated_lines_are_marked_and_answer_under_one_name(fleet: Fleet) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{fleet.port}/v1", api_key="none") as client:
        names = {model.id: model for model in client.models.list()}
        assert set(names) == {"tiny-r1", "played-r1"}
        assert names["played-r1"].model_extra is not None and names["played-r1"].model_extra["label"] == "simulated"
        answer = client.chat.completions.create(
            model="played-r1@ascend", max_tokens=8, messages=[{"role": "user", "content": "Who are you?"}]
        )
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_what_it_cost_is_told(fleet: Fleet) -> None:
    assert "played-r1" in fleet.run("usage")
    assert '"ascend"' in fleet.run("usage", "--by", "line", "--json")
