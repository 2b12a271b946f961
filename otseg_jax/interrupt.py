"""Stopping when asked, by Ctrl-C or SIGTERM: at once, by an exception, or when a loop can."""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped: the same command begins again"

Handler = Callable[[int, FrameType | None], None]


def end_at_once() -> None:
    """End the process in one line when asked: while it imports, nothing is at stake."""
    _install(_end, *SIGNALS)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """While it is open, a request to stop raises KeyboardInterrupt: what is half-written goes."""
    before = _install(_raise, *SIGNALS)
    try:
        yield
    finally:
        _restore(before)


class StopOnSignal:
    """While it is open, the first signal sets `asked`, and the second one ends the process."""

    asked = False

    def __init__(self, *numbers: int) -> None:
        """The signals that it listens to."""
        self._numbers = numbers

    def __enter__(self) -> "StopOnSignal":
        self._before = _install(self._ask, *self._numbers)
        return self

    def __exit__(self, *error: object) -> None:
        _restore(self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # os.write, as the signal may have come in the middle of a print
        if self.asked:
            os.write(2, b"\nstopped at once: what was not saved is lost\n")
            os._exit(130)
        self.asked = True
        os.write(2, b"\nStopping after this step or photo; once more to stop at once.\n")


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def _raise(number: int, frame: FrameType | None) -> None:
    # what is raised in a callback of the garbage collector, as JAX has one, is lost
    if frame and frame.f_code in [getattr(call, "__code__", None) for call in gc.callbacks]:
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
    else:
        raise KeyboardInterrupt(STOPPED)


def _install(handler: Handler, *numbers: int) -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}  # signals reach no other
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
