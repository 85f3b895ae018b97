"""What a tool gave that is no text, such as a picture: the model is told that it was there and that it cannot see it.

Owns the words. A refusal would end an agent's run for good, for the picture stays in its conversation. What a person
shows is refused: whoever asked for it to be looked at must know that it was not.
"""

from __future__ import annotations


def unseen(kind: str) -> str:
    return f"[{kind.removeprefix('input_')} left out: this model reads text only]"
