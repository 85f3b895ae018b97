"""`encrypted_content` of reasoning: what clients that keep no reasoning's text send back, as the AI SDK.

Owns how a text is written there. It is no secret, and not encrypted: whoever asks for it was told the text beside it.
"""

from __future__ import annotations

import base64
import binascii

ASKED = "reasoning.encrypted_content"  # the value of `include`
_OURS = "twinline:"


def sealed(text: str) -> str:
    return _OURS + base64.b64encode(text.encode()).decode()


def unsealed(given: str | None) -> str:
    """The text; of what another server wrote, none."""
    if given is None or not given.startswith(_OURS):
        return ""
    try:
        return base64.b64decode(given.removeprefix(_OURS), validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        return ""
