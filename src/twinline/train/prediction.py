"""Trains tiny-r1's prediction layer to guess several tokens on end, on the frozen model.

    python -m twinline.train.prediction --model src/twinline/models/tiny-r1 --out DIR --steps 600

Pre-training taught the layer one guess, from the model's own hidden state. For a second it goes on from its own state,
which it has never seen: so here it is unrolled as the engine runs it (`engine/prediction.py`). Pass k of row q reads
the state that pass k - 1 gave at q - 1; it sees the first pass's keys up to q - k, and of each pass between the one key
that leads here. All passes of row q predict the same token, at q + 2. Writes the folder's weights with the layer's
replaced and every other tensor as it was.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinline.train.model import DeepseekV3, Predictor, Shape, rotate
from twinline.train.muon import Muon
from twinline.train.tiny_r1 import Encoder, batches, pad
from twinline.verify.problems import KINDS, draw

SHARES = (1.0, 0.8, 0.6, 0.4)  # of each pass in the loss


def load(folder: Path) -> DeepseekV3:
    """The exported model in its form for training; the inverse of `DeepseekV3.checkpoint`."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    shape = Shape(**{name: config[name] for name in Shape().to_dict()})
    stored, model = load_file(folder / "model.safetensors"), DeepseekV3(shape)
    found = {}
    for name in model.state_dict():
        published = name.replace("predictor.", f"layers.{shape.num_hidden_layers}.")
        published = published if published.startswith("lm_head") else f"model.{published}"
        head, _, tail = published.partition(".experts.")
        if tail:
            each = [stored[f"{head}.experts.{e}.{tail}.weight"] for e in range(shape.n_routed_experts)]
            found[name] = torch.stack(each).float()
        else:
            found[name] = stored[published].float()
    model.load_state_dict(found)
    return model.eval()


def _projected(p: Predictor, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[B, H, T, d]` of the layer's attention, as in `train/model.py`."""
    a, s = p.self_attn, p.self_attn.s
    batch, time_, _ = x_BTD.shape

    def heads(y: Tensor) -> Tensor:
        return y.view(batch, time_, s.num_attention_heads, -1).transpose(1, 2)

    q_nope, q_pe = heads(a.q_b_proj(a.q_a_layernorm(a.q_a_proj(x_BTD)))).split(
        [s.qk_nope_head_dim, s.qk_rope_head_dim], -1
    )
    latent, k_pe = a.kv_a_proj_with_mqa(x_BTD).split([s.kv_lora_rank, s.qk_rope_head_dim], -1)
    k_nope, v = heads(a.kv_b_proj(a.kv_a_layernorm(latent))).split([s.qk_nope_head_dim, s.v_head_dim], -1)
    k_pe = rotate(k_pe[:, None], cos, sin).expand(-1, s.num_attention_heads, -1, -1)
    return torch.cat((q_nope, rotate(q_pe, cos, sin)), -1), torch.cat((k_nope, k_pe), -1), v


def _seen(time_: int, place: int) -> Tensor:
    """Which keys a row of pass `place` sees, `[T, (place + 1) T]`: those of the first pass, then of each pass."""
    past = torch.ones(time_, time_, dtype=torch.bool).tril(-place)
    own = [torch.eye(time_, dtype=torch.bool).roll(-(place - j), 1).tril() for j in range(1, place + 1)]
    return torch.cat((past, *own), 1)


def unrolled(model: DeepseekV3, hidden_BTD: Tensor, next_ids_BT: Tensor, depth: int) -> list[Tensor]:
    """The layer's states after its norm in each pass, `[B, T, D]`; the first `place` rows of a pass mean nothing."""
    p, rope = model.predictor, model._rope(next_ids_BT.shape[1])
    embedded = p.enorm(model.embed_tokens(next_ids_BT))
    embedded = torch.cat((torch.zeros_like(embedded[:, :1]), embedded[:, 1:]), 1)  # position 0, as the engine runs it
    keys: list[Tensor] = []
    values: list[Tensor] = []
    states: list[Tensor] = []
    previous = hidden_BTD
    for place in range(depth):
        x = p.eh_proj(torch.cat((embedded, p.hnorm(previous)), -1))
        q, k, v = _projected(p, p.input_layernorm(x), *rope)
        keys, values = [*keys, k], [*values, v]
        seen = _seen(q.shape[2], place)
        seen[:place, 0] = True  # rows that mean nothing must see something
        out = F.scaled_dot_product_attention(q, torch.cat(keys, 2), torch.cat(values, 2), attn_mask=seen)
        x = x + p.self_attn.o_proj(out.transpose(1, 2).flatten(2))
        x = x + p.mlp(p.post_attention_layernorm(x))
        states.append(p.shared_head["norm"](x))
        previous = states[-1].roll(1, 1)
    return states


def losses(model: DeepseekV3, ids_BT: Tensor, mask_BT: Tensor, depth: int) -> list[Tensor]:
    """Cross-entropy of each pass over the completions."""
    with torch.no_grad():
        hidden = model.hidden(ids_BT[:, :-2])
    found = []
    for place, state in enumerate(unrolled(model, hidden, ids_BT[:, 1:-1], depth)):
        kept = mask_BT[:, 2:].bool().clone()
        kept[:, :place] = False
        found.append(F.cross_entropy(model.lm_head(state[kept]).float(), ids_BT[:, 2:][kept]))
    return found


@torch.no_grad()
def held(model: DeepseekV3, encoder: Encoder, count: int, depth: int, seed: int) -> list[float]:
    """Of held-out completions, the share of places where the first guess is right, the first and second, and so on."""
    rng, samples = random.Random(seed), []
    for kind in KINDS:
        for _ in range(count):
            problem = draw(rng, kind, held_out=True)
            prompt = [encoder.id["<｜begin▁of▁sentence｜>"], *encoder.prompt(problem.question)]
            samples.append((prompt + encoder.completion(problem), len(prompt)))
    ids, mask = pad(samples)
    states = unrolled(model, model.hidden(ids[:, :-2]), ids[:, 1:-1], depth)
    right, shares = mask[:, 2:].bool(), []
    for place, state in enumerate(states):
        hits = model.lm_head(state).argmax(-1) == ids[:, 2:]
        # A guess of `place` + 1 tokens from row q ends at row q + place.
        right = hits & (right if place == 0 else right.roll(1, 1))
        right[:, :place] = False
        shares.append(right.sum().item() / mask[:, 2 + place :].sum().item())
    return [round(share, 4) for share in shares]


def train(model: DeepseekV3, encoder: Encoder, given: argparse.Namespace) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("predictor"))
    own = dict(model.predictor.named_parameters())
    matrices = [parameter for name, parameter in own.items() if parameter.ndim >= 2 and "gate.weight" not in name]
    others = [parameter for parameter in own.values() if all(parameter is not m for m in matrices)]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, lr=given.muon_lr), given.muon_lr),
        (torch.optim.AdamW(others, given.adam_lr, betas=(0.9, 0.98), weight_decay=0.0), given.adam_lr),
    ]
    data, began = batches(encoder, random.Random(given.seed), given.tokens), time.monotonic()
    for step in range(given.steps):
        rate = min(1.0, (step + 1) / 30, (given.steps - step) / (0.7 * given.steps))
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        ids, mask = next(data)
        found = losses(model, ids, mask, given.depth)
        torch.stack([share * loss for share, loss in zip(SHARES, found, strict=False)]).sum().backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 50 == 49 or step + 1 == given.steps:
            record = {
                "predictor_step": step + 1,
                "losses": [round(loss.item(), 4) for loss in found],
                "held": held(model, encoder, 8, given.depth, seed=1),
                "seconds": round(time.monotonic() - began),
            }
            print(json.dumps(record), flush=True)
            if step % 200 == 199:
                write(model, given)


def write(model: DeepseekV3, given: argparse.Namespace) -> None:
    """The folder again, with the prediction layer's tensors replaced."""
    if given.out.resolve() != given.model.resolve():
        shutil.copytree(given.model, given.out, dirs_exist_ok=True)
    tensors, last = load_file(given.model / "model.safetensors"), model.shape.num_hidden_layers
    for name, value in model.checkpoint().items():
        if name.startswith(f"model.layers.{last}.") and not name.endswith(("embed_tokens.weight", "head.weight")):
            tensors[name] = value.to(tensors[name].dtype).contiguous()
    save_file(tensors, given.out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--depth", type=int, default=3, choices=range(1, len(SHARES) + 1))
    parser.add_argument("--tokens", type=int, default=3072, help="padded tokens a step")
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(given.seed)
    model, encoder = load(given.model), Encoder(given.model / "tokenizer.json")
    print(json.dumps({"predictor_step": 0, "held": held(model, encoder, 8, given.depth, seed=1)}), flush=True)
    train(model, encoder, given)
    write(model, given)


if __name__ == "__main__":
    main()
