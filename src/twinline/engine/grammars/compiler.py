"""The process that compiles grammars: one after the other, from stdin to stdout, until stdin closes.

    python -m twinline.engine.grammars.compiler MODEL_DIR VOCABULARY_SIZE

Owns its own limits: of processor time for each grammar, and of memory. Whoever started it sees it end where one is
broken. Must not know requests.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from pathlib import Path

import msgspec

from twinline.engine.grammars.compiling import CPU_SECONDS, FRAME, MEMORY_BYTES, Job, Made
from twinline.engine.grammars.grammar import BadGrammar, Grammar
from twinline.engine.grammars.library import Library
from twinline.engine.grammars.vocabulary import Vocabulary


def limit_memory() -> None:
    """`MEMORY_BYTES` beside what is mapped now. Where the system does not say or keep it, the time bounds it."""
    with contextlib.suppress(OSError, ValueError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, resource.RLIM_INFINITY))


def limit_time() -> None:
    """SIGXCPU ends this process when the next grammar has taken `CPU_SECONDS`."""
    soft = int(time.process_time()) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> int:
    questions, answers = sys.stdin.buffer, sys.stdout.buffer

    def tell(frame: bytes) -> None:
        answers.write(len(frame).to_bytes(FRAME, "big") + frame)
        answers.flush()

    os.nice(10)  # a step of the engine goes first
    library = Library(Vocabulary.load(Path(sys.argv[1]), int(sys.argv[2])))
    limit_memory()
    tell(b"{}")
    while len(head := questions.read(FRAME)) == FRAME:
        job = msgspec.json.decode(questions.read(int.from_bytes(head, "big")), type=Job)
        limit_time()
        try:
            made = Made(compiled=library.compile(Grammar(job.kind, job.text)))
        except BadGrammar as error:
            made = Made(refusal=str(error))
        except MemoryError:
            # What it had is not surely free again, and the next grammar would be refused for it.
            refusal = f"the grammar takes more than {MEMORY_BYTES >> 30} GiB to compile: simplify it"
            made = Made(refusal=refusal, last=True)
        tell(msgspec.json.encode(made))
        if made.last:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
