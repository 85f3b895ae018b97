"""OpenVINO GenAI's ContinuousBatchingPipeline, in this process."""

from __future__ import annotations

from typing import Any

from benchmarks.cpu.engines import CACHE_TOKENS, MOST_REQUESTS, STEP_TOKENS, Asked
from benchmarks.cpu.shapes import read_config


class Opened:
    """`asked.model` is the converted folder; the precision of its weights is the file's, arithmetic is bfloat16."""

    def __init__(self, asked: Asked) -> None:
        import openvino_genai as genai

        self._genai = genai
        scheduling = genai.SchedulerConfig()
        scheduling.num_kv_blocks = 0
        scheduling.cache_size = max(1, round(self._cache_bytes(asked) / 2**30))
        scheduling.max_num_batched_tokens = STEP_TOKENS
        scheduling.max_num_seqs = MOST_REQUESTS
        scheduling.enable_prefix_caching = False
        self._cache = scheduling.cache_size * 2**30
        self._pipeline = genai.ContinuousBatchingPipeline(
            str(asked.model), scheduling, "CPU",
            {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": asked.threads, "PERFORMANCE_HINT": "LATENCY"},
        )  # fmt: skip
        self._running: dict[str, Any] = {}
        self._number = 0

    @staticmethod
    def _cache_bytes(asked: Asked) -> float:
        config = read_config(asked.model)
        head = config["hidden_size"] // config["num_attention_heads"]
        return 2 * 2 * head * config["num_key_value_heads"] * config["num_hidden_layers"] * CACHE_TOKENS

    def submit(self, prompt: list[int], new: int) -> str:
        import numpy as np
        import openvino

        wanted = self._genai.GenerationConfig()
        wanted.max_new_tokens = wanted.min_new_tokens = new
        wanted.ignore_eos = True
        wanted.do_sample = False
        self._number += 1
        ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        self._running[str(self._number)] = self._pipeline.add_request(self._number, ids, wanted)
        return str(self._number)

    def step(self) -> list[str]:
        came: list[str] = []
        while not came and self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for key, handle in self._running.items():
                while handle.can_read():
                    for output in handle.read().values():
                        came += [key] * len(output.generated_ids)
        finished = self._genai.GenerationStatus.FINISHED
        self._running = {k: h for k, h in self._running.items() if h.get_status() != finished}
        return came

    def facts(self) -> dict[str, Any]:
        import openvino
        import openvino_genai

        return {
            "version": openvino_genai.__version__,
            "openvino": openvino.__version__,
            "cache_bytes": self._cache,
        }

    def close(self) -> None:
        self._pipeline = None
