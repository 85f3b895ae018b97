"""The keys in memory, as every request asks for them.

Owns the snapshot and its refreshing. Must not know limits or HTTP.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from hashlib import sha256

from twinline.store.beside import Beside
from twinline.store.keys import PREFIX, Key, Keys, digest

REFRESH_SECONDS = 1.0
SILENCE_SECONDS = 5.0  # of the database: what is revoked meanwhile holds on, and that is told
_log = logging.getLogger(__name__)


class KeyRing:
    """Who a secret belongs to, without asking the database.

    Filled by `refresh`, which blocks, or kept fresh by `run`: a key that is revoked or changed anywhere is so here
    after `seconds` and the time of one small query. While the database cannot be reached the last snapshot holds.

    `find` looks up by the first 8 bytes of the secret's SHA-256 and compares all 32 in constant time. What the look-up
    takes tells at most something about digests, of which nobody can choose one for a secret that he does not know.
    """

    def __init__(self, keys: Keys, *, seconds: float = REFRESH_SECONDS, clock: Callable[[], float] = time.time) -> None:
        self._keys, self._seconds, self._clock = keys, seconds, clock
        self._revision: int | None = None
        self._known: dict[bytes, tuple[bytes, Key]] = {}
        self._found: dict[str, Key] = {}  # those that may be found, by id

    def __len__(self) -> int:
        """How many keys are valid now."""
        now = self._clock()
        return sum(key.state(now) == "valid" for _, key in self._known.values())

    def find(self, secret: str) -> Key | None:
        """The key of that secret if it is neither revoked nor expired."""
        presented = sha256(secret.encode("utf-8", "surrogatepass")).digest()
        entry = self._known.get(presented[:8])
        if entry is None or not hmac.compare_digest(entry[0], presented):
            return None
        key = entry[1]
        if key.revoked is not None or (key.expires is not None and self._clock() >= key.expires):
            return None
        return key

    def holds(self, key: Key) -> bool:
        """Whether a key that `find` gave is still what it would give."""
        return self._found.get(key.id) is key and (key.expires is None or self._clock() < key.expires)

    def why_not(self, secret: str) -> str:
        """Why `find` gave None, for the bearer to read; off the hot path. Never holds any of the secret."""
        presented = digest(secret)
        entry = self._known.get(presented[:8])
        if entry is None or not hmac.compare_digest(entry[0], presented):
            shape = "" if secret.startswith(PREFIX) else f" Keys of this gateway begin with {PREFIX}."
            return f"The key is not known here.{shape}"
        key = entry[1]
        if key.revoked is not None:
            return f"The key {key.name} was revoked."
        day = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(key.expires))
        return f"The key {key.name} expired on {day}."

    def refresh(self) -> bool:
        """Reads the table if it has changed; whether it had. Blocks. Raises what the database raises."""
        taken = self._keys.snapshot(self._revision)
        if taken is None:
            return False
        self._revision, keys = taken
        old = {key.id: key for _, key in self._known.values()}
        # A key that has not changed stays the same object: what others remember by it stays theirs.
        kept = ((found, old[key.id] if old.get(key.id) == key else key) for found, key in keys.items())
        self._known = {found[:8]: (found, key) for found, key in kept}
        self._found = {key.id: key for _, key in self._known.values() if key.revoked is None}
        return True

    async def run(self) -> None:
        """Keeps the snapshot fresh until cancelled."""
        failing, beside = False, Beside("keys")
        try:
            while True:
                try:
                    asked = beside.do(self.refresh)
                    if not (await asyncio.wait((asked,), timeout=SILENCE_SECONDS))[0]:
                        _log.warning("keys cannot be read; the last ones hold: the database does not answer")
                        failing = True
                    await asked
                    failing = False
                except Exception as error:
                    if not failing:
                        _log.warning("keys cannot be read; the last ones hold: %s", _told(error))
                    failing = True
                await asyncio.sleep(self._seconds)
        finally:
            beside.close()


def _told(error: Exception) -> str:
    """Without the statement and its parameters, which SQLAlchemy's text has."""
    return str(getattr(error, "orig", None) or error).strip().split("\n", 1)[0]
