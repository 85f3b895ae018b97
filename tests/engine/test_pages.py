"""Pages: references, prefix reuse, the order of eviction, and an integrity check that notices every kind of damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from twinline.engine.pages import Chain, PagePool

SIZE = 4


def chain_of(tokens: list[int], salt: bytes = b"") -> Chain:
    return Chain(lambda start, end: tokens[start:end], SIZE, salt=salt)


def enter(pool: PagePool, tokens: list[int], salt: bytes = b"") -> tuple[list[int], int]:
    """Computes and publishes a whole sequence; its pages, and how many of them came from the cache."""
    chain = chain_of(tokens, salt)
    matched = pool.match(chain, len(tokens) - 1)
    pool.take(chain, matched, queried=len(tokens))
    fresh = pool.allocate(pool.pages_for(len(tokens)) - len(matched))
    assert fresh is not None
    pages = matched + fresh
    pool.publish(chain, pages, len(matched) * SIZE, len(tokens))
    return pages, len(matched)


def test_allocate_gives_all_or_nothing() -> None:
    pool = PagePool(3, SIZE)
    assert pool.allocate(4) is None
    assert pool.free == 3
    pages = pool.allocate(3)
    assert pages == [0, 1, 2]
    assert pool.free == 0
    assert pool.allocate(0) == []
    pool.release(pages)
    assert pool.free == 3
    pool.check_integrity([])


def test_a_page_is_shared_until_its_last_holder_leaves() -> None:
    pool = PagePool(8, SIZE)
    tokens = list(range(10))
    first, _ = enter(pool, tokens)
    second, matched = enter(pool, tokens)
    assert matched == 2
    assert second[:2] == first[:2]
    assert second[2] != first[2]
    pool.check_integrity([first, second])
    pool.release(first)
    assert pool.unheld(second) == 0
    pool.check_integrity([second])
    pool.release(second)
    assert pool.free == 8
    pool.check_integrity([])


def test_a_match_leaves_a_token_to_compute_and_needs_the_whole_prefix() -> None:
    pool = PagePool(8, SIZE)
    tokens = list(range(8))
    pages, _ = enter(pool, tokens)
    pool.release(pages)
    assert pool.match(chain_of(tokens), 8) == pages
    assert pool.match(chain_of(tokens), 7) == pages[:1]
    assert pool.match(chain_of([9, *tokens[1:]]), 8) == []
    assert pool.match(chain_of(tokens[4:]), 4) == []  # the same ids at another place are another prefix
    assert pool.match(chain_of(tokens, b"tenant"), 8) == []


def test_sequences_with_one_salt_share() -> None:
    pool = PagePool(8, SIZE)
    enter(pool, list(range(8)), b"tenant")
    assert enter(pool, list(range(8)), b"tenant")[1] == 1
    assert enter(pool, list(range(8)))[1] == 0


def test_blank_pages_go_first_then_the_oldest_tail_first() -> None:
    pool = PagePool(6, SIZE)
    old, _ = enter(pool, [1] * 8)
    new, _ = enter(pool, [2] * 8)
    pool.release(old)
    pool.release(new)
    assert set(pool.allocate(2) or ()).isdisjoint(old + new)
    assert pool.evicted_pages == 0
    assert [pool.allocate(1) for _ in range(4)] == [[old[1]], [old[0]], [new[1]], [new[0]]]
    assert pool.evicted_pages == 4
    assert pool.match(chain_of([1] * 8), 8) == []


def test_taking_a_cached_page_renews_it() -> None:
    pool = PagePool(2, SIZE)
    a, _ = enter(pool, [1] * 4)
    b, _ = enter(pool, [2] * 4)
    pool.release(a)
    pool.release(b)
    chain = chain_of([1] * 5)
    matched = pool.match(chain, 4)
    assert pool.unheld(matched) == 1
    pool.take(chain, matched)
    assert pool.free == 1
    pool.release(matched)
    assert pool.allocate(1) == b


def test_a_prefix_computed_twice_keeps_its_first_page() -> None:
    pool = PagePool(4, SIZE)
    held: list[list[int]] = []
    for _ in range(2):  # both begin before either has published
        pages = pool.allocate(1)
        assert pages is not None
        held.append(pages)
    for pages in held:
        chain = chain_of([7] * 5)
        pool.take(chain, [])
        pool.publish(chain, pages, 0, 4)
    assert pool.match(chain_of([7] * 5), 4) == held[0]
    pool.check_integrity(held)
    pool.release(held[1])
    pool.check_integrity(held[:1])
    assert pool.match(chain_of([7] * 5), 4) == held[0]


def test_pages_are_published_as_they_fill_and_hashed_once() -> None:
    pool = PagePool(4, SIZE)
    read: list[tuple[int, int]] = []

    def tokens(start: int, end: int) -> list[int]:
        read.append((start, end))
        return list(range(start, end))

    chain = Chain(tokens, SIZE)
    assert pool.match(chain, 11) == []
    pool.take(chain, [])
    pages = pool.allocate(3)
    assert pages is not None
    for before, after, known in ((0, 3, 0), (3, 4, 1), (4, 5, 1), (5, 12, 3)):
        pool.publish(chain, pages, before, after)
        assert pool.match(chain, 12) == pages[:known]
    assert read == [(0, 4), (4, 8), (8, 12)]


def test_a_page_that_is_not_full_has_no_key() -> None:
    with pytest.raises(ValueError, match="page 1 is not full: 6 tokens"):
        chain_of([1] * 6).key(1)


def test_without_prefix_cache_nothing_is_remembered() -> None:
    pool = PagePool(4, SIZE, prefix_cache=False)
    pages, _ = enter(pool, [1] * 8)
    assert enter(pool, [1] * 8)[1] == 0
    pool.release(pages)
    assert pool.match(chain_of([1] * 8), 8) == []


def test_a_reset_forgets_what_is_cached_and_what_is_held() -> None:
    pool = PagePool(8, SIZE)
    gone, _ = enter(pool, [1] * 8)
    tokens = [2] * 12
    chain = chain_of(tokens)
    pool.take(chain, [])
    held = pool.allocate(3)
    assert held is not None
    pool.publish(chain, held, 0, 4)
    pool.release(gone)
    pool.reset_prefix_cache()
    assert pool.match(chain_of([1] * 8), 8) == pool.match(chain_of(tokens), 12) == []
    fresh, _ = enter(pool, tokens[:4])
    pool.publish(chain, held, 4, 12)  # follows from what was computed before the reset: must not continue the new page
    pool.check_integrity([held, fresh])
    assert pool.match(chain_of(tokens), 12) == fresh
    pool.take(chain, [])  # a new life may publish again
    pool.publish(chain, held, 0, 12)
    assert pool.match(chain_of(tokens), 12) == fresh + held[1:]


def test_the_counters_tell_asked_from_got() -> None:
    pool = PagePool(8, SIZE)
    enter(pool, [1] * 10)
    enter(pool, [1] * 10)
    assert (pool.queried_tokens, pool.hit_tokens) == (20, 8)


def test_releasing_what_nobody_holds_is_refused() -> None:
    pool = PagePool(2, SIZE)
    with pytest.raises(ValueError, match="page 1 is released, but nobody holds it"):
        pool.release([1])


@pytest.mark.parametrize(("count", "size"), [(0, 4), (4, 0)])
def test_a_pool_has_pages_and_pages_have_room(count: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1 page of at least 1 token"):
        PagePool(count, size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda pool, held: held[0].pop(), "page 1 has 1 references, but 0 sequences hold it"),
        (lambda pool, held: held[0].append(3), "page 3 has 0 references, but 1 sequences hold it"),
        (lambda pool, held: held[0].append(held[0][0]), "holds page .0. twice"),
        (lambda pool, held: pool._blank.pop(), "page 3 is in 0 of the states"),
        (lambda pool, held: pool._blank.append(3), "a page is twice in the blank list"),
        (lambda pool, held: pool._cached.update({0: None}), "page 0 is in 2 of the states"),
        (lambda pool, held: pool._keys.__setitem__(3, b"x"), "blank page 3 has a key"),
        (lambda pool, held: pool._keys.__setitem__(2, None), "cached page 2 has no key"),
        (lambda pool, held: pool._keys.__setitem__(0, b"x"), "the key of page 0 leads elsewhere"),
        (lambda pool, held: pool._page_of.update({b"x": 0}), "4 keys are known, but 3 pages have one"),
    ],
)
def test_damage_is_noticed(damage: Callable[[PagePool, list[list[int]]], object], message: str) -> None:
    pool = PagePool(4, SIZE)
    held = [enter(pool, [1] * 8)[0]]
    pool.release(enter(pool, [2] * 4)[0])
    pool.check_integrity(held)
    damage(pool, held)
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity(held)


class PoolHistory(RuleBasedStateMachine):
    """Any history of a small pool; each page's true content is tracked beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(6, 2)
        self.live: list[tuple[list[int], list[int]]] = []  # tokens, pages
        self.content: dict[int, list[int]] = {}  # page -> all tokens from the sequence's start to the page's end

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def arrive(self, tokens: list[int]) -> None:
        pool, chain = self.pool, Chain(lambda start, end: tokens[start:end], 2)
        matched = pool.match(chain, len(tokens) - 1)
        for index, page in enumerate(matched):
            assert self.content[page] == tokens[: 2 * index + 2]
        fresh_needed = pool.pages_for(len(tokens)) - len(matched)
        assert fresh_needed > 0
        free = pool.free - pool.unheld(matched)
        pool.take(chain, matched)
        assert pool.free == free
        fresh = pool.allocate(fresh_needed)
        assert (fresh is None) == (free < fresh_needed)
        if fresh is None:
            pool.release(matched)
            return
        for index, page in enumerate(fresh, len(matched)):
            self.content[page] = tokens[: 2 * index + 2]
        pool.publish(chain, matched + fresh, 2 * len(matched), len(tokens))
        assert len(pool.match(chain, len(tokens))) == len(tokens) // 2
        self.live.append((tokens, matched + fresh))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        _, pages = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.pool.release(pages)

    @rule()
    def reset(self) -> None:
        self.pool.reset_prefix_cache()

    @invariant()
    def books_agree(self) -> None:
        self.pool.check_integrity([pages for _, pages in self.live])
        assert self.pool.free == 6 - len({page for _, pages in self.live for page in pages})
        for tokens, pages in self.live:
            for index, page in enumerate(pages):
                assert self.content[page] == tokens[: 2 * index + 2]


TestPoolHistory = PoolHistory.TestCase
TestPoolHistory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
