# Of csrc/text_event.cpp.

def event(
    tokens: list[int],
    texts: dict[int, str | None],
    skipped: frozenset[int],
    before: bytes,
    after: bytes,
    tagged: bool,
    /,
) -> bytes | None: ...
