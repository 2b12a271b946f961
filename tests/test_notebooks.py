"""The notebooks: run from the first cell to the last, and committed with what they show."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "experiments").glob("*.ipynb"))}
TRAINING = "colab_train"


def client(name, folder, *, drive=""):
    """What runs a notebook in a folder, with Drive elsewhere."""
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    folder.mkdir(exist_ok=True)
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
        if drive:
            cell.source = cell.source.replace("/content/drive", str(drive))
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where)


def environment(home):
    small = {"OTSEG_SMALL": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    # caches of texts, and what IPython keeps; matplotlib's fonts take long to find
    return os.environ | small | {"HOME": str(home), "MPLCONFIGDIR": mpl.get_cachedir()}


def shown(notebook):
    """Of each cell of code the kinds of what it shows, lines of text next to each other as one."""
    kinds = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            found = [output.get("name") or [*sorted(output.data)] for output in cell.outputs]
            kinds.append([kind for i, kind in enumerate(found) if kind not in found[i - 1 : i]])
    return kinds


def text(cell):
    outputs = [output.get("text") or output.data.get("text/plain", "") for output in cell.outputs]
    return "\n".join(outputs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_committed_as_it_ran(name):
    assert NOTEBOOKS[name].stat().st_size < 300_000
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    kinds = {output.get("name", output.output_type) for cell in code for output in cell.outputs}
    assert not kinds & {"error", "stderr"}
    assert str(Path.home()) not in NOTEBOOKS[name].read_text()


def test_all_install_in_the_same_way():
    cells = [nbformat.read(path, as_version=4).cells[1].source for path in NOTEBOOKS.values()]
    assert len(cells) == 3
    assert len(set(cells)) == 1


@pytest.mark.parametrize("name", sorted(NOTEBOOKS.keys() - {TRAINING}))
def test_it_runs_and_shows_what_is_committed(name, tmp_path):
    runner = client(name, tmp_path)
    ran = runner.execute(env=environment(tmp_path))
    assert shown(ran) == shown(nbformat.read(NOTEBOOKS[name], as_version=4))


def test_training_goes_on_after_a_disconnect(tmp_path):
    """The machine is lost after 20 steps or some more; another one has Drive alone."""
    drive, kept = tmp_path / "drive", tmp_path / "drive/MyDrive/otseg_jax/lesson"
    (drive / "MyDrive").mkdir(parents=True)
    lost = client(TRAINING, tmp_path / "lost", drive=drive)
    lost.nb.cells = [cell for cell in lost.nb.cells if 'run("doctor")' not in cell.source]

    def disconnect():
        while not (kept / "checkpoints/20").exists():
            time.sleep(0.1)
        # the kernel leads a group, which the commands that it starts belong to
        os.killpg(lost.km.provisioner.pid, signal.SIGKILL)

    threading.Thread(target=disconnect, daemon=True).start()
    with pytest.raises(DeadKernelError):
        lost.execute(env=environment(tmp_path))
    assert not (kept / "results.json").exists()

    ran = client(TRAINING, tmp_path / "next", drive=drive).execute(env=environment(tmp_path))
    expected = shown(nbformat.read(NOTEBOOKS[TRAINING], as_version=4))
    expected[4] = ["stdout"]  # the CLIP is there already
    assert shown(ran) == expected
    (train,) = [cell for cell in ran.cells if "metrics.jsonl" in cell.source]
    start = int(text(train).partition("Going on from step ")[2].split()[0])
    assert 20 <= start < 60
    lines = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert set(steps) == {*range(5, 61, 5)}
    assert all(steps.count(step) == 1 for step in range(5, start + 1, 5))
    assert json.loads((kept / "results.json").read_text())["otseg_plus"]["miou_unseen"] > 5


def test_the_expected_hours_are_of_the_counted_products():
    counted = json.loads((ROOT / "experiments/cost.json").read_text())["models"]["OTSeg"]
    forward = counted["multiply_adds"]["everything"] / 1e9
    assert f"FORWARD = {forward:.2f}" in NOTEBOOKS[TRAINING].read_text()
