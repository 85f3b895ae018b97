"""For all tests: Ctrl-C is heeded, also where the suite was started in the background, which has it ignored."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else every child would ignore it too
