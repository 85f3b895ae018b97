"""The requests that `twinline bench serve` sends: made of random words, of random token ids, or read from a file.

Owns the bodies. The same seed gives the same bodies. Must not know how they are sent.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinline.cli.parser import CliError
from twinline.verify.load import Body, Endpoint

# short common words: near one token each in most vocabularies
WORDS = (
    "the of and to in is it that was for on are as with his they at be this from have or by one had not but what all"
    " were when we there can an your which their said if do will each about how up out them then she many some so these"
    " would other into has more her two like him see time could no make than first been its who now people my made over"
    " did down only way find use may water long little very after words called just where most know"
).split()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every request has in common. `vocab` is the bound of random token ids; None makes words."""

    model: str
    endpoint: Endpoint
    output_tokens: int
    prompt_tokens: int = 128
    vocab: int | None = None
    ignore_eos: bool = True
    seed: int = 0

    def body(self, prompt: str | list[int] | list[dict[str, Any]], output_tokens: int) -> Body:
        """A streaming request; greedy, so that repeated runs ask for the same work."""
        body: Body = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.endpoint == "completions":
            return {**body, "prompt": prompt}
        return {**body, "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}


def synthetic(wanted: Wanted, count: int) -> list[Body]:
    """`count` unlike prompts of `prompt_tokens` ids, or about as many tokens of words."""
    rng = random.Random(wanted.seed)
    bodies = []
    for _ in range(count):
        prompt: str | list[int]
        if wanted.vocab is not None:
            prompt = [rng.randrange(wanted.vocab) for _ in range(wanted.prompt_tokens)]
        else:
            prompt = " ".join(rng.choices(WORDS, k=wanted.prompt_tokens))
        bodies.append(wanted.body(prompt, wanted.output_tokens))
    return bodies


def from_file(wanted: Wanted, file: Path, count: int | None) -> list[Body]:
    """One body a line of JSON: `{"prompt": text or ids}` or `{"messages": [...]}`, and `max_tokens` where it differs.

    `count` None takes each line once; more than there are lines goes round again.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as exc:
        raise CliError(f"cannot read {file}: {exc.strerror}") from None
    if not lines:
        raise CliError(f"{file} has no prompts")
    bodies = [_parse(wanted, line, f"{file}:{number}") for number, line in enumerate(lines, 1)]
    return [bodies[i % len(bodies)] for i in range(count or len(bodies))]


def _parse(wanted: Wanted, line: str, place: str) -> Body:
    try:
        entry = json.loads(line)
    except ValueError as exc:
        raise CliError(f"{place}: not JSON: {exc}") from None
    if not isinstance(entry, dict):
        raise CliError(f"{place}: not an object")
    chat = wanted.endpoint == "chat"
    prompt = entry.get("messages", entry.get("prompt")) if chat else entry.get("prompt")
    if not (isinstance(prompt, str) or (isinstance(prompt, list) and prompt)):
        expected = '"prompt" (text) or "messages"' if chat else '"prompt" (text or token ids)'
        raise CliError(f"{place}: needs {expected} for the {wanted.endpoint} endpoint")
    if chat and isinstance(prompt, list) and not isinstance(prompt[0], dict):
        raise CliError(f"{place}: the chat endpoint takes no token ids; use --endpoint completions")
    return wanted.body(prompt, entry.get("max_tokens", wanted.output_tokens))
