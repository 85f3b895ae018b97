"""What of a step cannot be used: some requests' part, while the others' can.

Owns the error. Must not know what becomes of it.
"""

from __future__ import annotations

from collections.abc import Sequence


class BadLogits(ValueError):
    """Some requests' logits have no finite maximum (NaN, infinite): a device that computes wrongly, or broken weights.
    Or their grammar lets nothing follow.

    `request_ids`: whose. The other requests of the step may be sampled again without them.
    """

    def __init__(self, request_ids: Sequence[str], what: str = "logits are NaN or infinite") -> None:
        super().__init__(f"{what} for request {', '.join(request_ids)}")
        self.request_ids = tuple(request_ids)
