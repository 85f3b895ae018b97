"""An engine on a script: each step takes a set time and gives the tokens that the script says. The clock is its own."""

from __future__ import annotations

from typing import Any


class Scripted:
    """Computes up to `chunk` prompt tokens a step, then one token for every request that has its prompt behind it."""

    def __init__(self, chunk: int, step_seconds: float) -> None:
        self.chunk, self.step_seconds = chunk, step_seconds
        self.now = 0.0
        self.waiting: dict[str, int] = {}
        self.left: dict[str, int] = {}
        self.number = 0

    def clock(self) -> float:
        return self.now

    def submit(self, prompt: list[int], new: int) -> str:
        self.number += 1
        key = str(self.number)
        self.waiting[key], self.left[key] = len(prompt), new
        return key

    def step(self) -> list[str]:
        if not self.left:
            return []
        self.now += self.step_seconds
        decoding = [key for key in self.left if not self.waiting[key]]
        room = self.chunk
        for key, tokens in self.waiting.items():
            taken = min(room, tokens)
            self.waiting[key] -= taken
            room -= taken
            if taken and not self.waiting[key]:
                decoding.append(key)
        for key in decoding:
            self.left[key] -= 1
            if not self.left[key]:
                del self.left[key]
        return decoding or self.step()

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass
