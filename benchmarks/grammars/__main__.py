"""How many answers to random JSON schemas validate: `python -m benchmarks.grammars --count 500`.

Exit code 0 if every finished answer does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.grammars.answers import answers, drawn

import twinline


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammars", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(twinline.__file__).parent / "models" / "tiny-r1")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--speculation", default="off", choices=("off", "ngram"))
    parser.add_argument("--show", type=int, default=10, help="how many bad answers to print")
    asked = parser.parse_args()
    began = time.monotonic()
    verdicts = answers(asked.model, drawn(asked.count), speculation=asked.speculation)
    for schema, reason in verdicts.refused[: asked.show]:
        print(f"refused: {reason}\n  {json.dumps(schema, ensure_ascii=False)[:400]}")
    for schema, text, reason in verdicts.invalid[: asked.show]:
        print(f"invalid: {reason}\n  {text[:400]}\n  {json.dumps(schema, ensure_ascii=False)[:600]}")
    counts = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.counts.items()))
    print(f"{asked.count} schemas: {counts}; {verdicts.tokens} tokens in {time.monotonic() - began:.0f} s")
    return 1 if verdicts.invalid or verdicts.counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
