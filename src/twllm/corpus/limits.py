"""A bound on the time that one document may take: what takes longer is dropped as `too_slow`, the rest goes on.

A timer signal interrupts Python code wherever it is (pypdf, decoding with millions of broken bytes); what runs in C without coming back (the HTML
parser) is bounded by size instead (html.check_bounds). Not covered: outside of a process's main thread, and on Windows, there is no timer, so no bound.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooSlow(BaseException):  # not an Exception: libraries catch those and go on
    """A document took longer than it may."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Do what is inside, at most so many seconds.

    Raises:
        TooSlow: they are over.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"{seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)
