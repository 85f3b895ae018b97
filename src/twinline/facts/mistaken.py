"""What lies where a model folder, or a file of one, is wanted: the usual mistakes, in words that say what to do.

Owns the words. Looks at names and first bytes; must not know what is read from a folder.
"""

from __future__ import annotations

from pathlib import Path

FOR_LLAMACPP = "a GGUF file, which a fleet's llamacpp line serves"
WANTED = "wanted is a Hugging Face model folder, with config.json in it"
BEGINNINGS = {
    b"GGUF": FOR_LLAMACPP,
    b"version https://git-lfs.github.com/": "a Git LFS pointer: `git lfs pull` fetches the file itself",
}


def no_model_folder(path: Path) -> str | None:
    """Why this is no Hugging Face model folder, and what it is; None for a folder with a `config.json`."""
    try:
        if (path / "config.json").exists():
            return None
        found = sorted(file.name for file in path.iterdir() if file.suffix == ".gguf")
    except FileNotFoundError:
        return f"no model folder at {path}"
    except NotADirectoryError:
        return f"{path} is a file{taken_for(path)}; {WANTED}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if found:
        return f"{path} has no config.json, but {found[0]}, {FOR_LLAMACPP}; {WANTED}"
    return f"{path} has no config.json: not a Hugging Face model folder"


def taken_for(path: Path) -> str:
    """What to add to an error about a file that reads as nothing: what it is, by its first bytes."""
    try:
        with path.open("rb") as file:
            begins = file.read(max(map(len, BEGINNINGS)))
    except OSError:
        return ""
    return next((f" (it is {what})" for first, what in BEGINNINGS.items() if begins.startswith(first)), "")
