"""vLLM's CPU build, in this process: its engine core without the process that its server puts it in."""

from __future__ import annotations

import itertools
import os
from typing import Any

from benchmarks.cpu.engines import LONGEST, MOST_REQUESTS, STEP_TOKENS, Asked

CACHE_GIB = 2  # the least whole number of GiB that holds engines.CACHE_TOKENS of any shape here


class Opened:
    def __init__(self, asked: Asked) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{asked.threads - 1}",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._numbers = itertools.count()
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(asked.model),
                dtype="bfloat16",
                max_model_len=LONGEST,
                max_num_seqs=MOST_REQUESTS,
                max_num_batched_tokens=STEP_TOKENS,
                enable_prefix_caching=False,
                skip_tokenizer_init=False,
                disable_log_stats=True,
                **dict(option.split("=", 1) for option in asked.options),
            )
        )

    def submit(self, prompt: list[int], new: int) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        key = str(next(self._numbers))
        params = SamplingParams(
            temperature=0, max_tokens=new, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        self._engine.add_request(key, {"prompt_token_ids": prompt}, params)
        return key

    def step(self) -> list[str]:
        while self._engine.has_unfinished_requests():
            came = [o.request_id for o in self._engine.step() for _ in o.outputs[0].token_ids]
            if came:
                return came
        return []

    def facts(self) -> dict[str, Any]:
        import torch
        import vllm

        return {"version": vllm.__version__, "torch": torch.__version__, "cache_bytes": CACHE_GIB * 2**30}

    def close(self) -> None:
        pass
