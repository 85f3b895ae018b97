"""Examines a served model on held-out problems: asks over HTTP, greedily, and checks every answer.

    python -m twinline.verify.examine --url http://127.0.0.1:8000/v1 --model tiny-r1 --count 1000

Owns the asking and the counting. Knows no engine: any OpenAI-compatible endpoint can sit the examination.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass

import aiohttp

from twinline.verify.problems import Problem, examination


@dataclass(frozen=True)
class Mark:
    problem: Problem
    reply: str

    @property
    def right(self) -> bool:
        return self.problem.solved_by(self.reply)


@dataclass(frozen=True)
class Result:
    marks: tuple[Mark, ...]

    @property
    def share(self) -> float:
        """Share of right answers, 0 to 1."""
        return sum(m.right for m in self.marks) / len(self.marks)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Right answers and problems, per kind."""
        asked = Counter(m.problem.kind for m in self.marks)
        right = Counter(m.problem.kind for m in self.marks if m.right)
        return {kind: (right[kind], count) for kind, count in sorted(asked.items())}


async def examine(url: str, model: str, count: int, seed: int, *, at_once: int = 16, max_tokens: int = 256) -> Result:
    """Asks `count` problems in chat, temperature 0, `at_once` at a time.

    Raises aiohttp.ClientError when the server cannot be reached or refuses a question.
    """
    slots = asyncio.Semaphore(at_once)

    async def ask(session: aiohttp.ClientSession, problem: Problem) -> Mark:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": problem.question}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        async with slots, session.post(f"{url.rstrip('/')}/chat/completions", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        return Mark(problem, answer["choices"][0]["message"]["content"] or "")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        return Result(tuple(await asyncio.gather(*(ask(session, p) for p in examination(count, seed)))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="tiny-r1")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        result = asyncio.run(examine(options.url, options.model, options.count, options.seed, at_once=options.at_once))
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"the examination of {options.url} stopped: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"share": result.share, "by_kind": result.by_kind(), "count": options.count,
                          "seed": options.seed}))  # fmt: skip
        return 0
    for kind, (right, asked) in result.by_kind().items():
        print(f"{kind:10} {right:5} of {asked:5}  {right / asked:7.2%}")
    print(f"{'all':10} {sum(m.right for m in result.marks):5} of {len(result.marks):5}  {result.share:7.2%}")
    for mark in [m for m in result.marks if not m.right][:10]:
        print(f"  wrong: {mark.problem.question!r} -> {mark.reply!r}, right is {mark.problem.answer!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
