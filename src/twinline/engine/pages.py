"""The pages of the key-value cache: who holds which, and which hold a prefix that can be used again.

Owns page numbers, reference counts, prefix keys and the order of eviction. Knows nothing of requests, devices or what a
page's memory looks like. Not thread-safe: one loop calls it.

A page is in exactly one of three states:

- held: at least one sequence refers to it;
- cached: free, but its key is known, so that a later sequence with the same prefix may take it again;
- blank: free, with nothing worth keeping.

The key of a full page is a hash over the key of the page before it and its own token ids: it names a whole prefix. With
a prediction layer a page also holds what that layer made of each token and the next, so the key takes the next in, too
(`Chain`'s `ahead`), and a page is known by it one token later.
Blank pages are given out first, then cached ones, least recently released first and the tail of a sequence before its
head (a tail without its head can never be matched).
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

KEY_BYTES = 16


class Chain:
    """The keys of one sequence's full pages, each hashed once in the sequence's life, preemptions included.

    `tokens(start, end)` reads the sequence's token ids; more may follow, but those that are there must never change.
    Sequences with different `salt` (a tenant, an adapter) never share a page.
    """

    __slots__ = ("_keys", "_size", "_tokens", "ahead", "generation")

    def __init__(
        self, tokens: Callable[[int, int], list[int]], size: int, *, salt: bytes = b"", ahead: int = 0
    ) -> None:
        """`ahead`: how many tokens after a page its content depends on."""
        self._tokens = tokens
        self._size = size
        self.ahead = ahead
        self._keys = [blake2b(salt, digest_size=KEY_BYTES).digest()]
        self.generation = -1  # of the pool's prefix cache, when the sequence last entered it

    def key(self, index: int) -> bytes:
        """The key of page `index`. Raises ValueError if the sequence does not fill that page yet."""
        keys, size = self._keys, self._size
        while len(keys) <= index + 1:
            start = (len(keys) - 1) * size
            ids = self._tokens(start, start + size + self.ahead)
            if len(ids) != size + self.ahead:
                raise ValueError(f"page {index} is not full: {start + len(ids)} tokens, pages of {size}")
            keys.append(blake2b(keys[-1] + array("q", ids).tobytes(), digest_size=KEY_BYTES).digest())
        return keys[index + 1]


class PagePool:
    """`count` pages of `size` tokens, numbered from 0.

    The counters only grow: `queried_tokens` and `hit_tokens` are what sequences asked of the prefix cache and what they
    got, `evicted_pages` the cached pages that were given out for other content.
    """

    def __init__(self, count: int, size: int, *, prefix_cache: bool = True) -> None:
        if count < 1 or size < 1:
            raise ValueError(f"a pool needs at least 1 page of at least 1 token, not {count} pages of {size}")
        self.count = count
        self.size = size
        self.prefix_cache = prefix_cache
        self.queried_tokens = 0
        self.hit_tokens = 0
        self.evicted_pages = 0
        self._references = [0] * count
        self._keys: list[bytes | None] = [None] * count
        self._page_of: dict[bytes, int] = {}
        self._blank = list(range(count - 1, -1, -1))  # a stack
        self._cached: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._generation = 0

    @property
    def free(self) -> int:
        """Pages that `allocate` can give: blank and cached."""
        return len(self._blank) + len(self._cached)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.size)

    def match(self, chain: Chain, limit: int) -> list[int]:
        """The longest run of known pages that begins the sequence, within its first `limit` tokens.

        Takes no references: `take` them before anything else is allocated. To leave a token to compute (its logits
        give the next one), `limit` is at most the sequence's length less one.
        """
        pages: list[int] = []
        if not self.prefix_cache:
            return pages
        for index in range(limit // self.size):
            page = self._page_of.get(chain.key(index))
            if page is None:
                break
            pages.append(page)
        return pages

    def unheld(self, pages: Iterable[int]) -> int:
        """How many of `pages` nobody holds, so that taking them lowers `free`."""
        references = self._references
        return sum(not references[page] for page in pages)

    def take(self, chain: Chain, pages: Sequence[int], *, queried: int = 0) -> None:
        """Lets a sequence enter with the pages that `match` found, which may be none.

        `queried`: tokens that the lookup asked about, for the counters (0: not to be counted).
        """
        chain.generation = self._generation
        self.queried_tokens += queried
        self.hit_tokens += min(queried, len(pages) * self.size)
        for page in pages:
            if not self._references[page]:
                del self._cached[page]
            self._references[page] += 1

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages held once each, or None (and nothing changes) if fewer are free."""
        if count > self.free:
            return None
        pages = []
        for _ in range(count):
            page = self._blank.pop() if self._blank else self._evict()
            self._references[page] = 1
            pages.append(page)
        return pages

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        self._forget(page)
        self.evicted_pages += 1
        return page

    def _forget(self, page: int) -> None:
        key = self._keys[page]
        if key is not None:
            del self._page_of[key]
            self._keys[page] = None

    def release(self, pages: Sequence[int]) -> None:
        """Gives up one reference on each of a sequence's pages, in the sequence's order. ValueError if none is left."""
        for page in reversed(pages):
            if not self._references[page]:
                raise ValueError(f"page {page} is released, but nobody holds it")
            self._references[page] -= 1
            if self._references[page]:
                continue
            if self._keys[page] is None:
                self._blank.append(page)
            else:
                self._cached[page] = None

    def publish(self, chain: Chain, pages: Sequence[int], before: int, after: int) -> None:
        """Makes matchable the pages that became full while the sequence's computed tokens went `before` -> `after`.

        Where a key is known already (the same prefix was computed twice), its first page keeps it.
        """
        # A sequence older than the last reset holds what the reset was to forget.
        if not self.prefix_cache or chain.generation != self._generation:
            return
        ahead = chain.ahead
        for index in range(max(0, before - ahead) // self.size, max(0, after - ahead) // self.size):
            key, page = chain.key(index), pages[index]
            if key not in self._page_of:
                self._page_of[key] = page
                self._keys[page] = key

    def reset_prefix_cache(self) -> None:
        """Forgets every prefix (the weights changed, say). Sequences go on, but share nothing that they hold now."""
        self._generation += 1
        self._page_of.clear()
        self._keys = [None] * self.count
        self._blank.extend(reversed(self._cached))
        self._cached.clear()

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError, naming the page, where the books disagree with `held`: each live sequence's pages."""
        expected: Counter[int] = Counter()
        for pages in held:
            twice = [page for page, times in Counter(pages).items() if times > 1]
            _check(not twice, f"a sequence holds page {twice[:1]} twice")
            expected.update(pages)
        for page, references in enumerate(self._references):
            _check(
                references == expected[page],
                f"page {page} has {references} references, but {expected[page]} sequences hold it",
            )
        blank, cached = set(self._blank), set(self._cached)
        _check(len(blank) == len(self._blank), "a page is twice in the blank list")
        for page in range(self.count):
            states = (page in blank) + (page in cached) + (expected[page] > 0)
            _check(states == 1, f"page {page} is in {states} of the states held, cached and blank, not in one")
            key = self._keys[page]
            _check(page not in blank or key is None, f"blank page {page} has a key")
            _check(page not in cached or key is not None, f"cached page {page} has no key")
            _check(key is None or self._page_of.get(key) == page, f"the key of page {page} leads elsewhere")
        named = self.count - self._keys.count(None)
        _check(named == len(self._page_of), f"{len(self._page_of)} keys are known, but {named} pages have one")


def _check(holds: bool, message: str) -> None:
    """An assertion that `python -O` keeps."""
    if not holds:
        raise AssertionError(message)
