"""The house rules that a machine can check: who imports whom, how long, documented, configured."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "otseg_jax"

# A file imports files of lower levels, and of its own level only those listed before it.
LADDER = [
    ["newton", "transport", "sinkhorn", "losses", "metrics", "windows", "sharding", "manifest"],
    [
        *("data.classes", "data.decode", "data.folders", "data.shapes", "data.captions"),
        *(
            "data.transforms",
            "data.pipeline",
            "models.transformer",
            "models.clip",
            "models.decoder",
            "models.otseg",
        ),
    ],
    [
        *("weights.pickles", "weights.torch_zip", "weights.torch_write", "weights.files"),
        *("weights.table", "weights.clip", "weights.hub", "weights.openai"),
        *("weights.hugging_face", "weights.mmseg", "weights.detect", "text", "model_dir", "towers"),
        *("optim", "regimes", "checkpoint"),
    ],
    [
        *("figures", "agreement", "experiment", "inference", "evaluate", "train_step", "train"),
        *("predict", "recipe", "original", "workdir", "importing", "exporting", "command"),
    ],
    ["torch_reference", "transformers_reference", "dossier", "convert", "main"],
]
LEVEL = {name: level for level, names in enumerate(LADDER) for name in names}
ORDER = [name for names in LADDER for name in names]


def modules() -> dict[str, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    names = (
        file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for file in files
    )
    return {name: ast.parse(file.read_text()) for name, file in zip(names, files, strict=True)}


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """Project files that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("otseg_jax"):
            parent = node.module.removeprefix("otseg_jax").removeprefix(".")
            for alias in node.names:
                name = f"{parent}.{alias.name}".removeprefix(".")
                found.add(name if name in MODULES else parent)
        if isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("otseg_jax.") for a in node.names if "otseg_jax" in a.name
            }
    return found


def test_every_file_has_a_place_on_the_ladder():
    assert {name for name in MODULES if not name.endswith("__init__")} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_down_the_ladder(name):
    for other in imported(MODULES[name]):
        assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"
        # the solver is in three files, of which `sinkhorn` is the door
        solver = {name, other} <= {"newton", "transport", "sinkhorn"}
        assert LEVEL[name] > 0 or solver, f"{name} is level 0 and imports {other}"


@pytest.mark.parametrize(
    "name", [n for n in ORDER if n.startswith("data.") and n != "data.pipeline"]
)
def test_data_needs_no_jax(name):
    tree = MODULES[name]
    roots = {
        (alias.name if isinstance(node, ast.Import) else node.module).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not roots & {"jax", "flax", "optax"}


# torch, an optional extra of --verify; and `load`, so that `mps` alone stays quick to import
LATE = {"dossier._by_torch", "__init__.__getattr__"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_imported_inside_a_function(name):
    for function in ast.walk(MODULES[name]):
        if isinstance(function, ast.FunctionDef) and f"{name}.{function.name}" not in LATE:
            inner = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{name}.{function.name}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_functions_and_docstrings(name):
    tree = MODULES[name]
    assert ast.get_docstring(tree), f"{name} does not say what it is for"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"
    lengths = [
        (node.name, node.body[-1].end_lineno - node.body[0].end_lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert all(length <= 70 for _, length in lengths), max(lengths, key=lambda pair: pair[1])


def test_torch_and_tensorflow_stay_outside():
    """Only what --verify compares with may import torch, and only `dossier` imports that."""
    references = {"torch_reference", "transformers_reference"}
    for name, tree in MODULES.items():
        text = ast.unparse(tree)
        found = re.search(r"^\s*(import|from) (torch|tensorflow)\b", text, re.MULTILINE)
        assert bool(found) == (name in references), name
        assert not imported(tree) & references or name == "dossier"


def test_configs_import_ml_collections_alone():
    for file in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["ml_collections"], file
            if isinstance(node, ast.ImportFrom):
                assert node.module == "configs", file
