"""A certificate that is renewed where it lies: who connects after that is shown the new one.

Owns when its files are looked at and what happens to ones that cannot be used. Must not know how a server is made.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable

from twinline.gateway.listening import Tls

LOOK_SECONDS = 2.0
log = logging.getLogger(__name__)


async def renewing(tls: Tls, context: Callable[[], ssl.SSLContext | None]) -> None:
    """Until cancelled. `context` is the server's, once it has one. Files of which one is still missing, or the other
    one's, are told of once and looked at again; what was read last holds."""
    seen, failing = tls.stamps(), False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        found, used = tls.stamps(), context()
        if found == seen or used is None:
            continue
        try:
            tls.check()  # apart: what fails half-way would leave the server's own without a key
            used.load_cert_chain(tls.certificate, tls.key)
        except (ValueError, OSError) as error:
            if not failing:
                log.error("%s; the certificate from before is shown", error)
            failing = True
            continue
        seen, failing = found, False
        log.warning("the certificate in %s was read anew", tls.certificate)
