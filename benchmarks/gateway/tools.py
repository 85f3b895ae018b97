"""The two C programs: built from beside this file, and called.

Owns their command lines and the request bodies. Must not know gateways.
"""

from __future__ import annotations

import json
import mmap
import os
import string
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TEXT = ROOT / "src/twinline/models/tiny-r1"  # tokenizer and template of the benchmark's model
MODEL = "bench"
LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase  # wire.h: ALPHABET
SHORT_TOKENS = 8  # of an answer under `load`; answered at once
AT_ONCE = 16
FIRST_PORT = 9100
LINES = 16
PROMPT_TOKENS = 64  # of a prompt in token ids
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Tell me about foxes and dogs, please, in some detail."},
]


@dataclass(frozen=True)
class Kind:
    """How a request is put: as chat, or as a prompt of token ids. `direct` bodies ask the upstream itself."""

    name: str
    path: str

    def body(self, tokens: int, *, stream: bool, direct: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"model": MODEL, "max_tokens": tokens}
        if self.name == "chat":
            body["messages"] = MESSAGES
        else:
            body["prompt"] = [200 + n for n in range(PROMPT_TOKENS)]
            if direct and stream:
                body["return_token_ids"] = True
        return body | {"stream": True} if stream else body


CHAT = Kind("chat", "/v1/chat/completions")
TOKEN_IDS = Kind("token ids", "/v1/completions")


def build(folder: Path) -> None:
    """Compiles what is older than its source. Raises CalledProcessError with the compiler's words on stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("upstream", "client"):
        sources = [HERE / f"{name}.c", *HERE.glob("*.h")]
        program = folder / name
        if not program.exists() or program.stat().st_mtime < max(source.stat().st_mtime for source in sources):
            subprocess.run(["gcc", "-O2", "-Wall", "-o", str(program), str(sources[0])], check=True)


def letter_ids() -> str:
    """The ids of LETTERS in the benchmark's vocabulary, for --ids."""
    vocabulary = json.loads((TEXT / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    return ",".join(str(vocabulary[letter]) for letter in LETTERS)


def upstream_command(folder: Path, times: Path, rate: float, *, lockstep: bool) -> list[str]:
    return [
        str(folder / "upstream"), "--port", str(FIRST_PORT), "--ports", str(LINES), "--times", str(times),
        "--ids", letter_ids(), "--model", MODEL, "--rate", str(rate), "--at-once", str(AT_ONCE),
        *(["--lockstep"] if lockstep else []),
    ]  # fmt: skip


class Progress:
    """What `client streams` has so far, from the memory that it shares (wire.h: send_times)."""

    def __init__(self, times: Path) -> None:
        descriptor = os.open(times, os.O_RDWR | os.O_CREAT, 0o600)
        size = 16
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._memory = mmap.mmap(descriptor, size)
        os.close(descriptor)

    def clear(self) -> None:
        self._memory[:16] = bytes(16)

    def read(self) -> tuple[int, int]:
        """Streams open, and tokens received."""
        return struct.unpack("qq", self._memory[:16])
