"""What would make a model fit: the smallest number of cards, and for a no the smallest changes that turn it into a yes.

Owns the search over changes; every change that is offered was put through the same sum. Must not know how it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator

import msgspec

from twinline.facts.chips import Chip, Precision
from twinline.facts.fit import Answer, Fit, Want, chunk_of, fit, node_devices
from twinline.facts.forms import FORMS, Form
from twinline.facts.memory import CACHE_FORMS, PAGE, CacheType
from twinline.facts.suits import suits
from twinline.facts.tensors import Anatomy
from twinline.facts.weights import checkpoint_bytes

NODES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
LEAST_CONTEXT = LEAST_CHUNK = 1024
# Caches of 8 bits, and the arithmetic that a source must know the chip to have before one is offered.
SMALL_CACHES: tuple[tuple[CacheType, Precision], ...] = (("fp8", "fp8-e4m3"), ("int8", "int8"))
YES: tuple[Answer, ...] = ("yes",)
# Which form is tried next: FP8 and INT8 lose least of what is smaller than 16 bits.
ORDER = ("bf16", "fp16", "fp8", "int8", "w4a8", "int4", "fp4")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change in words, as options of `twinline fit`, and the sum that it was put through."""

    what: str
    options: str
    fit: Fit


def counts(chip: Chip) -> list[int]:
    """Numbers of cards that are tried: powers of two within a machine, then whole machines."""
    node = node_devices(chip)[0] // chip.devices_per_card
    within = [2**n for n in range(node.bit_length()) if 2**n < node]
    return [*within, *(node * nodes for nodes in NODES)]


def least_cards(
    anatomy: Anatomy, chip: Chip, want: Want, above: int = 0, answers: Collection[Answer] = YES
) -> Fit | None:
    """The sum for the smallest of these numbers, above `above`, whose answer is one of `answers`; None if none is."""
    if chip.memory_bytes().value is None or suits(chip, want.form).answer not in answers:
        return None
    tried = (fit(anatomy, chip, cards, want) for cards in counts(chip) if cards > above)
    return next((one for one in tried if one.answer in answers), None)


def other_forms(anatomy: Anatomy, chip: Chip, form: Form) -> Iterator[Form]:
    """Forms that a source says the chip runs: the smaller ones, and where that is not said of `form` the others too."""
    now, said = checkpoint_bytes(anatomy, form), suits(chip, form).answer == "yes"
    for name in ORDER:
        other = FORMS[name]
        if other.name == form.name or (name == "w4a8" and anatomy.mixture is None):
            continue
        smaller = checkpoint_bytes(anatomy, other) < 0.98 * now
        if (smaller or not said) and suits(chip, other).answer == "yes":
            yield other


def changes(anatomy: Anatomy, chip: Chip, now: Fit, want: Want) -> list[Change]:
    """Changes that lead to a yes, the smallest first; none for a yes, or where nothing was found."""
    if now.answer == "yes" or chip.memory_bytes().value is None:
        return []
    free = msgspec.structs.replace(want, layout=None)
    found = []
    if want.layout is not None and (one := fit(anatomy, chip, now.cards, free)).answer == "yes":
        spelt = str(one.layout).replace(" ", ",")
        found.append(Change(what="another layout", options=f"--layout {spelt}", fit=one))
    found += _smaller_chunk(anatomy, chip, now, want)
    found += _less(anatomy, chip, now, want)
    found += _smaller_cache(anatomy, chip, now, want)
    more: list[Fit] = []
    if grown := least_cards(anatomy, chip, free, above=now.cards):
        more.append(grown)
    for form in other_forms(anatomy, chip, want.form):
        other = msgspec.structs.replace(free, form=form)
        one = fit(anatomy, chip, now.cards, other)
        if one.answer == "yes":
            found.append(Change(what=f"weights in {form.short}", options=f"--precision {form.name}", fit=one))
        elif grown := least_cards(anatomy, chip, other, above=now.cards):
            more.append(grown)
    # More cards and another form at once only where the form is needed, or saves cards.
    for one in sorted(more, key=lambda one: (one.cards, one.form != want.form.name)):
        if not any(one.form != want.form.name and had.fit.cards == one.cards for had in found):
            found.append(_grown(one, now, want))
    return found


def _grown(one: Fit, now: Fit, want: Want) -> Change:
    words, options = f"{one.cards} cards instead of {now.cards}", f"--cards {one.cards}"
    if one.form != want.form.name:
        words += f", weights in {FORMS[one.form].short}"
        options += f" --precision {one.form}"
    return Change(what=words, options=options, fit=one)


def _smaller_chunk(anatomy: Anatomy, chip: Chip, now: Fit, want: Want) -> Iterator[Change]:
    """Fewer tokens prefilled at once: the same answers, the first of them a little later."""
    asked = chunk_of(want, (chip.memory_bytes().value or 0.0) / chip.devices_per_card)
    chunk = asked // 2
    while chunk >= LEAST_CHUNK:
        one = fit(anatomy, chip, now.cards, msgspec.structs.replace(want, chunk=chunk))
        if one.answer == "yes":
            words = f"{chunk:,} tokens prefilled at once instead of {asked:,}"
            yield Change(what=words, options=f"--chunk {chunk}", fit=one)
            return
        chunk //= 2


def _smaller_cache(anatomy: Anatomy, chip: Chip, now: Fit, want: Want) -> Iterator[Change]:
    """Keys and values in 8 bits instead of 16."""
    for name, precision in SMALL_CACHES:
        if want.cache.value_bytes == 1 or chip.precisions[precision].answer != "yes":
            continue
        one = fit(anatomy, chip, now.cards, msgspec.structs.replace(want, cache=CACHE_FORMS[name]))
        if one.answer == "yes":
            yield Change(what=f"keys and values in {name.upper()}", options=f"--cache {name}", fit=one)
            return


def _less(anatomy: Anatomy, chip: Chip, now: Fit, want: Want) -> Iterator[Change]:
    """Fewer requests at once, or shorter ones: as many, or as long, as fit."""

    def with_requests(number: int) -> Fit:
        return fit(anatomy, chip, now.cards, msgspec.structs.replace(want, concurrency=number))

    def with_pages(number: int) -> Fit:
        context = min(number * PAGE, anatomy.context)
        return fit(anatomy, chip, now.cards, msgspec.structs.replace(want, context=context))

    if fewer := _largest(1, want.concurrency - 1, with_requests):
        words = f"{fewer.concurrency:,} requests at once instead of {want.concurrency:,}"
        yield Change(what=words, options=f"--concurrency {fewer.concurrency}", fit=fewer)
    most = math.ceil(min(want.context, anatomy.context + 1) / PAGE) - (want.context <= anatomy.context)
    if shorter := _largest(LEAST_CONTEXT // PAGE, most, with_pages):
        words = f"a context of {shorter.context:,} tokens instead of {want.context:,}"
        yield Change(what=words, options=f"--context {shorter.context}", fit=shorter)


def _largest(low: int, high: int, tried: Callable[[int], Fit]) -> Fit | None:
    """The fit for the largest number from `low` to `high` that is a yes, where every smaller one is a yes too."""
    best: Fit | None = None
    while low <= high:
        middle = (low + high + 1) // 2
        one = tried(middle)
        if one.answer == "yes":
            best, low = one, middle + 1
        else:
            high = middle - 1
    return best
