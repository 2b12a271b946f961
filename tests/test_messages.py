"""What a user types → the line that comes back: one line of ours, never a library's traceback."""

import importlib
import pkgutil
import re

import messages
import pytest

from otseg_jax import cli

AREAS = [area.name for area in pkgutil.iter_modules(messages.__path__)]
ROWS = {
    f"{area}: {row.typed}": row
    for area in AREAS
    for row in importlib.import_module(f"messages.{area}").ROWS
}


def refusal(row, folder):
    """The message that something was refused with, "" where it was done."""
    try:
        row.act(folder)
    except SystemExit as end:
        return str(end.code) if end.code else ""  # a command that ends well has no message
    except Exception as error:
        if cli.is_ours(error):
            return str(error)
        raise
    return ""


@pytest.mark.parametrize("name", ROWS)
def test_the_line_that_comes_back(name, tmp_path, capsys, caplog):
    row = ROWS[name]
    caplog.set_level("INFO", logger="otseg_jax")
    heard = refusal(row, tmp_path)
    assert bool(heard) == row.refused, heard or "it was taken without a word"
    assert "\n" not in heard, f"more than one line: {heard}"
    if not row.refused:
        printed = capsys.readouterr()
        heard = "\n".join([printed.out, printed.err, *caplog.messages])
    assert re.search(row.line, heard), heard


def test_the_table_is_long_and_names_no_row_twice():
    assert len(ROWS) == sum(len(importlib.import_module(f"messages.{area}").ROWS) for area in AREAS)
