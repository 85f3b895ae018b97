"""Where a model's `config.json` comes from: one that the package knows, a folder, or a file.

Owns the bundled configurations under `data/models` and what a folder's own files say of its size. Reads no weights.
"""

from __future__ import annotations

import difflib
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from twinline.facts.mistaken import no_model_folder, taken_for
from twinline.facts.models import UnsupportedModel

BUNDLED = Path(__file__).parent / "data" / "models"
LONGEST_HEADER = 100 * 2**20  # as safetensors itself allows
MOST_BYTES = 2**63  # no folder comes near


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration and where it was read. `stored_bytes`: of the tensors that lie beside it, None if none do."""

    name: str
    config: dict[str, Any]
    source: str
    hub: str = ""
    aliases: tuple[str, ...] = ()
    stored_bytes: int | None = None


@cache
def bundled() -> dict[str, ModelFile]:
    """The models that the package knows, by name."""
    files = sorted(BUNDLED.glob("*.json"))
    models = [msgspec.json.decode(file.read_bytes(), type=ModelFile) for file in files]
    return {model.name: model for model in models}


def find_model(text: str) -> ModelFile:
    """The model of this name, hub name, folder or file. Raises UnsupportedModel, which names near misses."""
    path = Path(text)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return ModelFile(name=path.parent.resolve().name if path.name == "config.json" else path.stem,
                         config=_read(path), source=str(path))  # fmt: skip
    known: dict[str, ModelFile] = {}
    for model in bundled().values():
        for name in (model.name, model.hub, model.hub.rpartition("/")[2], *model.aliases):
            known.setdefault(name.lower(), model)
    wanted = text.strip().lower()
    if wanted in known:
        return known[wanted]
    near = [name for name in known if len(wanted) > 1 and wanted in name][:4]
    near += difflib.get_close_matches(wanted, known, n=4, cutoff=0.5)
    few = list(dict.fromkeys(known[name].name for name in near))[:4]
    hint = f"did you mean {', '.join(few)}?" if few else "`twinline fit` lists those that are"
    raise UnsupportedModel(f"{text!r} is no folder, no config.json and no model known here; {hint}")


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UnsupportedModel(f"{file} cannot be read as a config.json: {error}{taken_for(file)}") from None
    if not isinstance(config, dict):
        raise UnsupportedModel(f"{file} should hold one JSON object")
    return config


def _folder(folder: Path) -> ModelFile:
    if wrong := no_model_folder(folder):
        raise UnsupportedModel(wrong)
    file = folder / "config.json"
    return ModelFile(
        name=folder.resolve().name, config=_read(file), source=str(file), stored_bytes=stored_bytes(folder)
    )


def stored_bytes(folder: Path) -> int | None:
    """Bytes of the tensors in a folder: the index's `total_size`, else the sum over the files' headers; None if the
    folder has neither or they cannot be read."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            size = json.loads(index.read_text("utf-8"))["metadata"]["total_size"]
            if isinstance(size, int) and 0 < size < MOST_BYTES:
                return size
    except (ValueError, OSError, KeyError, TypeError, RecursionError):
        pass
    sizes = [_tensors(file) for file in sorted(folder.glob("*.safetensors"))]
    return None if not sizes or None in sizes else sum(size for size in sizes if size is not None)


def _tensors(file: Path) -> int | None:
    """Bytes of a file's tensors by its header: 8 bytes of little-endian length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LONGEST_HEADER:
                return None
            header = json.loads(stream.read(length))
        size = sum(t["data_offsets"][1] - t["data_offsets"][0] for n, t in header.items() if n != "__metadata__")
        return size if isinstance(size, int) and 0 <= size < MOST_BYTES else None
    except (ValueError, OSError, KeyError, TypeError, IndexError, struct.error, RecursionError, AttributeError):
        return None
