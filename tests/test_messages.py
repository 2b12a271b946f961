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


@pytest.mark.parametrize("name", ROWS)
def test_the_line_that_comes_back(name, tmp_path, capsys, caplog):
    row, heard = ROWS[name], ""
    caplog.set_level("INFO", logger="otseg_jax")
    try:
        row.act(tmp_path)
    except (Exception, SystemExit) as error:
        assert isinstance(error, SystemExit) or cli.is_ours(error), repr(error)
        # a command that ends well has no message
        heard = "" if isinstance(error, SystemExit) and not error.code else str(error)
        assert bool(heard) == row.refused, heard
        assert "\n" not in heard, f"more than one line: {heard}"
    else:
        assert not row.refused, "it was taken without a word"
    if not row.refused:
        printed = capsys.readouterr()
        heard = "\n".join([printed.out, printed.err, *caplog.messages])
    assert re.search(row.line, heard), heard


def test_the_table_is_long_and_names_no_row_twice():
    assert len(ROWS) == sum(len(importlib.import_module(f"messages.{area}").ROWS) for area in AREAS)
