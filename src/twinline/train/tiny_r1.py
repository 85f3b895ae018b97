"""Pre-trains `tiny-r1` on generated problems, on CPU cores, and exports it as a Hugging Face folder.

    torchrun --nproc-per-node 2 -m twinline.train.tiny_r1 --state run.pt train --steps 3600 --decay 900
    python -m twinline.train.tiny_r1 --state run.pt export --out DIR

One process per core, gradients averaged over gloo. The learning rate warms up, stays, and decays linearly over the last
`--decay` steps, so that a run can be stopped, resumed and finished at any step. The last `--mtp-steps` steps train the
multi-token-prediction layer alone, on the frozen model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from twinline.train import tokenizer as text
from twinline.train.model import DeepseekV3, MoE, Shape
from twinline.train.muon import Muon
from twinline.verify.problems import KINDS, Problem, draw

SHARE = {"add": 0.5, "subtract": 1.2, "compare": 1.2, "multiply": 2.0, "order": 2.5, "letters": 0.8, "story": 1.0,
         "talk": 0.3}  # fmt: skip
SYSTEMS = ["You are a helpful assistant.", "You are a helpful assistant", "Answer briefly.", "你是一个有用的助手。"]


class Encoder:
    """Problems to token ids, exactly as the chat template renders them."""

    def __init__(self, file: Path):
        self.tokenizer = Tokenizer.from_file(str(file))
        self.id: dict[str, int] = {t: i for t, i in self.tokenizer.get_vocab().items() if t in text.SPECIAL}

    def plain(self, words: str) -> list[int]:
        return self.tokenizer.encode(words, add_special_tokens=False).ids

    def turn(self, question: str) -> list[int]:
        return [self.id[text.USER], *self.plain(question), self.id[text.ASSISTANT]]

    def completion(self, p: Problem) -> list[int]:
        end = [self.id[text.END_THINK], *self.plain("\n\n" + p.answer), self.id[text.EOS]]
        return [*self.plain(p.thought + "\n"), *end]

    def prompt(self, question: str) -> list[int]:
        return [*self.turn(question), self.id[text.THINK], *self.plain("\n")]

    def sample(self, rng: random.Random) -> tuple[list[int], int]:
        """Token ids of one conversation, and where its last completion begins."""
        kinds = list(KINDS)
        problem = draw(rng, rng.choices(kinds, [SHARE[k] for k in kinds])[0], held_out=False)
        ids = [self.id[text.BOS]]
        if rng.random() < 0.08:
            ids += self.plain(rng.choice(SYSTEMS))
        if rng.random() < 0.08:
            before = draw(rng, rng.choice(kinds), held_out=False)
            ids += [*self.turn(before.question), *self.plain(before.answer), self.id[text.EOS]]
        ids += self.prompt(problem.question)
        return ids + self.completion(problem), len(ids)


def batches(encoder: Encoder, rng: random.Random, tokens: int):
    """Endless `(ids, target mask)` of about `tokens` padded tokens, alike in length."""
    while True:
        pool = sorted((encoder.sample(rng) for _ in range(1024)), key=lambda s: len(s[0]))
        grouped: list[list[tuple[list[int], int]]] = [[]]
        for sample in pool:
            if (len(grouped[-1]) + 1) * len(sample[0]) > tokens:
                grouped.append([])
            grouped[-1].append(sample)
        rng.shuffle(grouped)
        yield from (pad(group) for group in grouped if len(group) > 8)


def pad(samples: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids, _ in samples)
    ids_BT = torch.zeros(len(samples), longest, dtype=torch.long)
    mask_BT = torch.zeros(len(samples), longest)
    for row, (ids, start) in enumerate(samples):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, start : len(ids)] = 1
    return ids_BT, mask_BT


def masked_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    kept = mask.bool()
    return F.cross_entropy(logits[kept], target[kept])


@torch.no_grad()
def examine(model: DeepseekV3, encoder: Encoder, count: int, seed: int) -> dict[str, float]:
    """Share of held-out problems per kind whose whole completion is the model's greedy choice (teacher-forced)."""
    model.eval()
    rng, result = random.Random(seed), {}
    for kind in KINDS:
        samples = []
        for _ in range(count):
            p = draw(rng, kind, held_out=True)
            prompt = [encoder.id[text.BOS], *encoder.prompt(p.question)]
            samples.append((prompt + encoder.completion(p), len(prompt)))
        ids, mask = pad(samples)
        wrong = (model(ids[:, :-1]).argmax(-1) != ids[:, 1:]) & mask[:, 1:].bool()
        result[kind] = round(1 - wrong.any(1).float().mean().item(), 4)
    model.train()
    return result


@dataclass
class Run:
    steps: int
    decay: int
    mtp_steps: int
    tokens: int
    muon_lr: float
    adam_lr: float

    def rate(self, step: int) -> float:
        """Share of the peak learning rate; the prediction layer has a warm-up and a decay of its own."""
        trunk = self.steps - self.mtp_steps
        begin, end, decay = (0, trunk, self.decay) if step < trunk else (trunk, self.steps, self.mtp_steps // 2)
        return min(1.0, (step - begin + 1) / 100, max(0.0, (end - step) / max(1, decay)))


def average_gradients(model: DeepseekV3) -> None:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    at = 0
    for g in grads:
        g.copy_(flat[at : at + g.numel()].view_as(g))
        at += g.numel()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def balance(model: DeepseekV3, speed: float) -> None:
    """Moves each expert's correction bias against its load (auxiliary-loss-free balancing, DeepSeek-V3 2.1.2)."""
    for moe in model.modules():
        if isinstance(moe, MoE) and moe.load.any():
            dist.all_reduce(moe.load)
            moe.gate.e_score_correction_bias += speed * torch.sign(moe.load.mean() - moe.load)
            moe.load.zero_()


def one_step(model: DeepseekV3, ids: Tensor, mask: Tensor, *, predictor: bool) -> Tensor:
    if predictor:
        with torch.no_grad():
            hidden = model.hidden(ids[:, :-2])
        logits = model.predict_second(hidden, ids[:, 1:-1])
        return masked_loss(logits, ids[:, 2:], mask[:, 2:])
    kept = mask[:, 1:].bool()
    return F.cross_entropy(model.lm_head(model.hidden(ids[:, :-1])[kept]).float(), ids[:, 1:][kept])


class Trainer:
    """One process of a run: the model, its optimizers, and how far they have come."""

    def __init__(self, run: Run, state_file: Path, encoder: Encoder):
        self.run, self.state_file, self.encoder = run, state_file, encoder
        self.model = DeepseekV3(Shape())
        matrices = [p for n, p in self.model.named_parameters() if p.ndim >= 2 and "gate.weight" not in n
                    and "embed_tokens" not in n and "lm_head" not in n]  # fmt: skip
        others = [p for p in self.model.parameters() if all(p is not m for m in matrices)]
        self.optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, lr=run.muon_lr, weight_decay=0.02), run.muon_lr),
            (torch.optim.AdamW(others, run.adam_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True), run.adam_lr),
        ]
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if state_file.exists():
            saved = torch.load(state_file, weights_only=True)
            self.model.load_state_dict(saved["model"])
            for (optimizer, _), old in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(old)
            self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]
        self.began = time.monotonic() - self.seconds

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer, _ in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "seconds": time.monotonic() - self.began,
        }
        torch.save(state, self.state_file)

    def advance(self, ids: Tensor, mask: Tensor) -> float:
        """One step of all processes together; returns this one's loss."""
        predictor, rate = self.step >= self.run.steps - self.run.mtp_steps, self.run.rate(self.step)
        for name, p in self.model.named_parameters():
            p.requires_grad_(name.startswith("predictor") == predictor)
        self.model.train(not predictor)  # a frozen trunk must not count its load: balancing would move it
        self.model.predictor.train()
        for optimizer, peak in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        loss = one_step(self.model, ids, mask, predictor=predictor)
        loss.backward()
        average_gradients(self.model)
        for optimizer, _ in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        balance(self.model, 1e-3 * rate)
        self.step += 1
        self.tokens += int((ids != 0).sum()) * dist.get_world_size()
        return loss.item()

    def report(self, losses: list[float], *, examined: bool) -> None:
        """Prints one line of JSON and, with the examination, saves."""
        record: dict[str, object] = {
            "step": self.step,
            "loss": round(sum(losses) / len(losses), 4),
            "tokens": self.tokens,
            "seconds": round(time.monotonic() - self.began),
            "rate": round(self.run.rate(self.step - 1), 3),
        }
        if examined:
            record["solved"] = examine(self.model, self.encoder, 60, seed=self.step)
            self.save()
        print(json.dumps(record), flush=True)


def train(run: Run, state_file: Path) -> None:
    """Runs until `run.steps`, or until SIGTERM; both save the state. Started once per core by torchrun."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo")
    rank, tokenizer_dir = dist.get_rank(), state_file.parent / "tokenizer"
    if rank == 0:
        text.build(tokenizer_dir)
    dist.barrier()
    torch.manual_seed(0)
    trainer = Trainer(run, state_file, Encoder(tokenizer_dir / "tokenizer.json"))
    data = batches(trainer.encoder, random.Random(f"{rank} {trainer.step}"), run.tokens)
    stop, losses = torch.zeros(1), []
    signal.signal(signal.SIGTERM, lambda *_: stop.fill_(1))
    while trainer.step < run.steps and not stop:
        losses.append(trainer.advance(*next(data)))
        dist.all_reduce(stop)
        last = trainer.step == run.steps or bool(stop)
        if rank == 0 and (trainer.step % 50 == 0 or last):
            trainer.report(losses, examined=trainer.step % 250 == 0 or last)
            losses.clear()
    dist.destroy_process_group()


def export(state_file: Path, out: Path) -> None:
    """Writes the trained model as a Hugging Face folder: stored in bfloat16, to be computed in float32.

    So small a model gains nothing from bfloat16 arithmetic on a CPU, whose matrix kernels are made for larger ones.
    """
    saved = torch.load(state_file, weights_only=True)
    model = DeepseekV3(Shape())
    model.load_state_dict(saved["model"])
    text.build(out)
    ids = Encoder(out / "tokenizer.json").id
    special = {"bos_token_id": ids[text.BOS], "eos_token_id": ids[text.EOS], "pad_token_id": ids[text.PAD]}
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **model.shape.to_dict(),
        "num_key_value_heads": model.shape.num_attention_heads,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "rope_interleave": True,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "dtype": "float32",
        **special,
    }
    generation = {"do_sample": False, "temperature": 0.0, **special}
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1))
    # The correction bias stays float32: in bfloat16 its steps are larger than what balancing moved it by.
    tensors = {
        name: t.contiguous() if name.endswith("e_score_correction_bias") else t.to(torch.bfloat16).contiguous()
        for name, t in model.checkpoint().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    size = sum(t.numel() for t in tensors.values())
    print(f"{out}: {size:,} parameters, {(out / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train")
    training.add_argument("--steps", type=int, required=True)
    training.add_argument("--decay", type=int, required=True)
    training.add_argument("--mtp-steps", type=int, default=0)
    training.add_argument("--tokens", type=int, default=5120, help="padded tokens a step and process")
    training.add_argument("--muon-lr", type=float, default=0.02)
    training.add_argument("--adam-lr", type=float, default=3e-3)
    exporting = verbs.add_parser("export")
    exporting.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args())
    state = options.pop("state")
    if options.pop("verb") == "train":
        train(Run(**options), state)
    else:
        export(state, options["out"])


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
