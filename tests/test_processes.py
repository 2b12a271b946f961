"""Several processes of one run: what one of them refuses ends all of them, told once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_data

from otseg_jax.checkpoints import lock

TESTS = Path(__file__).parent
# Each refusal is caught, so that one pair of processes, which takes seconds to start, shows all.
CODE = """
import json, sys, jax, small
import numpy as np
from otseg_jax import build, cli, processes
from otseg_jax.checkpoints import lock

processes.start()
used, empty, own = sys.argv[1:]
fields = {"data.dataset": "folder", "regime": "supervised"}
silent = small.settings(**fields, **{"data.root": empty})
elsewhere = small.settings(**fields, **{"data.root": own if jax.process_index() else empty})


def labels():
    split = build.open_split(silent, "train")
    build.check_labels(silent, train=split, val=split)


def ended(work):
    try:
        cli.run(work)
    except SystemExit as end:
        return end.code
    return 0


held = ended(lambda: lock.hold(used).__enter__())
learnt = ended(labels)
# all wait within another that all wait in
missing = ended(lambda: processes.together(build.open_split)(elsewhere, "train"))
mine = np.full((2, 3 * jax.process_index() + 1), 7 + jax.process_index(), np.int32)
counts = np.array([2**40 + jax.process_index(), 5])
summed = [processes.total(counts).tolist(), processes.joined(mine).tolist()]
last = ended(lambda: lock.hold(own + "/run").__enter__())
print(json.dumps([held, learnt, missing, last, summed]))
"""


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def test_what_one_process_refuses_ends_all_of_them(tmp_path):
    own_data.write(tmp_path / "empty", [np.full((3, 4), 255, np.uint8)] * 2)
    port = free_port()
    # as SLURM tells the processes that it starts
    environment = os.environ | {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost"}
    environment |= {"SLURM_NTASKS": "2", "JAX_COORDINATOR_PORT": str(port)}
    environment |= {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    used = tmp_path / "used"
    with lock.hold(used):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", CODE, used, tmp_path / "empty", tmp_path / "nowhere"],
                env=environment | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        told = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in told)
    # by turns the first or the second process has something to say; both hold a free workdir
    assert f"used is in use by process {os.getpid()}" in first[0]
    assert "there is nothing to learn" in first[1]
    assert "nowhere is not a folder" in second[2]
    assert [first[2:4], second[:2], second[3]] == [[1, 0], [1, 1], 0]
    # counts beyond 32 bits, and columns of which each has another number
    assert first[4] == second[4] == [[2**41 + 1, 10], [[7, 8, 8, 8, 8]] * 2]


TRAIN = """
import sys, small
from otseg_jax import processes
from otseg_jax.training import loop

workdir, port, count, index = sys.argv[1], *map(int, sys.argv[2:])
if count > 1:
    processes.start(f"localhost:{port}", count, index)
loop.train(small.settings(**{"train.steps": 6, "train.eval_every": 3}), workdir)
"""


def trained(workdir, count):
    """What a run of several processes logs, and its `results.json`."""
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    # two devices in all: the sum of two parts of a gradient has one order
    devices = f"--xla_force_host_platform_device_count={2 // count}"
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, workdir, port, str(count), str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * count, told
    lines = [*map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]
    return lines, (workdir / "results.json").read_text()


def test_two_processes_train_as_one_does(tmp_path):
    """With dropout: an image has the same place in the batch. What the tables hold is equal."""
    (alone, table), (shared, same) = (trained(tmp_path / str(n), n) for n in (1, 2))
    assert len(alone) == len(shared) == 8
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"images_per_second"}:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, err_msg=name)
    assert same == table
