"""How engines decide how much memory becomes cache: a share of the total, or of what is free.

Owns these rules. `inside` are the needs that the share has to hold beside the cache; the others lie outside of it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Need = Literal["weights", "activations", "communication", "runtime", "graphs"]
ALL: tuple[Need, ...] = ("weights", "activations", "communication", "runtime", "graphs")


class EngineRule(msgspec.Struct, frozen=True, kw_only=True):
    """`of` total: cache = share x total - inside. `of` free: cache = share x (total - inside).
    Either way never more than what all needs leave."""

    name: str
    share: float
    of: Literal["total", "free"]
    inside: tuple[Need, ...]
    source: str


RULES: dict[str, EngineRule] = {
    rule.name: rule
    for rule in (
        EngineRule(name="vllm", share=0.9, of="total", inside=("weights", "activations", "communication"),
                   source="vLLM, gpu_memory_utilization: weights, the profiled peak and other growth count, graphs "
                          "and the driver's context lie outside"),
        EngineRule(name="sglang", share=0.88, of="total", inside=("weights", "communication", "runtime"),
                   source="SGLang, mem_fraction_static: of what is free before loading; activations and graphs lie "
                          "outside"),
        EngineRule(name="tensorrt-llm", share=0.9, of="free", inside=ALL,
                   source="TensorRT-LLM, free_gpu_memory_fraction"),
        EngineRule(name="twinline", share=0.85, of="free", inside=("weights", "runtime"),
                   source="twinline, cache_share of an accelerator"),
    )
}  # fmt: skip
DEFAULT_RULE = "vllm"
