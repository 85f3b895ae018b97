"""ChatGLM3's layout against numbers that its released model code gave: `transformers` has no class for it.

The golden logits were computed once, in float64, by `GLMTransformer` and `RotaryEmbedding` of `chatglm3-6b`'s
`modeling_chatglm.py` (transformers 4.30), loaded strictly with the tensors below.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.checkpoints import Config, Weights, write
from tests.engine.driving import Driven

CONFIG: Config = {
    "architectures": ["ChatGLMModel"], "num_layers": 2, "hidden_size": 24, "ffn_hidden_size": 20, "kv_channels": 8,
    "num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2, "padded_vocab_size": 13,
    "seq_length": 64, "layernorm_epsilon": 1e-5, "rmsnorm": True, "original_rope": True, "add_bias_linear": False,
    "add_qkv_bias": True, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9, 5, 0, 2, 8, 8, 4]
GOLDEN = [-1.872045, 6.013847, 2.937768, -0.264387, 4.186779, -1.929964, -1.437788, 1.163226, -1.269546,
          1.461926, 0.140967, -0.449915, 3.147001]  # fmt: skip
"""Logits of the last position."""


def tensors() -> Weights:
    """Fractions of fast waves: as good as random numbers, and reproducible without a generator."""
    shapes = {
        "transformer.embedding.word_embeddings.weight": (13, 24),
        "transformer.encoder.final_layernorm.weight": (24,),
        "transformer.output_layer.weight": (13, 24),
    }
    for i in range(2):
        at = f"transformer.encoder.layers.{i}."
        shapes |= {
            at + "input_layernorm.weight": (24,),
            at + "post_attention_layernorm.weight": (24,),
            at + "self_attention.query_key_value.weight": (64, 24),
            at + "self_attention.query_key_value.bias": (64,),
            at + "self_attention.dense.weight": (24, 32),
            at + "mlp.dense_h_to_4h.weight": (40, 24),
            at + "mlp.dense_4h_to_h.weight": (24, 20),
        }
    made = {}
    for number, (name, shape) in enumerate(shapes.items()):
        places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
        fraction = (torch.sin(places * 12.9898 + number * 78.233) * 43758.5453) % 1 - 0.5
        made[name] = (1 + fraction if "layernorm" in name else fraction * 1.5).float()
    return made


WAYS = ((), (20, 17), (5,) + (1,) * 32)


def error(line: Driven) -> float:
    """The worst of all ways through the sequence, of the largest |logit|."""
    want = torch.tensor(GOLDEN)
    return max(((line.logits(IDS, way)[-1] - want).abs().max() / want.abs().max()).item() for way in WAYS)


def test_the_released_codes_logits(tmp_path: Path, order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    line = Driven(write(tmp_path / "chatglm", CONFIG, tensors()))
    line.engine.runner.graphs.why_not = "a test changes its ops"
    assert error(line) <= 1e-5
    turn = line.built.ops.rope
    monkeypatch.setattr(line.built.ops, "rope", lambda x, cos, sin, _: turn(x, cos, sin, False))
    assert error(line) > 1e-3, "halves rotated, not neighbours"
    monkeypatch.setattr(line.built.ops, "rope", lambda x, cos, sin, _: x)
    assert error(line) > 1e-3, "nothing rotated"
