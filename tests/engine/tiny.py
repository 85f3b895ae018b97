"""A random DeepSeek-V3 of a few thousand weights as a checkpoint folder, and engines around it that a test drives.

All experts are chosen for every token and all weights are float32: routing has no ties, so rounding can move a token
only where two candidates are all but equal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from twinline.engine.build import Built, Options, build
from twinline.engine.loop import Engine
from twinline.engine.pages import PagePool
from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.runner import Runner
from twinline.engine.sampler import Sampler
from twinline.engine.scheduler import Scheduler
from twinline.train.model import DeepseekV3, Shape

VOCAB = 96
EOS = 7
SHAPE = Shape(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=4,
    num_experts_per_tok=4,
    n_group=1,
    topk_group=1,
    max_position_embeddings=16384,
)


def write_checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    model = DeepseekV3(SHAPE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers." in name and weight.ndim > 1:
                weight.mul_(2)  # so that what was said before matters, not only the last token
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **SHAPE.to_dict(),
        "num_key_value_heads": SHAPE.num_attention_heads,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "rope_interleave": True,
        "dtype": "float32",
        "eos_token_id": EOS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.checkpoint().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Heard:
    """What an engine delivered, by request. Checks that each request's outputs end once and nothing follows."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[Output]] = defaultdict(list)

    def __call__(self, outputs: Sequence[Output]) -> None:
        assert outputs, "an empty delivery"
        assert len({o.request_id for o in outputs}) == len(outputs), "a request is delivered twice in one step"
        for output in outputs:
            before = self.outputs[output.request_id]
            assert not before or before[-1].finish is None, f"{output.request_id} goes on after {before[-1]}"
            assert output.tokens or output.finish, "an output that says nothing"
            before.append(output)

    def tokens(self, request_id: str) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.tokens]

    def last(self, request_id: str) -> Output:
        return self.outputs[request_id][-1]

    def finish(self, request_id: str) -> str | None:
        return self.last(request_id).finish


def load_tiny(folder: Path) -> Built:
    return build(folder, Options(device="cpu", kv_tokens=64), lambda outputs: None)


def make_engine(built: Built, *, pages: int = 64, size: int = 4, prefix_cache: bool = True, **limits: int) -> Engine:
    """An engine of its own over the loaded model; `engine.deliver` is a Heard."""
    defaults: dict[str, Any] = {"max_tokens_per_step": 32, "max_running": 8, "max_waiting": 64, "max_model_len": 256}
    pool = PagePool(pages, size, prefix_cache=prefix_cache)
    scheduler = Scheduler(pool, **(defaults | limits))
    runner = Runner(built.engine.runner.model, built.device, pages=pages, page_size=size, dtype=built.dtype)
    return Engine(runner, pool, scheduler, Sampler(built.spec.vocab), Heard())


def heard(engine: Engine) -> Heard:
    assert isinstance(engine.deliver, Heard)
    return engine.deliver


def ask(name: str, prompt: int | list[int] = 10, *, output: Sequence[int] = (), **more: Any) -> Request:
    """A greedy request; a prompt given as a length is an arbitrary one. Scheduling fields apart, `more` is sampling."""
    ids = [(i * 37 + prompt) % VOCAB for i in range(prompt)] if isinstance(prompt, int) else list(prompt)
    fields = {field: more.pop(field) for field in ("priority", "deadline") if field in more}
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": 8} | more))
    return Request(name, ids, params, output=list(output), **fields)


def drain(engine: Engine, limit: int = 2000) -> None:
    """Steps until nothing is left, with the books checked after each."""
    for _ in range(limit):
        if not engine.scheduler.has_work:
            break
        engine.step()
        engine.scheduler.check_integrity()
    assert not engine.scheduler.has_work, f"still busy after {limit} steps"
    assert engine.pool.free == engine.pool.count, "pages leaked"


def alone(built: Built, request: Request, *, max_model_len: int = 256) -> list[Output]:
    """The outputs of the same request in an engine of its own with plenty of pages and no prefix cache."""
    carried = request.output[: request.carried]
    copy = Request(request.id, request.prompt, request.params, output=carried)
    engine = make_engine(built, prefix_cache=False, max_running=1, max_model_len=max_model_len)
    engine.submit(copy)
    drain(engine)
    return heard(engine).outputs[request.id]
