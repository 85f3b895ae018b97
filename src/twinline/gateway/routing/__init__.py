"""The gateway's judgement, without its sockets: which line takes a request, and who waits.

Owns the names the rest of the gateway uses. Everything here is pure: the clock is given, nothing is awaited.
"""

from twinline.gateway.routing.ask import Ask, Traits
from twinline.gateway.routing.budget import Budget
from twinline.gateway.routing.fair import FairQueue, Refused, Ticket
from twinline.gateway.routing.keys import block_keys, keys_after
from twinline.gateway.routing.placement import Placement, Wait
from twinline.gateway.routing.policy import RULES, Policy, Rule
from twinline.gateway.routing.prefix import PrefixIndex
from twinline.gateway.routing.router import Router
from twinline.gateway.routing.station import Station

__all__ = [
    "RULES", "Ask", "Budget", "FairQueue", "Placement", "Policy", "PrefixIndex", "Refused", "Router", "Rule",
    "Station", "Ticket", "Traits", "Wait", "block_keys", "keys_after",
]  # fmt: skip
