"""Streams that go from the native engine to another one and back while the unmodified `openai` client reads them.

    .venv/bin/python benchmarks/mixed_engines.py --llama-server build/llama/llama-server
    .venv/bin/python benchmarks/mixed_engines.py --vllm VENV/bin/python --checkpoint MODEL_FOLDER

Both engines hold one checkpoint in float32. Every question (English, Chinese, emoji; greedy and sampled) is asked
unbroken on the native line, and then while lines are drained and killed -9 by turns, so that most answers cross over
several times. A greedy answer should equal the unbroken one; every stream must be whole for the client: one id, one
role, no broken character, a finish reason, usage as booked. For sampled ones the share of right answers is given, moved
and unbroken. Relays let each answer go a few events far and then hold it until it is moved.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import uvloop

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]  # the engines and the reader are the tests' own

from tests.gateway.mixed import Outcome, exam, mixed, moved_about  # noqa: E402

from twinline.lines.spec import LineSpec  # noqa: E402

MODEL = "tiny-r1"
FOLDER = ROOT / "src/twinline/models" / MODEL


def specs(given: argparse.Namespace, folder: Path) -> list[LineSpec]:
    shared = {"model": MODEL, "weights_class": "one", "context": 512, "precision": "float32"}
    native = LineSpec(name="native", engine="native", weights=str(folder), options={"threads": 1}, **shared)
    if given.vllm:
        options = {"executable": given.vllm, "enforce_eager": True, "max_num_seqs": 32}
        env = {"VLLM_CPU_KVCACHE_SPACE": "1"}
        return [native, LineSpec(name="vllm", engine="vllm", weights=str(folder), options=options, env=env, **shared)]
    server = Path(given.llama_server).resolve()
    gguf = str(server.parent / "tiny-r1.gguf")
    options = {"executable": str(server), "threads": 1}
    shared["precision"] = "auto"  # the file's
    return [native, LineSpec(name="llamacpp", engine="llamacpp", weights=gguf, slots=32, options=options, **shared)]


def told(outcome: Outcome) -> bool:
    print(f"{len(outcome.reads)} streams, {outcome.moved} of them over several lines; wrong: {len(outcome.wrong)}")
    for way, count in outcome.ways.most_common(12):
        print(f"  {count:4d} x {way}")
    print(f"greedy: {outcome.equal} of {outcome.greedy} equal the unbroken answer in text, finish reason and usage")
    for kind, (right, count) in outcome.solved.items():
        print(f"sampled, {kind}: {right} of {count} answers right")
    for wrong in outcome.wrong[:12]:
        print(f"  {wrong}")
    return not outcome.wrong


async def run(given: argparse.Namespace) -> bool:
    folder = Path(given.checkpoint) if given.checkpoint else FOLDER
    with tempfile.TemporaryDirectory(prefix="x") as home:
        async with mixed(Path(home), MODEL, folder, specs(given, folder), given.pace) as fleet:
            return told(await moved_about(fleet, exam(given.problems), given.rounds, given.seed, not given.no_kills))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--llama-server", help="made by scripts/build-llama-server, tiny-r1.gguf beside it")
    engine.add_argument("--vllm", metavar="PYTHON", help="the Python of vLLM's environment")
    parser.add_argument("--checkpoint", help="model folder for both engines (with --vllm; default tiny-r1)")
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=4, help="every second one with kills")
    parser.add_argument("--no-kills", action="store_true", help="only drains: vLLM takes minutes to start again")
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between two events")
    parser.add_argument("--seed", type=int, default=1)
    return 0 if uvloop.run(run(parser.parse_args())) else 1


if __name__ == "__main__":
    sys.exit(main())
