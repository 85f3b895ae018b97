"""The native engine beside transformers' `generate`: same machine, same device, same checkpoint, same run.

    .venv/bin/python benchmarks/speed.py --models tiny-r1 qwen-1.5b --rounds 3
    .venv/bin/python benchmarks/speed.py --models qwen-1.5b --device cuda

Prints prefill and decode tokens per second for 1, 8 and 32 users at once, and their useful tokens per second on a mix
of lengths, as medians over alternating rounds; decode also as a share of the read bandwidth measured in the same round.
Each peer runs in a process of its own, one at a time. `transformers` is a development dependency (`make test` installs
it).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
USERS = (1, 8, 32)
PEERS = ("native", "transformers")
# What `twinline serve` sets for its worker: huge pages for large allocations.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}


@dataclass(frozen=True)
class Size:
    prompt: int
    output: int
    mixed_prompts: tuple[int, int]
    mixed_outputs: tuple[int, int]


SIZES = {
    "tiny-r1": Size(128, 64, (32, 256), (8, 128)),
    "qwen-1.5b": Size(64, 16, (16, 128), (4, 32)),
}
ON_A_CARD = {"qwen-1.5b": Size(512, 128, (128, 1024), (32, 256))}  # tiny-r1 has not the context for more


def checkpoint(model: str, cache: Path) -> Path:
    import checkpoints

    if model == "tiny-r1":
        return HERE.parent / "src/twinline/models/tiny-r1"
    return checkpoints.qwen2(cache / model, checkpoints.R1_DISTILL_QWEN_1_5B)


def wait(device: str) -> None:
    """For a device that computes while the host goes on."""
    import torch

    if device != "cpu":
        torch.get_device_module(device).synchronize()


def bandwidth(device: str) -> float:
    """Bytes per second that the device reads, best of five sums over 1 GiB (a card: 4 GiB)."""
    import torch

    block = torch.ones(2**28 if device == "cpu" else 2**30, device=device)
    best = float("inf")
    for _ in range(5):
        wait(device)
        began = time.perf_counter()
        block.sum()
        wait(device)
        best = min(best, time.perf_counter() - began)
    return block.nbytes / best


def workload(users: int, size: Size, vocab: int, mixed: bool) -> list[tuple[list[int], int]]:
    """Prompts of random ids and how many tokens each wants; the mix draws both."""
    rng = random.Random(users)

    def ids(count: int) -> list[int]:
        return [rng.randrange(10, vocab - 10) for _ in range(count)]

    if not mixed:
        return [(ids(size.prompt), size.output) for _ in range(users)]
    return [(ids(rng.randint(*size.mixed_prompts)), rng.randint(*size.mixed_outputs)) for _ in range(users)]


class Native:
    def __init__(self, directory: Path, device: str):
        from twinline.engine.build import Options, build

        room = 24000 if device == "cpu" else 64000
        options = Options(device=device, kv_tokens=room, prefix_cache=False, max_running=32)
        self.built = build(directory, options, lambda outputs: None)
        self.vocab = self.built.spec.vocab

    def run(self, work: list[tuple[list[int], int]], users: int) -> tuple[float, float, float]:
        """Seconds until the last first token of the first `users`, until the end, and tokens made after the former."""
        from twinline.engine.request import Request, SamplingParams

        engine = self.built.engine
        requests = [
            Request(f"{time.perf_counter_ns()}-{i}", prompt, SamplingParams(max_tokens=wanted, temperature=0))
            for i, (prompt, wanted) in enumerate(work)
        ]
        waiting = list(requests)
        began = time.perf_counter()
        first = made = 0.0
        while waiting or engine.scheduler.has_work:
            while waiting and engine.scheduler.running + engine.scheduler.waiting < users:
                engine.scheduler.submit(waiting.pop(0))
            engine.step()
            if not first and all(r.output for r in requests[:users]):
                first, made = time.perf_counter() - began, sum(len(r.output) for r in requests)
        return first, time.perf_counter() - began, sum(len(r.output) for r in requests) - made


class Transformers:
    def __init__(self, directory: Path, device: str):
        import torch
        from transformers import AutoModelForCausalLM

        self.device = device
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval().to(device)
        self.vocab = self.model.config.vocab_size

    def run(self, work: list[tuple[list[int], int]], users: int) -> tuple[float, float, float]:
        """The same for static batches of `users`, padded left, each run to its longest answer."""
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        times: list[float] = []

        class Clock(LogitsProcessor):
            def __call__(self, input_ids, scores):
                wait(scores.device.type)
                times.append(time.perf_counter())
                return scores

        began = time.perf_counter()
        for at in range(0, len(work), users):
            batch = work[at : at + users]
            longest = max(len(prompt) for prompt, _ in batch)
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in batch])
            wanted = max(count for _, count in batch)
            with torch.inference_mode():
                self.model.generate(
                    ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=wanted,
                    min_new_tokens=wanted, do_sample=False, pad_token_id=0,
                    logits_processor=LogitsProcessorList([Clock()]),
                )  # fmt: skip
        wait(self.device)
        return times[0] - began, time.perf_counter() - began, sum(count for _, count in work) - users


def measure(peer: str, directory: Path, size: Size, device: str) -> dict[str, float]:
    """All figures of one peer, in this process; tokens per second. On a card each is its second run: kernels are
    chosen and steps recorded in the first."""
    speed = bandwidth(device)
    runner = (Native if peer == "native" else Transformers)(directory, device)
    runner.run(workload(1, Size(16, 4, (8, 8), (4, 4)), runner.vocab, mixed=False), 1)
    found = {"bandwidth": speed}
    for users in USERS:
        work = workload(users, size, runner.vocab, mixed=False)
        if device != "cpu":
            runner.run(work, users)
        first, total, made = runner.run(work, users)
        found[f"prefill {users}"] = users * size.prompt / first
        found[f"decode {users}"] = made / (total - first)
        work = workload(users, size, runner.vocab, mixed=True)
        if device != "cpu":
            runner.run(work, users)
        _, total, _ = runner.run(work, users)
        found[f"mixed {users}"] = sum(wanted for _, wanted in work) / total
    return found


def rounds(model: str, directory: Path, count: int, device: str) -> dict[str, dict[str, float]]:
    """Medians per peer; the order of the peers turns round by round."""
    seen: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for number in range(count):
        for peer in PEERS if number % 2 == 0 else PEERS[::-1]:
            command = [sys.executable, __file__, "--peer", peer, "--checkpoint", str(directory), "--models", model,
                       "--device", device]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
            if done.returncode:
                raise SystemExit(f"{peer} failed:\n{done.stderr[-2000:]}")
            seen[peer].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  round {number + 1} {peer}: {seen[peer][-1]}", file=sys.stderr, flush=True)
    return {peer: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for peer, runs in seen.items()}


def report(model: str, directory: Path, medians: dict[str, dict[str, float]]) -> None:
    read = sum(f.stat().st_size for f in directory.glob("*.safetensors"))
    if model == "qwen-1.5b":
        config = json.loads((directory / "config.json").read_text())
        read -= 2 * config["vocab_size"] * config["hidden_size"]  # the input embedding is looked up, not read
    speed = medians["native"]["bandwidth"]
    print(f"\n{model}: read bandwidth {speed / 1e9:.1f} GB/s in the same rounds; tokens/s, medians")
    print(f"{'':>12}{'native':>12}{'transformers':>14}{'ratio':>8}{'share of bandwidth':>22}")
    for key, ours in medians["native"].items():
        if key == "bandwidth":
            continue
        theirs = medians["transformers"][key]
        share = f"{ours * read / speed:.0%}" if key == "decode 1" and model != "tiny-r1" else ""
        print(f"{key:>12}{ours:>12.1f}{theirs:>14.1f}{ours / theirs:>7.2f}x{share:>22}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--device", default="cpu", help="cpu, or a PyTorch device type")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="where random checkpoints are kept")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        sizes = SIZES if options.device == "cpu" else SIZES | ON_A_CARD
        print(json.dumps(measure(options.peer, options.checkpoint, sizes[options.models[0]], options.device)))
        return
    for model in options.models:
        directory = checkpoint(model, options.cache)
        report(model, directory, rounds(model, directory, options.rounds, options.device))


if __name__ == "__main__":
    main()
