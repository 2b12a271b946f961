"""The site's pages: their code runs, their commands are taken, and their figures were measured."""

import copy
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from test_structure import MODULES

from experiments import how_tos
from otseg_jax import build, cli

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments/README.md"]


def parse(command: str) -> None:
    """Let the command that a line names parse it, as it would be typed."""
    words = shlex.split(re.split(r" (?:&&|\|\||\||>) ", command)[-1], comments=True)
    at = words.index("-m") if "-m" in words else 0
    if not at or not Path(words[at - 1]).name.startswith("python"):
        return
    module, *argv = words[at + 1 :]
    if not module.startswith("otseg_jax"):
        assert importlib.util.find_spec(module), command
        return
    name = module.removeprefix("otseg_jax.")
    program = importlib.import_module(f"{module}.__main__" if name not in MODULES else module)
    values = copy.deepcopy(program.FLAGS)
    values.unparse_flags()  # another test may have set some
    parsed = cli.parse([module, *argv], values)
    if parsed.config is not None:
        build.settings_of(parsed.config)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_its_commands_are_taken(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for block in how_tos.blocks(page):
        if block.language == "python":
            how_tos.run_code(block, names, page.name)
        for command in block.commands if block.language == "bash" else ():
            parse(command)


@pytest.mark.parametrize("text", TEXTS[len(PAGES) :], ids=lambda text: text.name)
def test_commands_of_the_other_texts_are_taken(text):
    commands = [
        c for block in how_tos.blocks(text) if block.language == "bash" for c in block.commands
    ]
    commands += re.findall(r"`(python -m [^`]*)`", text.read_text())
    assert commands
    for command in commands:
        parse(command)


def test_a_wrong_flag_is_noticed():
    with pytest.raises(SystemExit, match="there is no flag --wrds"):
        parse("python -m otseg_jax.predict photo.png --wrds=cat")


def test_the_commands_of_the_how_tos_were_run():
    done = json.loads(how_tos.RESULT.read_text())
    assert {page.stem for page in PAGES if page.parent.name == "how_to"} == {*how_tos.PAGES}
    wanted = [
        (page, command)
        for page in how_tos.PAGES
        for block in how_tos.blocks(ROOT / f"docs/how_to/{page}.md")
        if block.language == "bash" and not block.title
        for command in block.commands
    ]
    assert [(one["page"], one["command"]) for one in done] == wanted


def test_the_figures_of_the_concept_pages_are_those_that_were_drawn():
    drawn = json.loads((ROOT / "experiments/concepts.json").read_text())
    said = {page.stem: " ".join(page.read_text().split()) for page in PAGES}
    *first, last = (f"{share:.0f}" for share in drawn["transport"]["percent_by_softmax"])
    assert f"they take {', '.join(first)} and {last} % of the picture" in said["transport"]
    offset = drawn["offset"]
    assert (
        f"the best is {offset['best']['offset']:g} with an hIoU of {offset['best']['hiou']:.1f}; "
        f"without an offset it is {offset['no offset']['hiou']:.1f}, at 0.1 it is "
        f"{offset['published']['hiou']:.1f}"
    ) in said["offset"]
