"""Long texts do not stall other work: the tokenizer frees the interpreter, and few are worked on at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from twinline.gateway import aside
from twinline.gateway.text.tokenizer import Tokenizer


def test_other_threads_go_on_while_a_long_text_is_tokenized(tiny_folder: Path) -> None:
    tokenizer = Tokenizer.load(tiny_folder)
    text = "hello world " * 100_000
    thread = threading.Thread(target=lambda: tokenizer.encode(text, special=False))
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.002)
        turns += 1
    assert turns > 3  # one, were the interpreter held


def test_few_are_worked_on_at_a_time_and_short_ones_at_once() -> None:
    lock = threading.Lock()
    now = most = 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1

    async def test() -> None:
        await asyncio.gather(*(aside.made(work, aside.LONG_BODY_BYTES) for _ in range(6)))
        assert most == 2
        assert await aside.made(threading.current_thread, 1) is threading.current_thread()
        assert await aside.made(threading.current_thread, 1 << 20) is not threading.current_thread()

    asyncio.run(test())
