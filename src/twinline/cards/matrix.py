"""The matrix of links that `topo -m` of most tools prints.

Owns reading it, and what its words mean. A row counts only if its `X` stands where the row meets itself, so that a
shifted row gives nothing. Must not know any tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from twinline.cards.card import Finding, Link, Nearness, Reading, Topology
from twinline.cards.text import clipped, lines

_END = re.compile(r"[A-Za-z]{2,8}_?[0-9]{1,4}")
KINDS: dict[str, Nearness] = {
    "PIX": "switch", "PXB": "bridges", "PHB": "host-bridge", "NODE": "node", "SYS": "system", "ETH": "network",
}  # fmt: skip
# Links of the makers' own, as their tools write them.
_OWN = re.compile(r"(?:NV|MX|HCCS|XGMI|MTLINK|ICN|BLINK|MLULINK|SIO)[0-9A-Z_]*", re.IGNORECASE)


def kind(word: str, own: Mapping[str, Nearness] = {}) -> Nearness:
    """What a word of the matrix means; `unknown` for words that nobody explained."""
    if word.upper() in own:
        return own[word.upper()]
    return KINDS.get(word.upper(), "direct" if _OWN.fullmatch(word) else "unknown")


def matrix(vendor: str, tool: str, text: str, own: Mapping[str, Nearness] = {}) -> Reading:
    """The topology in `text`; a finding where there is no matrix, or rows of it did not read."""
    names: list[str] = []
    links: dict[tuple[str, str], Link] = {}
    bad, seen = [], set()
    for line in lines(text):
        tokens = line.split()
        alone = tokens[1:2] == ["CPU"] and _END.fullmatch(tokens[0])  # the header above a single card
        if len(tokens) > 1 and (alone or all(map(_END.fullmatch, tokens[:2]))) and "X" not in tokens:
            if names and tokens != names:
                bad.append(line)  # two unlike headers: rows would be read under the wrong one
            named = [token for token in tokens if _END.fullmatch(token)]
            if len(set(named)) < len(named):
                bad.append(line)
            names = names or (tokens if len(set(named)) == len(named) else [])
        elif names and tokens and _END.fullmatch(tokens[0]):
            row, values = tokens[0], tokens[1:]
            reach = max(at for at, name in enumerate(names) if _END.fullmatch(name)) + 1
            at_self = [at for at, value in enumerate(values[:reach]) if value == "X"]
            if row not in names or len(values) < reach or at_self != [names.index(row)] or row in seen:
                bad.append(line)
                continue
            seen.add(row)
            for end, value in zip(names, values[:reach], strict=False):
                if _END.fullmatch(end) and end != row:
                    links[row, end] = Link(start=row, end=end, kind=kind(value, own), printed=clipped(value, 20))
    torn = [link for link in links.values() if links.get((link.end, link.start), link).printed != link.printed]
    for link in torn:
        del links[link.start, link.end]
    ends = tuple(dict.fromkeys(name for name in names if _END.fullmatch(name)))
    findings = [Finding(kind="unparsable", vendor=vendor, tool=tool, message="a row of the link matrix does not read",
                        text=clipped(line)) for line in bad[:3]]  # fmt: skip
    if torn:
        text = ", ".join(f"{link.start}-{link.end} {link.printed}" for link in torn[:6])
        message = f"{len(torn)} links differ from the same links seen from their other ends"
        findings.append(Finding(kind="doubtful", vendor=vendor, tool=tool, message=message, text=text))
    if not links and not (len(ends) == 1 and seen == set(ends)):
        message = "no matrix of links in what it printed"
        findings.append(Finding(kind="unparsable", vendor=vendor, tool=tool, message=message, text=clipped(text)))
        return Reading(findings=tuple(findings))
    found = Topology(vendor=vendor, tool=tool, ends=ends, links=tuple(links.values()))
    return Reading(topology=found, findings=tuple(findings))
