"""What a user types → the line that comes back; one list of rows for each part of the program."""

import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock


class Row(NamedTuple):
    """One thing that people type."""

    typed: str  # as a person would say it; the name of the test
    act: Callable[[Path], object]  # does it, in an empty folder
    line: str  # what the line must match, by `re.search`
    refused: bool = True  # False: the work is done all the same, and the line is logged or printed


def typed(line: str, expected: str, *, refused: bool = True) -> Row:
    """A row of a command line, "otseg_jax.main --config=… --workdir={folder}", run in this process.

    `{folder}` stands for the empty folder of the test.
    """

    def act(folder: Path) -> None:
        module, *argv = shlex.split(line.replace("{folder}", str(folder)))
        # as a fresh process has it: flags keep their values, and `runpy` warns of a second copy
        kept = {k: v for k, v in sys.modules.items() if k not in (module, f"{module}.__main__")}
        with (
            mock.patch("sys.argv", [module, *argv]),
            mock.patch.dict("sys.modules", kept, clear=True),
        ):
            runpy.run_module(module, run_name="__main__", alter_sys=True)

    return Row(line, act, expected, refused)
