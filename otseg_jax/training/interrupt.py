"""Stopping when asked: Ctrl-C and SIGTERM become a wish that a loop fulfils when it can."""

import signal
import threading
from typing import Any

from tqdm import tqdm


class StopOnSignal:
    """While it is open, the first signal sets `asked`, and the second one acts as ever."""

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
        self.asked = True
        self.__exit__()
        tqdm.write("Stopping after this step; once more to stop at once, without saving.")
