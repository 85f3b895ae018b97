"""How fast and how large the chip is that a simulated line plays.

Owns the arithmetic of a step's duration. Must not know requests or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

DECODE_SECONDS = 0.025  # a step, where nothing is said of its speed
CHUNK_TOKENS = 512  # prompt tokens beside the decodes of a step, where nothing is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """Speeds in tokens per second and seconds, sizes in tokens.

    A step that decodes n streams takes `decode_step_seconds + n * decode_step_seconds_per_stream`; prompt tokens that
    are computed in the same step add their own time (chunked prefill). Where `decode_tokens_per_second`, the speed of a
    single stream, is given instead of `decode_step_seconds`, the step is made to fit it. Raises ValueError.
    """

    name: str = "chip"
    prefill_tokens_per_second: float = 8000.0
    decode_tokens_per_second: float = 0.0
    decode_step_seconds: float = 0.0
    decode_step_seconds_per_stream: float = 0.0
    slots: int = 64
    kv_tokens: int = 65536
    max_model_len: int = 4096
    max_waiting: int = 256
    max_tokens_per_step: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} must be 0 or more, not {value:g}")
        for name in ("prefill_tokens_per_second", "slots", "kv_tokens", "max_waiting"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0")
        if self.decode_tokens_per_second and self.decode_step_seconds:
            raise ValueError("decode_tokens_per_second and decode_step_seconds exclude each other: give one of them")
        if self.fixed_seconds < 0:
            most = 1 / self.decode_tokens_per_second
            raise ValueError(
                f"decode_step_seconds_per_stream {self.decode_step_seconds_per_stream:g} alone takes longer than a "
                f"token at decode_tokens_per_second {self.decode_tokens_per_second:g}: lower it to at most {most:g}"
            )

    @property
    def fixed_seconds(self) -> float:
        """What a step that decodes takes, however many streams are in it."""
        if self.decode_tokens_per_second:
            return 1 / self.decode_tokens_per_second - self.decode_step_seconds_per_stream
        return self.decode_step_seconds or (0.0 if self.decode_step_seconds_per_stream else DECODE_SECONDS)

    @property
    def step_tokens(self) -> int:
        """The most tokens computed in one step."""
        return self.max_tokens_per_step or self.slots + CHUNK_TOKENS

    def step_seconds(self, prefilled: int, decoded: int) -> float:
        """How long a step takes that computes `prefilled` prompt tokens and one token each for `decoded` streams."""
        seconds = prefilled / self.prefill_tokens_per_second
        if decoded:
            seconds += self.fixed_seconds + decoded * self.decode_step_seconds_per_stream
        return seconds
