"""Families of models: from a `config.json` to the tensors of its checkpoint.

Owns the registry: which architecture is read by which file. Reads more than the engine runs (`facts/models.py`): a
file's `anatomy` says what something weighs, its `spec`, where there is one, what the engine computes.
"""

from __future__ import annotations

import importlib

from twinline.facts.models import UnsupportedModel, architecture_of, completed
from twinline.facts.tensors import Anatomy, Config

# architecture: file of this folder with `anatomy(config, architecture) -> Anatomy`
FAMILIES = {
    "DeepseekV2ForCausalLM": "deepseek",
    "DeepseekV3ForCausalLM": "deepseek",
    "DeepseekV32ForCausalLM": "deepseek",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen3ForCausalLM": "llama",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MixtralForCausalLM": "mixtral",
    "ChatGLMModel": "chatglm",
    "ChatGLMForConditionalGeneration": "chatglm",
    "GlmForCausalLM": "glm",
    "Glm4ForCausalLM": "glm",
    "Ernie4_5_ForCausalLM": "ernie",
    "Ernie4_5ForCausalLM": "ernie",
    "Ernie4_5_MoeForCausalLM": "ernie",
}


def read_anatomy(config: Config) -> Anatomy:
    """What a checkpoint with this `config.json` holds.

    Raises UnsupportedModel, in one line, for an unknown architecture or a missing or impossible field.
    """
    if not isinstance(config, dict):
        raise UnsupportedModel("config.json: should hold one JSON object")
    known, headless = architecture_of(config, FAMILIES)
    if known is None:
        raise UnsupportedModel(
            f"config.json: what a model of architecture {config.get('architectures')!r:.80} weighs is not known "
            f"(known: {', '.join(dict.fromkeys(FAMILIES))})"
        )
    family = importlib.import_module(f"twinline.facts.families.{FAMILIES[known]}")
    try:
        whole = completed(config, known) | ({"tie_word_embeddings": True} if headless else {})
        anatomy: Anatomy = family.anatomy(whole, known)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UnsupportedModel(f"config.json: cannot be read as {known}: {error!r}") from error
    return anatomy
