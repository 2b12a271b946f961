"""How our commands start, parse, end and report: one line for what the user can fix."""

import ast
import difflib
import dis
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from otseg_jax import config_file, interrupt

COMMANDS = {
    "otseg_jax": "lists the commands",
    "otseg_jax.main": "trains and evaluates",
    "otseg_jax.compare": "says how two evaluations differ, and how sure that is",
    "otseg_jax.prepare": "writes a data set as records, few large files",
    "otseg_jax.predict": "segments photos by words",
    "otseg_jax.convert": "reads and writes weights of other programs, and checks them",
    "otseg_jax.demo": "serves a page for photos and words",
    "otseg_jax.doctor": "says what is wrong with an installation, a data set or a model",
}


def check_command(module: str) -> None:
    """Leave the process with the list of commands where `python -m module` is none of them."""
    if module.partition(".")[0] != "otseg_jax":
        return  # another program imports this package
    if module.removesuffix(".__main__") not in COMMANDS:
        sys.exit(f"error: {module} is no command; there are {command_list()}")
    interrupt.end_at_once()


def command_list() -> str:
    """The commands in one line."""
    others = [(name, does) for name, does in COMMANDS.items() if name != "otseg_jax"]
    return ", ".join(f"python -m {name} ({does})" for name, does in others)


def quiet_libraries() -> None:
    """Log what this package has to say; Orbax alone would tell of every file."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        # what Orbax logs as an error it raises too, and we say it in one line
        handler.addFilter(lambda record: "orbax" not in record.pathname)
    # of Orbax's threads when a save fails; what the other logs as an error it raises too
    for name in ("asyncio", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("otseg_jax").setLevel(logging.INFO)


def say_nothing() -> None:
    """Of the processes of a run one speaks; the others tell their errors only."""
    logging.getLogger("otseg_jax").setLevel(logging.ERROR)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


class Parsed(NamedTuple):
    """A command line, taken apart."""

    rest: list[str]  # the arguments that are no flags
    config: ConfigDict | None  # of --config, with the fields that were set


def parse(
    argv: Sequence[str],
    values: flags.FlagValues,
    *,
    required: Sequence[str] = (),
    usage: str = "",
) -> Parsed:
    """Parse a command line, the program's name first.

    Args:
        values: the command's own flags, which take their values here.
        required: flags that must be given.
        usage: printed for --help, before the list of flags.

    Raises:
        SystemExit: after --help, or with one line for a flag, field or file that does not exist.
    """
    name, argv = _config_file(argv)
    fields, config = flags.FlagValues(), config_file.load(name) if name else None
    try:
        if config is not None:
            argv = _set_fields(config, argv, fields)
        rest = values(list(argv))[1:]
    except flags.UnrecognizedFlagError as error:
        sys.exit(f"error: there is no flag --{error.flagname}; {_meant(error.flagname, config)}")
    except flags.Error as error:
        sys.exit(f"error: {config_file.one_line(error)}; --help lists the flags")
    if values["help"].value:
        print(usage, values.get_help(), sep="\n")
        sys.exit(0)
    given = {flag: values[flag].value for flag in values} | {"config": config}
    if missing := [f"--{flag}" for flag in required if given[flag] is None]:
        stray = f", got {' '.join(rest)} without the name of a flag" if rest else ""
        sys.exit(f"error: wanted {' and '.join(missing)}{stray}; --help shows how")
    return Parsed(rest, config)


def _config_file(argv: Sequence[str]) -> tuple[str, list[str]]:
    """What the last --config says ("" if none), and the command line without it."""
    file, rest, arguments = "", [], iter(argv)
    for argument in arguments:
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
            file = next(arguments, "") if match[1] is None else match[1]
        else:
            rest.append(argument)
    return file, rest


def _set_fields(config: ConfigDict, argv: list[str], fields: flags.FlagValues) -> list[str]:
    """Set every field that has a flag; return the command line without those flags."""
    leaves = set(_leaves(config))
    known = leaves | {leaf.rpartition(".")[0] for leaf in leaves}
    for argument in argv:
        name = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if name and name[1] not in known:
            sys.exit(f"error: --config has no field {name[1]}; {_meant(name[1], config)}")
    for kind, parser in PARSERS.items():
        config_flags.register_flag_parser_for_type(kind, parser)
    config_flags.DEFINE_config_dict("config", config, flag_values=fields, sys_argv=argv)
    return fields(argv, known_only=True)


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        inside = isinstance(value, ConfigDict)
        yield from _leaves(value, f"{prefix}{name}.") if inside else [prefix + name]


def _meant(name: str, config: ConfigDict | None) -> str:
    """The fields that somebody may have meant: of that name, like it, or of those initials."""
    if config is None:
        return "--help lists the flags, and fields need --config=FILE.py"
    leaves, word = list(_leaves(config)), name.rpartition(".")[2].lower()
    by_name: dict[str, list[str]] = {}
    for leaf in leaves:
        by_name.setdefault(leaf.rpartition(".")[2], []).append(leaf)
    initials = [known for known in by_name if "".join(w[0] for w in known.split("_")) == word]
    near = difflib.get_close_matches(word.replace("-", "_"), by_name, n=3, cutoff=0.7)
    alike = [word] if word in by_name else near or initials
    meant = [f"--config.{leaf}" for known in alike for leaf in by_name[known]]
    if not meant:
        return "configs/common.py lists the fields"
    return f"did you mean {' or '.join(meant)}?"


class _Parser(flags.ArgumentParser):
    """Reads a field from a command line; a value of another type is refused in our words."""

    def __init__(self, read: Callable[[str], Any], wanted: str) -> None:
        self._read, self._wanted = read, wanted

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument  # the default
        try:
            return self._read(argument)
        except (ValueError, SyntaxError):
            raise ValueError(f"wanted {self._wanted}") from None

    def flag_type(self) -> str:
        return self._wanted


def _number(text: str) -> float | None:
    return None if text == "None" else float(text)


def _several(text: str) -> tuple[Any, ...]:
    # "a photo of a {}." is no Python, and means itself
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, dict | set):
        value = text  # "{}" alone is a template too
    return tuple(value) if isinstance(value, list | tuple) else (value,)


# One that is given twice counts once, the last; ml_collections would join tuples.
PARSERS = {
    int: _Parser(int, "a whole number"),
    float: _Parser(_number, "a number"),
    tuple: _Parser(_several, "several values: (1, 2)"),
}


_LESS_MEMORY = (
    "In training a larger --config.train.accumulate takes less, in evaluation a smaller "
    "--config.eval.batch_size, in both a smaller --config.data.crop; for photos a smaller model"
)


def run(work: Callable[[], None]) -> None:
    """Do the work; leave the process with a message where our own code refused.

    What our own code raises is an answer to whoever typed the command; what a library raises is a
    fault of ours, and keeps its traceback. After a request to stop, Ctrl-C or SIGTERM, the status
    is 130, and what was being written is whole or absent.
    """
    try:
        with interrupt.raised():
            work()
    except (ValueError, OSError) as error:
        if not is_ours(error):
            raise
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(f"error: out of memory: {str(error).splitlines()[0]}. {_LESS_MEMORY}")
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)


def is_ours(error: BaseException) -> bool:
    """Whether a `raise` of this package made an error, rather than something that it called.

    Where the traceback ends in our code is not enough: JAX takes its own frames out of it, and
    what is written in C has none.
    """
    last = error.__traceback__
    assert last is not None
    while last.tb_next:
        last = last.tb_next
    code = last.tb_frame.f_code
    raised = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return raised and config_file.PACKAGE in Path(code.co_filename).resolve().parents
