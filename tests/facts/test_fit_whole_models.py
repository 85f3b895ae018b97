"""Every bundled model at its full size against the model that `transformers` builds from the same fields.

On PyTorch's meta device, which holds shapes and no values: a second count by code that shares nothing with ours.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from twinline.facts.families import read_anatomy
from twinline.facts.forms import FORMS
from twinline.facts.model_files import bundled
from twinline.facts.tensors import Tensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Architectures that transformers calls otherwise.
CLASSES = {"Ernie4_5_ForCausalLM": "Ernie4_5ForCausalLM", "ChatGLMModel": "GlmForCausalLM"}
# ChatGLM's fields by the names of GlmForCausalLM, the same model in another layout.
GLM = {
    "padded_vocab_size": "vocab_size", "ffn_hidden_size": "intermediate_size", "num_layers": "num_hidden_layers",
    "multi_query_group_num": "num_key_value_heads", "kv_channels": "head_dim", "add_qkv_bias": "attention_bias",
    "seq_length": "max_position_embeddings",
}  # fmt: skip
NOT_OF_THE_MODEL = ("architectures", "torch_dtype", "quantization_config", "rope_scaling")


def built(config: dict[str, Any]) -> tuple[int, int]:
    """Elements of the weights as they are saved (tied ones once), and how many of them are norms' and biases'."""
    name = CLASSES.get(config["architectures"][0], config["architectures"][0])
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    fields = {GLM.get(key, key): value for key, value in config.items() if key not in NOT_OF_THE_MODEL}
    return counted(name, json.dumps(fields, sort_keys=True))


@cache
def counted(name: str, fields: str) -> tuple[int, int]:
    """As `built`; R1, V3 and V3.1 are one model here, and so are published and quantized ones."""
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class(**json.loads(fields)))
    # A tied weight is one parameter under two names; parameters() gives it once. Buffers that are saved count too.
    saved = set(model.state_dict())
    weights = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in saved)]
    return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.dim() == 1)


def served(tensor: Tensor) -> bool:
    # transformers leaves drafting layers out, and computes the rotary table that ChatGLM's checkpoints store.
    return tensor.part != "predictor" and "inv_freq" not in tensor.name


@pytest.mark.parametrize("name", sorted(bundled()))
def test_elements_and_bytes_are_those_of_the_whole_model(name: str) -> None:
    config = bundled()[name].config
    tensors = [t for t in read_anatomy(config).tensors if served(t)]
    elements, of_vectors = built(config)
    assert sum(t.elements for t in tensors) == elements
    assert sum(t.elements for t in tensors if len(t.shape) == 1) == of_vectors
    # In a plain form two bytes each, but for the correction bias of routers, which has four.
    wide = sum(t.elements for t in tensors if t.dtype == "F32")
    assert sum(FORMS["bf16"].bytes(t, t.shape) * t.copies for t in tensors) == 2 * elements + 2 * wide
