"""What Ctrl-C does to a training: it ends after its step, and only a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXIT_STATUS_INTERRUPTED = 130


@contextmanager
def ctrl_c_asks(stop: Callable[[], None]) -> Iterator[None]:
    """Within it, the first Ctrl-C calls a function, and the second ends the program at once.

    Where it was to be ignored, as by jobs in the background of a script, it still is; and only the main
    thread can say what it does, in others nothing changes.

    Args:
        stop: what the first one does; between two steps of the interpreter, so it must be quick.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is signal.SIG_IGN:
        yield
        return

    def ask(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # also where the interpreter is away in a kernel
        stop()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def ctrl_c_leaves() -> Iterator[None]:
    """Within it, Ctrl-C ends what is within, and the program goes on behind."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, usual)
