"""Whom a choice belongs to, as the choice sees it.

Owns the contract alone. Must not know how an answer is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from twinline.gateway.errors import ApiError
from twinline.gateway.transcript import Piece

if TYPE_CHECKING:
    from twinline.gateway.choice import Choice


class Listener(Protocol):
    """Hears what a choice gives out. After `over` or `failed` nothing more comes."""

    def piece(self, choice: Choice, piece: Piece) -> None: ...

    def over(self, choice: Choice) -> None: ...

    def failed(self, choice: Choice, error: ApiError) -> None: ...
