"""The house rules that a machine can check: who imports whom, how long, documented, said once."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "otseg_jax"

# A file imports from lower steps, and from its own wing without a circle.
LADDER = [
    {"interrupt", "config_file"},
    {"ot", "cli", "paths", "processes", "sharding", "devices"},
    {"buckets"},
    {"data", "fields", "compile_cache"},
    {"models"},
    {"settings"},
    {"text"},
    {"weights"},
    {"checkpoints"},
    {"build"},
    {"evaluation", "convert", "prepare"},
    {"training", "predict"},
    {"main", "compare", "demo", "doctor", "__main__"},
]
STEP = {room: step for step, rooms in enumerate(LADDER) for room in rooms}


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


MODULES = {name_of(file): ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.Module) -> set[str]:
    """Modules of the package that a module imports, wherever the statement stands."""
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
    return {f"{name}.__init__" if f"{name}.__init__" in MODULES else name for name in found}


IMPORTS = {name: imported(tree) for name, tree in MODULES.items()}
NAMED = [name for name in MODULES if name != "__init__"]


def room(name: str) -> str:
    return name.split(".")[0]


def test_every_room_has_a_step_on_the_ladder():
    assert {room(name) for name in NAMED} == set(STEP)


@pytest.mark.parametrize("name", NAMED)
def test_imports_go_down_the_ladder(name):
    for other in IMPORTS[name]:
        assert room(other) == room(name) or STEP[room(other)] < STEP[room(name)], (name, other)


def test_no_circle():
    waiting = {name: others - {name} for name, others in IMPORTS.items()}
    while free := [name for name, others in waiting.items() if not others & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, f"these import one another: {sorted(waiting)}"


def libraries(tree: ast.Module) -> set[str]:
    return {
        (alias.name if isinstance(node, ast.Import) else node.module).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize(
    ("rooms", "outside"),
    [
        (r"ot\.", {"flax", "optax", "numpy"}),
        (r"data\.(?!pipeline)", {"jax", "flax", "optax"}),
        (r"training\.losses|evaluation\.(metrics|windows)", {"flax"}),
        (r"(?!convert\.references)", {"torch", "tensorflow"}),
        (r"(?!demo\.(actions|guard|page))", {"gradio", "gradio_client", "starlette"}),
        (r"(?!training\.(tensorboard|wandb)_writer)", {"tensorboardX", "tensorboard", "wandb"}),
        # a configuration goes no further than where it is parsed and turned into plain settings
        (r"(?!build|cli|config_file|main|convert\.__main__)", {"ml_collections"}),
    ],
)
def test_libraries_that_stay_outside(rooms, outside):
    names = [name for name in NAMED if re.match(rooms, name)]
    assert names
    for name in names:
        assert not libraries(MODULES[name]) & outside, name


# torch and supervision, optional; `load`, so that `mps` alone stays quick to import
LATE = {
    "convert.verify._by_torch",
    "demo.__main__._serve",
    "predict.segmentation.to_supervision",
    "__init__.__getattr__",
    # Weights & Biases and tensorboardX, optional extras
    "training.metric_writers.check",
    "training.metric_writers._tensorboard",
    "training.metric_writers._wandb",
    # the doctor has to say what is wrong where these cannot be imported
    "doctor.parts.devices",
    "doctor.parts.dataset",
    "doctor.parts.model",
    "models.kernels.pallas",  # a third of a second that only a TPU has a use for
    # TensorFlow Datasets: a second, for those who read records
    "data.records.builder",
    "data.records.data_source",
}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_is_imported_inside_a_function(name):
    for function in ast.walk(MODULES[name]):
        if isinstance(function, ast.FunctionDef) and f"{name}.{function.name}" not in LATE:
            inner = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{name}.{function.name}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_files_and_functions_are_short_and_documented(name):
    tree = MODULES[name]
    path = PACKAGE / (name.replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) <= 300
    assert ast.get_docstring(tree), f"{name} does not say what it is for"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - code_of(node) <= 60, f"{name}.{node.name} is too long"


def code_of(function: ast.FunctionDef) -> int:
    """The line before its first statement: neither signature nor docstring is length."""
    first, *rest = function.body
    documented = ast.get_docstring(function) is not None
    return first.end_lineno if documented and rest else first.lineno - 1


def test_configs_import_ml_collections_alone():
    for file in (ROOT / "configs").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["ml_collections"], file
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("configs", "configs.training_free"), file


def test_tests_use_public_doors():
    """No test patches or calls a private name of the package."""
    for file in Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(file.read_text())
        ours = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("otseg_jax")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                owner = node.value
                while isinstance(owner, ast.Attribute):
                    owner = owner.value
                # named tuples have public methods that begin with an underscore
                public = node.attr in ("_replace", "_asdict", "_fields")
                inside = isinstance(owner, ast.Name) and owner.id in ours
                assert public or not inside, f"{file.name}:{node.lineno} uses {node.attr}"
