"""How our commands end: one line for what the user can mend, a traceback for what is our fault."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parent


def run(work: Callable[[], None]) -> None:
    """Do the work; leave the process with a message where our own code refused.

    Args:
        work: the command, with its arguments bound.

    Raises:
        SystemExit: with "error: …" after a ValueError or OSError that this package
            raised; with status 130 after a request to stop.
    """
    try:
        work()
    except (ValueError, OSError) as error:
        # What our own code raises is an answer to whoever typed the command; what a library raises
        # is a fault of ours, and keeps its traceback.
        if not is_ours(error):
            raise
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(130)


def is_ours(error: BaseException) -> bool:
    """Whether this package raised an error itself, rather than a library that it called."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return PACKAGE in Path(raised_in).resolve().parents
