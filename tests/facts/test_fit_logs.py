"""The sum against what engines print when they start: figures of other people's logs, read on 2026-11-25."""

from __future__ import annotations

import msgspec
import pytest

from twinline.facts.chips import load
from twinline.facts.families import read_anatomy
from twinline.facts.fit import Want, fit
from twinline.facts.forms import find_form, published
from twinline.facts.layouts import parse_layout
from twinline.facts.memory import CACHE_FORMS, cache_bytes
from twinline.facts.model_files import bundled
from twinline.facts.weights import held

GIB = 2**30

# (model, layout, precision, GiB of weights on one device, where they were read). Engines print a little more than the
# tensors: rotary tables and buffers of collectives, up to a quarter of a GiB.
LOADED = [
    ("deepseek-r1", "tp8", "", 79.41, "HabanaAI/vllm-fork#809: pre-loading on 8 devices"),
    ("deepseek-r1-distill-qwen-32b", "tp2", "", 30.73, "a guide to vLLM: model weights take 30.73GiB"),
    ("deepseek-r1-distill-qwen-14b", "tp2", "", 13.9476, "vllm-project/vllm#13061"),
    ("deepseek-v2-lite", "tp8", "fp16", 3.97, "a guide to vLLM: DeepSeek-Coder-V2-Lite, the same shapes"),
    ("qwen3-8b", "tp1", "", 15.27, "tests of a log reader: model weights take 15.27GiB"),
]


@pytest.mark.parametrize(("model", "layout", "precision", "printed", "where"), LOADED)
def test_weights_of_a_device(model: str, layout: str, precision: str, printed: float, where: str) -> None:
    anatomy = read_anatomy(bundled()[model].config)
    form = find_form(precision) if precision else published(anatomy)
    ours = held(anatomy, form, parse_layout(layout))[0].bytes / GIB
    assert ours <= printed <= ours + 0.27, where


def test_tokens_of_a_cache() -> None:
    # A log of vLLM 0.19 for Qwen3-8B: 53.54 GiB are 389,888 tokens.
    anatomy = read_anatomy(bundled()["qwen3-8b"].config)
    token = cache_bytes(anatomy, CACHE_FORMS["bf16"], parse_layout("tp1"), anatomy.layers)
    assert 389_888 * token / GIB == pytest.approx(53.54, abs=0.005)


def test_memory_that_is_left() -> None:
    # The guide above, two cards of 95.6 GiB: weights 30.73, other 0.74, peak 1.41, cache 53.19 GiB at a share of 0.9.
    anatomy = read_anatomy(bundled()["deepseek-r1-distill-qwen-32b"].config)
    card = load().chips["h20"]
    size = msgspec.structs.replace(card.memory_gb, value=(30.73 + 0.74 + 1.41 + 53.19) / 0.9)
    card = msgspec.structs.replace(card, memory_gb=size, measured={})
    one = fit(anatomy, card, 2, Want(form=published(anatomy), context=8192, layout=parse_layout("tp2")))
    assert (one.left_bytes or 0) / GIB == pytest.approx(53.19, rel=0.05)
