"""The facts of a model folder that its files' headers tell: name, architecture, parameters, bytes.

Owns where the embedded model lies. Reads no weights and imports nothing heavy.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from twinline.cli.parser import CliError
from twinline.facts.mistaken import no_model_folder, taken_for

EMBEDDED = "tiny-r1"


@dataclass(frozen=True, slots=True)
class Folder:
    """A model on disk. `parameters` counts elements of all tensors, quantization scales left out."""

    name: str
    path: str
    architecture: str
    parameters: int
    tensor_bytes: int


def embedded() -> Path:
    """The folder of the demonstration model that comes with the package."""
    return Path(str(resources.files("twinline"))) / "models" / EMBEDDED


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`; a CliError says what is missing."""
    if wrong := no_model_folder(folder):
        raise CliError(wrong)
    file = folder / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CliError(f"{file} is not a JSON object: {exc}{taken_for(file)}") from None


def tensor_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor name to `dtype`, `shape`, `data_offsets`: 8 bytes of little-endian length, then JSON (safetensors)."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        return {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    except (ValueError, struct.error, AttributeError, RecursionError) as exc:
        raise CliError(f"{file} is not a safetensors file: {exc}{taken_for(file)}") from None


def read_folder(path: Path) -> Folder:
    """The facts of the folder at `path`."""
    config = read_config(path)
    tensors = {name: t for file in sorted(path.glob("*.safetensors")) for name, t in tensor_header(file).items()}
    weights = [t for name, t in tensors.items() if "scale" not in name.rpartition(".")[2]]
    try:
        return Folder(
            name=path.name,
            path=str(path),
            architecture=", ".join(config.get("architectures") or ["unknown"]),
            parameters=sum(math.prod(t["shape"]) for t in weights),
            tensor_bytes=sum(t["data_offsets"][1] - t["data_offsets"][0] for t in tensors.values()),
        )
    except (LookupError, TypeError, ArithmeticError) as exc:
        raise CliError(f"{path} is not a model folder that can be read: {exc!r}") from None
