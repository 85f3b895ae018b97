"""An answer that goes on elsewhere, or after a preemption, is computed as it was: its tokens' positions as decodes,
to the same bits, though they now come as one chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.driving import DEVICE, Driven

from twinline.engine import batch as batches
from twinline.engine.request import Request, SamplingParams
from twinline.engine.scheduler import Work

EMBEDDED = Path(batches.__file__).parents[1] / "models" / "tiny-r1"
PROMPT = [(i * 31) % 500 + 1 for i in range(90)]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def driven(request: pytest.FixtureRequest) -> Driven:
    return Driven(EMBEDDED, dtype=request.param, max_tokens_per_step=512)


@pytest.mark.skipif(DEVICE != "cpu", reason="its kernels alone promise the same bits in chunks of any size")
@pytest.mark.parametrize("length", [1, 3, 90], ids=["prompt of one token", "short prompt", "long prompt"])
def test_every_log_probability_is_the_same(driven: Driven, length: int) -> None:
    whole = driven.submit(f"whole {length}", PROMPT[:length], max_tokens=48)
    driven.run()
    scores = driven.logprobs(whole)
    for cut in (1, 2, 20, 47):
        driven.engine.pool.reset_prefix_cache()
        rest = driven.submit(f"{length} from {cut}", PROMPT[:length], output=whole.output[:cut], max_tokens=48)
        driven.run()
        assert rest.output == whole.output and driven.logprobs(rest) == scores[cut:]


def test_a_chunk_is_parted_where_the_output_begins() -> None:
    request = Request("r", [1, 2, 3], SamplingParams(), output=[4, 5, 6, 7], pages=[0, 1])

    def parts(start: int, count: int) -> list[tuple[int, int, int, bool, int]]:
        batch = batches.build((Work(request, start, count),), 4, torch.device("cpu"), 9)
        return [(p.start, p.end, p.past, p.decoded, len(p.pages_P)) for p in batch.plan.prefills]

    assert parts(0, 3) == [(0, 3, 0, False, 1)]
    assert parts(2, 3) == [(0, 1, 2, True, 1), (1, 3, 3, True, 2)]
    assert parts(1, 5) == [(0, 2, 1, False, 1), (2, 5, 3, True, 2)]
    assert parts(3, 4) == [(0, 4, 3, True, 2)]
    assert parts(4, 2) == [(0, 2, 4, True, 2)]
