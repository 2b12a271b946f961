"""The how-to pages of the site followed to the letter: code and commands, in an empty folder.

    python -m experiments.how_tos                          # → experiments/how_tos.json
    python -m experiments.how_tos evaluate --folder=DIR    # one page, where others were followed

The pages are followed one after the other in one folder, so that a model that one trains is there
for the next. A `bash` block with a title wants what the package does not hold (photos, downloads,
somebody to stop it), and is passed over. A command that fails ends the script.
"""

import argparse
import doctest
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).with_suffix(".json")
PAGES = ("photo", "data_set", "train", "evaluate", "weights", "memory", "pod", "colab")
STOPPED = 124  # what `timeout` returns
BLOCK = re.compile(r"^( *)```(\w+)(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a block of the shell, each in one line."""
        joined = re.sub(r"\\\n *", "", self.text)
        return [line for line in joined.splitlines() if line and not line.startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for _, language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield Block(language, title.strip(), textwrap.dedent(text))


def run_code(block: Block, names: dict[str, Any], page: str) -> None:
    """Run Python code; where it is a session, its output must be what the page says.

    Raises:
        doctest.DocTestFailure: it is not.
    """
    if ">>>" not in block.text:
        exec(compile(block.text, page, "exec"), names)
        return
    session = doctest.DocTestParser().get_doctest(block.text, names, page, page, 0)
    runner = doctest.DebugRunner(verbose=False)
    runner.run(session, clear_globs=False)
    names |= session.globs


def follow(page: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Do what a page says in a folder; tell of each command."""
    names: dict[str, Any] = {"__name__": page}
    # the commands of this interpreter and of this repository
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for block in blocks(ROOT / f"docs/how_to/{page}.md"):
        if block.language == "python":
            run_code(block, names, page)
        for command in block.commands if block.language == "bash" and not block.title else ():
            started = time.perf_counter()
            done = subprocess.run(
                command, shell=True, cwd=folder, env=environment, text=True, capture_output=True
            )
            seconds = round(time.perf_counter() - started, 1)
            said = [line for line in done.stdout.splitlines() if line.strip()]
            print(f"{page}: {command}: {seconds} s, status {done.returncode}", flush=True)
            if done.returncode not in (0, STOPPED * command.startswith("timeout ")):
                sys.exit(f"error: {done.stdout[-2000:]}{done.stderr[-2000:]}")
            told = {"page": page, "command": command, "seconds": seconds}
            last = said[-1] if said else done.stderr.splitlines()[-1]
            yield told | {"last_line": last.replace(f"{folder}/", "")}


def main() -> None:
    """Follow the pages, then write what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help=f"of {', '.join(PAGES)}; none: all")
    parser.add_argument("--folder", help="where to; a temporary one if not given")
    given = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if given.pages else []
    done = [told for told in kept if told["page"] not in given.pages]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary).absolute()
        folder.mkdir(exist_ok=True)
        os.chdir(folder)  # code writes where it runs
        for page in given.pages or PAGES:
            done += follow(page, folder)
        os.chdir(ROOT)
    done.sort(key=lambda told: PAGES.index(told["page"]))
    RESULT.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
