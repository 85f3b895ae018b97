"""Command lines: options as flags, and the container form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from twinline.lines.drivers import driver
from twinline.lines.drivers.launch import check_launch, container_name, flags, launched, program
from twinline.lines.spec import LineSpec


def spec(**fields: Any) -> LineSpec:
    return LineSpec(**{"name": "fast", "model": "m", "engine": "vllm", "weights": "/weights/m"} | fields)


def test_options_become_flags_and_win_over_what_is_derived() -> None:
    options = {"max_model_len": 9, "enforce_eager": True, "log_stats": False, "seed": None, "names": ["a", "b"],
               "config": {"a": 1}, "executable": "x"}  # fmt: skip
    assert flags(spec(options=options), {"max-model-len": 5, "dtype": None, "metrics": True}) == [
        "--metrics", "--max-model-len", "9", "--enforce-eager", "--no-log-stats", "--names", "a", "b",
        "--config", '{"a": 1}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("executable", "words"),
    [(None, ["python", "-m", "engine"]), ("/venv/bin/python", ["/venv/bin/python", "-m", "engine"]),
     (["nice", "engine", "serve"], ["nice", "engine", "serve"])],
)  # fmt: skip
def test_what_runs_can_be_named(executable: object, words: list[str]) -> None:
    options = {} if executable is None else {"executable": executable}
    assert program(spec(options=options), ("python", "-m", "engine")) == words


def test_the_fleets_environment_wins() -> None:
    command = launched(spec(env={"A": "2"}), 1, ["run"], {"A": "1", "B": "3"})
    assert (command.argv, command.env) == (["run"], {"A": "2", "B": "3"})


def test_a_container_runs_the_same_command_with_the_fleets_own_device_flags() -> None:
    line = spec(
        name="fast#2", container="registry.example/engine:1", env={"CARDS": "0,1", "SECRET": "s3cret"},
        options={"container_args": ["--device", "/dev/card0"], "container_runtime": "podman"},
    )  # fmt: skip
    command = launched(line, 9000, ["python", "-m", "server", "--port", "9000"], {"A": "1"})
    argv = list(command.argv)
    assert argv[:4] == ["podman", "run", "--rm", "--init"]
    assert argv[argv.index("--name") + 1] == container_name(line, 9000) == "twinline-fast-2-9000"
    assert argv[argv.index("--network") + 1] == "host"
    assert argv[argv.index("--volume") + 1] == "/weights/m:/weights/m:ro"
    assert argv[argv.index("--device") + 1] == "/dev/card0"
    image = argv.index("registry.example/engine:1")
    assert argv[image - 2 : image] == ["--entrypoint", "python"]
    assert argv[image + 1 :] == ["-m", "server", "--port", "9000"]
    assert command.env == {"A": "1", "CARDS": "0,1", "SECRET": "s3cret"}
    assert {argv[i + 1] for i, word in enumerate(argv) if word == "--env"} == {"A", "CARDS", "SECRET"}
    assert "s3cret" not in " ".join(argv)


def test_a_container_sees_all_that_the_weights_consist_of(tmp_path: Path) -> None:
    """The other parts of a split file, and what the links of a model hub's cache lead to."""

    def seen(weights: Path) -> list[str]:
        argv = list(launched(spec(container="i", weights=str(weights)), 9000, ["run"], {}).argv)
        return [argv[index + 1] for index, word in enumerate(argv) if word == "--volume"]

    part = tmp_path / "r1-00001-of-00004.gguf"
    part.touch()
    assert seen(part) == [f"{tmp_path}:{tmp_path}:ro"]
    assert seen(tmp_path / "r1.gguf") == [f"{tmp_path}/r1.gguf:{tmp_path}/r1.gguf:ro"]
    hub = tmp_path / "hub" / "models--x"
    blobs, revision = hub / "blobs", hub / "snapshots" / "abc"
    (revision / "tokenizer").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1f").write_text("{}")
    (revision / "config.json").symlink_to("../../blobs/1f")
    (revision / "tokenizer" / "merges.txt").symlink_to("../../../blobs/1f")
    (revision / "again.json").symlink_to("config.json")
    assert seen(revision) == [f"{revision}:{revision}:ro", f"{blobs}:{blobs}:ro"]
    for number in (1, 2):
        (blobs / f"2{number}").touch()
        (revision / f"r1-0000{number}-of-00002.gguf").symlink_to(f"../../blobs/2{number}")
    assert seen(revision / "r1-00001-of-00002.gguf") == [f"{revision}:{revision}:ro", f"{blobs}:{blobs}:ro"]
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "vocab.txt").touch()
    (revision / "vocab.txt").symlink_to(elsewhere / "vocab.txt")
    (revision / "gone.json").symlink_to("/gone.json")
    (revision / "loop").symlink_to("loop")
    file = elsewhere / "vocab.txt"  # alone: what else is beside it may be the container's own
    assert seen(revision)[2:] == [f"{file}:{file}:ro"]
    (revision / "vocab.txt").unlink()
    short = tmp_path / "r1"  # the container has its contents in its place, and what they lead to beside them
    short.symlink_to(revision)
    assert seen(short) == [f"{short}:{short}:ro", f"{blobs}:{tmp_path.parent}/blobs:ro"]


def test_every_engine_that_is_started_can_run_in_a_container() -> None:
    for engine in ("vllm", "sglang", "llamacpp", "ollama"):
        argv = list(driver(engine).command(spec(engine=engine, container="image"), 9001).argv)
        assert argv[0] == "docker", engine
        assert "image" in argv, engine


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"options": {"executable": 3}}, "executable"),
        ({"options": {"executable": ""}}, "executable"),
        ({"container": "i", "options": {"container_args": "--device x"}}, "container_args"),
        ({"options": {"container_args": ["x"]}}, "without `container`"),
        ({"url": "http://a", "container": "i"}, "url:"),
        ({"url": "http://a", "options": {"executable": "x"}}, "url:"),
    ],
)
def test_our_own_options_are_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_launch(spec(**fields))
