"""Recorded decode steps give what the plain ones give, under a device whose capture re-runs the recorded step."""

import pytest
import torch

from twinline.engine.batch import Batch
from twinline.engine.devices.accelerator import Accelerator
from twinline.engine.devices.cpu import Cpu
from twinline.engine.graphs import DecodeGraphs
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.plan import DecodePlan, Plan
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.facts.models import spec_from_config


class Recording(Cpu):
    name = "recording"
    capture_rows = (1, 2, 4, 8)
    recorded = 0

    def capture(self, step):
        Recording.recorded += 1
        result = step()
        return lambda: result.copy_(step()), result


def model(config):
    spec = spec_from_config(config)
    ops = Ops(("batched", "reference"), StaticFacts("cpu", torch.float32))
    built = Transformer(ops, spec).to_empty(device="cpu")
    torch.manual_seed(0)
    for p in built.parameters():
        p.data.normal_(0, 0.2) if p.ndim > 1 else p.data.fill_(1.0)
    for module in built.modules():
        if hasattr(module, "seal"):
            module.seal()
    built.ready(256, torch.device("cpu"))
    return built


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def batch(lengths, pages, page_size):
    width = max(len(p) for p in pages)
    slots = [p[(n - 1) // page_size] * page_size + (n - 1) % page_size for n, p in zip(lengths, pages, strict=True)]
    pages_DP = torch.tensor([p + [0] * (width - len(p)) for p in pages])
    blocked = torch.arange(width * page_size) >= torch.tensor(lengths)[:, None]
    plan = Plan(torch.tensor(slots), DecodePlan(pages_DP, torch.tensor(lengths), blocked), ())
    ids = torch.arange(3, 3 + len(lengths))
    return Batch((), ids, torch.tensor(lengths) - 1, plan, tuple(range(len(lengths))))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_replay_equals_the_plain_step(count):
    built = model(LLAMA)
    cache = [tuple(torch.randn(g, 9, 4, d) for g, d in rows) for rows in built.cache_rows()]
    graphs = DecodeGraphs(built, Recording(torch.device("cpu")), cache, spare_page=8)
    before = Recording.recorded
    for shift in range(3):
        lengths = [2 + shift + i for i in range(count)]
        pages = [[i] if n <= 4 else [i, 7 - i] if i < 4 else [4, 3] for i, n in enumerate(lengths)]
        b = batch(lengths, pages, 4)
        replayed = graphs.hidden(b)
        assert replayed is not None
        plain = built(b.ids_N, b.positions_N, b.plan, cache)
        torch.testing.assert_close(replayed, plain)
    assert 0 < Recording.recorded - before <= 2


def test_says_why_a_step_is_not_recorded():
    built = model(LLAMA)
    cache = [tuple(torch.zeros(g, 3, 4, d) for g, d in rows) for rows in built.cache_rows()]
    graphs = DecodeGraphs(built, Accelerator(torch.device("cpu")), cache, spare_page=2)
    assert graphs.hidden(batch([1], [[0]], 4)) is None
    assert graphs.why_not == "cpu records no steps"
    graphs = DecodeGraphs(built, Cpu(torch.device("cpu")), cache, spare_page=2)  # its ops here are PyTorch's
    assert graphs.hidden(batch([1], [[0]], 4)) is None
    assert graphs.why_not is not None and "is no kernel of ours" in graphs.why_not
