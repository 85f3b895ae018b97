"""The store as a gateway process opens it: keys, limits and the journal, with what keeps them fresh.

Owns their common life. Must not know what is checked or booked: that is `access.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from twinline.gateway.access import Access
from twinline.store.beside import Beside
from twinline.store.database import Database
from twinline.store.folder import keep_folding
from twinline.store.journal import Journal
from twinline.store.keys import Keys
from twinline.store.limits import Limits
from twinline.store.ring import KeyRing


@contextlib.asynccontextmanager
async def opened(
    *, keys: bool, fold: bool, admin: str | None = None, currency: str | None = None
) -> AsyncIterator[Access]:
    """Usage is recorded with keys or without. `fold`: this process sees to it that journals reach the database.

    Raises StoreError or OSError for a store that cannot be opened.
    """
    beside = Beside("opening")  # whoever waits for a database that hangs may be cancelled, and the process can end
    try:
        database = await beside.do(Database)
        ring = KeyRing(Keys(database)) if keys else None
        if ring is not None:
            await beside.do(ring.refresh)
    finally:
        beside.close()
    journal = Journal(database.journals)
    limits: Limits | None = None
    tasks: list[asyncio.Task[None]] = []
    if ring is not None:
        limits = Limits(database)
        tasks += [asyncio.create_task(ring.run()), asyncio.create_task(limits.run())]
    if fold:
        tasks.append(asyncio.create_task(keep_folding(database, database.journals)))
    try:
        yield Access(ring, limits, journal, admin, currency)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        journal.close()
        database.close()
