"""What the site takes from outside of `docs`: README, experiments, notebooks, and the code itself.

MkDocs calls the functions named `on_…`. Notebooks are shown with the output that they hold.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from otseg_jax.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE, EXPERIMENTS = ROOT / "otseg_jax", ROOT / "experiments"
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"experiments/{name}.md" for name in ("README", "table1", "ablations", "scaling")),
)
NOTEBOOKS = sorted(EXPERIMENTS.glob("*.ipynb"))
WINGS = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(
    file.stem for file in PACKAGE.glob("[!_]*.py") if f"otseg_jax.{file.stem}" not in COMMANDS
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append to the menu what is found rather than listed."""
    sections = {name: pages for entry in config.nav or () for name, pages in entry.items()}
    sections["Experiments"] += [f"experiments/{path.stem}.md" for path in NOTEBOOKS]
    sections["Reference"] += [{name: f"reference/{name}.md"} for name in WINGS]
    sections["Reference"] += ["reference/modules.md"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages and pictures that lie elsewhere, or are made here."""
    pictures = [path.relative_to(ROOT).as_posix() for path in EXPERIMENTS.rglob("*.png")]
    for name in (*PAGES, *pictures):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    made: dict[str, str | bytes] = {
        f"reference/{wing}.md": f"::: otseg_jax.{wing}\n    options: {{heading_level: 1}}\n"
        for wing in WINGS
    }
    made["reference/modules.md"] = "# Other modules\n\n" + "\n\n".join(
        f"::: otseg_jax.{module}" for module in MODULES
    )
    for path in NOTEBOOKS:
        made |= _notebook(path)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put in what a page names as {{ part }}; its links are those of the repository."""
    markdown = re.sub(r"\{\{ ([a-z]+) \}\}", lambda found: PARTS[found[1]](), markdown)
    markdown = re.sub(r"\]\(\.\./((?:\.\./)*experiments/)", r"](\1", markdown)
    return re.sub(r"(\]\([\w/.]+)\.ipynb\)", r"\1.md)", markdown)


def _first_screen() -> str:
    """The README up to its first heading, without badges, which are pictures of other sites."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    return re.sub(r"^\[!\[.*\n", "", first, flags=re.MULTILINE)


def _commands() -> str:
    parts = []
    for name in COMMANDS:
        place = ROOT / name.replace(".", "/")
        file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
        parts.append(f"## {name}\n\n{ast.get_docstring(ast.parse(file.read_text()))}\n")
    return "\n".join(parts)


def _configurations() -> str:
    files = sorted(
        (ROOT / "configs").rglob("*.py"),
        key=lambda file: (file.parent, file.stem != "common", file),
    )
    return "\n".join(
        f"## {file.relative_to(ROOT)}\n\n```python\n{file.read_text()}```\n" for file in files
    )


PARTS = {"readme": _first_screen, "commands": _commands, "configurations": _configurations}


def _notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page, and its pictures."""
    names = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    text, found = MarkdownExporter().from_filename(str(path), resources=names)
    return {f"experiments/{n}": c for n, c in {f"{path.stem}.md": text, **found["outputs"]}.items()}
