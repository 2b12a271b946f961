"""How our commands parse, end and report: one line for what the user can fix, no traceback."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

PACKAGE = Path(__file__).parent


def quiet_libraries() -> None:
    """Log what this package has to say; Orbax alone would tell of every file."""
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.WARNING)
    # what Orbax logs as an error it raises too, and we say it in one line
    absl_logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of its threads, when a save fails
    logging.getLogger("otseg_jax").setLevel(logging.INFO)


def say_nothing() -> None:
    """Of the processes of a run one speaks; the others tell their errors only."""
    logging.getLogger("otseg_jax").setLevel(logging.ERROR)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def parse(
    argv: Sequence[str],
    values: flags.FlagValues,
    *,
    config: flags.FlagHolder[ConfigDict],
    required: Sequence[str] = (),
    usage: str = "",
) -> list[str]:
    """Parse a command line, the program's name first; return the arguments that are no flags.

    Args:
        config: the configuration flag; every field of it is a flag.
        required: flags that must be given.
        usage: printed for --help, before the list of flags.

    Raises:
        SystemExit: after --help, or with one line for a flag, field or file that does not exist.
    """
    try:
        rest = values(list(argv))[1:]
        _ = config.value is None or config.value.seed  # an unreadable file raises only when used
    except flags.Error as error:
        sys.exit(f"error: {error}; --help lists the flags")
    except AttributeError as error:
        reason = str(error).strip("'\"").replace("\\n", ". ").replace("\\'", "'")
        sys.exit(f"error: --config has no such field: {reason}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: run from the folder that holds `configs`")
    except OSError as error:
        # the lines before tell of every way that the name was tried
        sys.exit(f"error: --config cannot be read: {str(error).splitlines()[-1].strip()}")
    if values["help"].value:
        print(usage, values.get_help(), sep="\n")
        sys.exit(0)
    missing = [f"--{name}" for name in required if values[name].value is None]
    if missing:
        sys.exit(f"error: wanted {' and '.join(missing)}; --help shows how")
    return rest


def run(work: Callable[[], None]) -> None:
    """Do the work; leave the process with a message where our own code refused.

    What our own code raises is an answer to whoever typed the command; what a library raises is a
    fault of ours, and keeps its traceback. After a request to stop the status is 130.
    """
    try:
        work()
    except (ValueError, OSError) as error:
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
