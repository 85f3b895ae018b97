"""Which aten ops are one kernel's work under several names.

Under `torch.inference_mode` a composite op (`linear`, `softmax`) reaches a device whole; elsewhere it comes in parts
(`addmm`, `_softmax`). What a chip does wrongly, slowly or not at all it does under every name.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MATRIX = _names("linear mm addmm matmul einsum bmm baddbmm mv addmv dot")
BATCHED = _names("bmm baddbmm")
ATTENTION = _names(
    "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_for_cpu"
)
SOFTMAX = _names("softmax _softmax _safe_softmax")
LOG_SOFTMAX = _names("log_softmax _log_softmax logsumexp")
NORM = _names("rms_norm _fused_rms_norm")
ROWS = _names("embedding index index_select")
GATHER = _names("gather")
WRITE_ROWS = _names("index_copy_ index_copy index_put_ index_put _index_put_impl_")
ADD_ROWS = _names("index_add_ index_add scatter_add_ scatter_add")
SORT = _names("sort argsort msort")
TOPK = _names("topk")
SUM = _names("sum mean cumsum")
CAST = _names("to _to_copy copy_")
FILL_WHERE = _names("masked_fill masked_fill_ where")
# What the engine's reference ops and a greedy sampler come down to, under either kind of name.
LEAST = MATRIX | SOFTMAX | _names(
    "_local_scalar_dense item _to_copy to copy_ _copy_from clone contiguous flatten reshape detach detach_ empty "
    "empty_like empty_strided zeros_like ones_like zero_ fill_ arange add add_ sub mul div pow mean sum rsqrt sigmoid "
    "silu eq ge max index index_put_ index_add_ masked_fill gather scatter_ topk triu cat stack repeat_interleave "
    "nonzero nonzero_numpy _unique2"
)  # fmt: skip
RANDOM = _names("normal_ uniform_ random_ bernoulli_ bernoulli exponential_ multinomial randint randperm rand randn")
