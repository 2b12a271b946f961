"""Stopping when asked: Ctrl-C and SIGTERM become a wish that a loop fulfils when it can."""

import os
import signal
import threading
from typing import Any


class StopOnSignal:
    """While it is open, the first signal sets `asked`, and the second one ends the process."""

    asked = False

    def __enter__(self) -> "StopOnSignal":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _ask(self, number: int, frame: Any) -> None:
        # os.write, as the signal may have come in the middle of a print
        if self.asked:
            os.write(2, b"\nstopped at once: what was not saved is lost\n")
            os._exit(130)
        self.asked = True
        os.write(2, b"\nStopping after this step or photo; once more to stop at once.\n")
