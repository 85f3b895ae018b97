"""Derived tensors against checkpoints that lie on disk: those that `transformers` writes, and the embedded model."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

import twinline
from twinline.facts.families import read_anatomy
from twinline.facts.forms import published
from twinline.facts.model_files import find_model, stored_bytes
from twinline.facts.weights import index

Shapes = dict[str, tuple[int, ...]]

SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "head_dim": 8, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "topk_group": 1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3ForCausalLM": {},
    "Qwen3MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                            "decoder_sparse_step": 2, "mlp_only_layers": []},
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "GlmForCausalLM": {"attention_bias": True},
    "Glm4ForCausalLM": {"attention_bias": True},
    "Ernie4_5ForCausalLM": {"use_bias": True, "tie_word_embeddings": False},
    "Ernie4_5_MoeForCausalLM": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "use_bias": False,
                                "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_end_index": 2,
                                "moe_layer_interval": 1, "tie_word_embeddings": False},
    "DeepseekV2ForCausalLM": LATENT | {"n_shared_experts": 2, "q_lora_rank": None, "n_group": 1,
                                       "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": LATENT | {"n_shared_experts": 1, "q_lora_rank": 24, "n_group": 2,
                                       "num_nextn_predict_layers": 0},
}  # fmt: skip


def header(file: Path) -> Shapes:
    blob = file.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    tensors = json.loads(blob[8 : 8 + length])
    return {name: tuple(tensor["shape"]) for name, tensor in tensors.items() if name != "__metadata__"}


def derived(config: dict[str, Any]) -> Shapes:
    anatomy = read_anatomy(config)
    return {entry.name: entry.shape for entry in index(anatomy, published(anatomy))}


@pytest.mark.parametrize("architecture", CASES)
def test_names_and_shapes_are_those_that_transformers_writes(architecture: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, architecture):
        pytest.skip(f"this transformers has no {architecture}")
    kind = getattr(transformers, architecture)
    fields = SMALL | CASES[architecture]
    kind(kind.config_class(**fields)).save_pretrained(tmp_path)
    written = header(tmp_path / "model.safetensors")
    assert derived({"architectures": [architecture], **fields}) == written
    # The fields may be written under other names than they were given.
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert derived(saved | {"num_nextn_predict_layers": 0}) == written
    told = stored_bytes(tmp_path)
    assert told == sum(4 * math.prod(shape) for shape in written.values())


def test_the_embedded_model_with_its_drafting_layer() -> None:
    folder = Path(twinline.__file__).parent / "models" / "tiny-r1"
    written: Shapes = {}
    for file in folder.glob("*.safetensors"):
        written |= header(file)
    assert derived(json.loads((folder / "config.json").read_text("utf-8"))) == written
    found = find_model(str(folder))
    assert found.name == "tiny-r1" and found.stored_bytes is not None
