"""How an engine's command line is written, on this machine or in a container.

Owns flags made from options, and the container form. Must not know any engine, nor any vendor: what a container needs
to see cards is in the fleet's own words (`container_args`).
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twinline.lines.drivers.driver import Command
from twinline.lines.spec import LineSpec

# Options that are ours and never the engine's.
OURS = frozenset({"executable", "container_args", "container_runtime"})
LOOPBACK = "127.0.0.1"
BLOBS = "blobs"
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def check_launch(spec: LineSpec) -> None:
    """Raises ValueError for options of ours that have the wrong form or no use."""
    executable, args = spec.options.get("executable"), spec.options.get("container_args")
    if executable is not None and not (executable and (isinstance(executable, str) or strings(executable))):
        raise ValueError("options.executable: a program, or a list of a program and its first arguments")
    if args is not None and not strings(args):
        raise ValueError("options.container_args: a list of arguments for the container runtime, each a string")
    if spec.container is None:
        for name in ("container_args", "container_runtime"):
            if name in spec.options:
                raise ValueError(f"options.{name}: it has no use without `container`")
    if spec.url is not None and (spec.container or OURS & spec.options.keys()):
        raise ValueError("url: a line with a url is started elsewhere; container and executable have no use")


def strings(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(item, str) for item in value)


def program(spec: LineSpec, default: Sequence[str]) -> list[str]:
    """What runs: `options.executable` in place of `default`'s first word, or, as a list, of all its words."""
    named = spec.options.get("executable", default[0])
    return [named, *default[1:]] if isinstance(named, str) else list(named)


def flags(
    spec: LineSpec, derived: Mapping[str, Any], *, ours: frozenset[str] = OURS, negated: bool = True
) -> list[str]:
    """`derived`, overruled by the fleet's options (but for `ours`), as `--like-this value`.

    True is a bare flag, None leaves the flag out, False is `--no-like-this` or, if the engine's flags have no such form
    (`negated` false), leaves it out too; a list gives several values, an object its JSON.
    """
    given = {name.replace("_", "-"): value for name, value in spec.options.items() if name not in ours}
    merged = {name: value for name, value in derived.items() if name not in given} | given
    argv: list[str] = []
    for name, value in merged.items():
        if value is None or (value is False and not negated):
            continue
        if value is True:
            argv.append(f"--{name}")
        elif value is False:
            argv.append(f"--no-{name}")
        elif isinstance(value, Mapping):
            argv += [f"--{name}", json.dumps(value)]
        elif isinstance(value, (list, tuple)):
            argv += [f"--{name}", *map(str, value)]
        else:
            argv += [f"--{name}", str(value)]
    return argv


def launched(spec: LineSpec, port: int, argv: Sequence[str], env: Mapping[str, str]) -> Command:
    """The command as it is run: as it stands, or in `spec.container`. The fleet's environment wins over `env`.

    A container shares the host's network (the engine listens on loopback all the same) and sees the weights, with what
    belongs to them, read-only under their own paths. Its name is `container_name`, for whoever has to remove it after
    the runtime's client was killed. Environment values go by the client's environment, so that no secret stands in a
    command line.
    """
    together = {**env, **spec.env}
    if spec.container is None:
        return Command(list(argv), together)
    run = [spec.options.get("container_runtime", "docker"), "run", "--rm", "--init"]
    run += ["--name", container_name(spec, port), "--network", "host", "--ipc", "host"]
    for name in together:
        run += ["--env", name]
    if spec.folder is not None and spec.folder.is_absolute():
        for there, path in mounts(spec.folder).items():
            run += ["--volume", f"{path}:{there}:ro"]
    run += spec.options.get("container_args", [])
    # Images differ in their entry point; naming it makes the command the same everywhere.
    return Command([*run, "--entrypoint", argv[0], spec.container, *argv[1:]], together)


def mounts(weights: Path) -> dict[Path, Path]:
    """What a container has to see, by its path there, to read `weights`: with the other parts of a split GGUF file, and
    with what links among these, or in a folder, lead to, as in the cache of a model hub."""
    split = SPLIT.search(weights.name)
    root = weights.parent if split else weights
    parts = root.glob(glob.escape(weights.name[: split.start()]) + "-*-of-*.gguf") if split else root.rglob("*")
    seen = {root: root}
    for link in sorted(parts):
        if link.is_symlink() and link.exists():  # one that leads nowhere is nobody's loss
            target, real = Path(os.path.normpath(link.parent / link.readlink())), link.resolve()
            if target.is_relative_to(root):
                continue
            if target.parent.name == BLOBS == real.parent.name:  # a hub's cache, of which only the model's own is there
                seen[target.parent] = real.parent
            else:
                seen[target] = real
    return seen


def container_name(spec: LineSpec, port: int) -> str:
    return "twinline-" + re.sub(r"[^a-zA-Z0-9_.-]", "-", f"{spec.name}-{port}")
