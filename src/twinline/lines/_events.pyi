# Of csrc/line_events.cpp.

# Token ids (None: no event but [DONE]), the prompt's, finish reason, stop reason, (prompt, completion, cached) tokens,
# whether [DONE] and the body's last chunk were there.
Read = tuple[
    list[int] | None, list[int] | None, str | None, int | str | None, tuple[int, int, int | None] | None, bool, bool
]

def read_answer(data: bytes, /) -> Read | None: ...
def read_chunks(data: bytes, /) -> Read | None: ...
