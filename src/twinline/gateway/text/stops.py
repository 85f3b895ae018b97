"""Stop strings in a stream of text.

Owns the text that may still become a stop string. Must not know tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from twinline.gateway.text.partial import open_end


class StopMatcher:
    """Finds the stop that is complete first, as if the text came one character at a time.

    So the result does not depend on how the text is cut, and a stop is reported with the character that completes it.
    Of stops complete at the same character the one that began first wins. `include`: the stop itself is sent too.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """Raises ValueError for an empty stop."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may be sent now, and the stop that was matched. After a match nothing more is sent."""
        if self._matched is not None:
            return "", self._matched
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self._matched = min(found)
            self._held = ""
            return text[: end if self._include else start], self._matched
        ready = len(text) - open_end(text, self._stops)
        self._held = text[ready:]
        return text[:ready], None

    def finish(self) -> str:
        """What was held back for a stop that did not come."""
        rest, self._held = self._held, ""
        return rest
