"""What a page of another site can make a browser on this machine send, and what keeps it out where no key does.

Owns what of a request's head tells that. Must not know keys or paths. A browser asks 127.0.0.1 in the name of any page.
It does not let the page read the answer, unless the page's own name was made to stand for 127.0.0.1 meanwhile (DNS
rebinding): then the request says that name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from twinline.gateway.errors import forbidden

_OURS = (".localhost", ".local", ".internal")  # of which no site can have one; containers call their host so
_SITES = re.compile("https?:|null$", re.IGNORECASE)
_HOST = re.compile(r"\[([^]]*)\]|([^:]*)")  # and then perhaps a port


def of_this_machine(host: str | None) -> bool:
    """Whether the value of a Host header is none that a page of another site can have: such names have a dot."""
    found = _HOST.match(host or "")
    name = ((found[1] or found[2] or "") if found else "").rstrip(".").lower()
    if "." not in name or name.endswith(_OURS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def refuse_names(header: Callable[[str], str | None]) -> None:
    """Raises ApiError 403 for a request to a name that other sites can have."""
    host = header("host")
    if not of_this_machine(host):
        told = f"A gateway without keys is for this machine alone and is not asked as `{host}`: ask it at localhost, "
        raise forbidden(told + "let a proxy send `Host: localhost`, or use keys: required.", "host_not_allowed")


def refuse_pages(header: Callable[[str], str | None]) -> None:
    """Raises ApiError 403 for what a page of another site sends, too. For requests that do something. A desktop
    application made of a browser is cross-site to everything, but its origin (`app://`, `file://`) is no site's: theirs
    are http or, where a page is kept apart, null."""
    refuse_names(header)
    if header("sec-fetch-site") == "cross-site" and _SITES.match(header("origin") or "null"):
        told = "A gateway without keys takes no requests that pages of other sites make: use keys: required."
        raise forbidden(told, "cross_site")
