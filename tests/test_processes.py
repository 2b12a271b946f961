"""Several processes of one run: what one of them refuses ends all of them, told once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import own_data
import pytest
from bucket_server import BUCKET

from otseg_jax import buckets, paths
from otseg_jax.checkpoints import lock
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.training import watch

TESTS = Path(__file__).parent
# Each refusal is caught, so that one pair of processes, which takes seconds to start, shows all.
CODE = """
import json, sys, jax, small
import numpy as np
from otseg_jax import build, cli, processes
from otseg_jax.checkpoints import lock
from otseg_jax.checkpoints.run import Checkpoints

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
of_second = {"zero": np.float32(-0.0), "more": [1, None, "é"]} if jax.process_index() else None
got = processes.tell(of_second, by=1)
summed += [float(np.copysign(1, got["zero"])), got["more"]]
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
    # counts beyond 32 bits, columns of which each has another number, what the second alone has
    assert first[4] == second[4] == [[2**41 + 1, 10], [[7, 8, 8, 8, 8]] * 2, -1, [1, None, "é"]]


RUN = """
import faulthandler, json, signal, small, sys
from otseg_jax import buckets, cli, processes
from otseg_jax.evaluation import report
from otseg_jax.training import loop

workdir, mode, fields, port, count, index = *sys.argv[1:4], *map(int, sys.argv[4:])
buckets.WAITS = (0.01,) * 4
faulthandler.register(signal.SIGUSR1)


def work():
    if count > 1:
        processes.start(f"localhost:{port}", count, index)
    {"train": loop.train, "eval": report.evaluate}[mode](
        small.settings(**json.loads(fields)), workdir
    )


with processes.ending_together():
    cli.run(work)
"""
NOWHERE = "/dev/null/nowhere"  # is not there, and cannot be made
ENDED = r"error: a process of this run ended too early .*: the same command, .* {}\n\Z"
DEVICES = 4  # of all processes: the sum of the parts of a gradient has one order
STEPS = 12
FIELDS = {"train.steps": STEPS, "train.eval_every": STEPS // 2, "train.checkpoint_every": 2}


def start(workdir, count, mode="train", home=NOWHERE, **fields):
    """The processes of a run on the loopback, each with its share of the devices.

    The first alone has the folder of a workdir, or the `home` of the copy of one in a bucket.
    """
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={DEVICES // count}"
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    arguments = [mode, json.dumps(FIELDS | fields), str(free_port()), str(count)]
    shared = paths.in_bucket(workdir)
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", RUN),
                str(workdir) if shared or index == 0 else NOWHERE,
                *(*arguments, str(index)),
            ],
            env=environment | {buckets.HOME: NOWHERE if index else str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def end(started):
    """What the processes said, on stderr; what does not end says where it is, and is killed."""
    try:
        return [process.communicate(timeout=300)[1] for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        for process in started:
            process.kill()
        pytest.fail("\n".join(process.communicate()[1] for process in started))


def trained(workdir):
    """What a run logged of every step, and its `results.json`."""
    lines = [*map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]
    lines = [{n: x for n, x in line.items() if n not in watch.FIGURES} for line in lines]
    # of a step that was done twice, the last
    found = {(line["step"], "loss" in line): line for line in lines}
    return found, (workdir / "results.json").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with all devices trains, with dropout."""
    workdir = tmp_path_factory.mktemp("alone")
    started = start(workdir, 1)
    said = end(started)
    assert started[0].returncode == 0, said
    return trained(workdir)


def assert_same(workdir, alone):
    """Losses agree, and what the tables hold is equal."""
    (expected, table), (found, same) = alone, trained(workdir)
    assert len(expected) == STEPS + 2
    assert found.keys() == expected.keys()
    for key, line in expected.items():
        assert found[key].keys() == line.keys()
        # a sum of four parts has another order over gloo than within a process, by which a pixel
        # may change its class; after the last step none does
        near = {"rtol": 1e-5} if "loss" in line or key[0] == STEPS else {"atol": 0.05}
        for name in line:
            np.testing.assert_allclose(found[key][name], line[name], err_msg=name, **near)
    assert same == table


def test_four_processes_train_in_a_bucket_as_one_does_in_a_folder(alone, server, tmp_path):
    """After two whose bucket failed; two evaluate it. With dropout: an image has the same place."""
    run, homes = f"{BUCKET}/run", [tmp_path / str(number) for number in range(3)]
    server.refuse = lambda asked: asked.startswith("PUT") and "/4/files.json" in asked
    two = start(run, 2, home=homes[0])
    first, second = end(two)
    assert [process.returncode for process in two] == [1, 1], (first, second)
    # the first says why, and the other nothing
    assert re.search(r"^error: s3://bucket/run cannot be reached.*\n\Z", first, re.MULTILINE), first
    assert "error" not in second
    server.refuse = lambda asked: False
    assert latest(run) == 2

    four = start(run, 4, home=homes[1])
    said = end(four)
    assert [process.returncode for process in four] == [0] * 4, said
    assert_same(buckets.fetched(run), alone)

    two = start(run, 2, "eval", homes[2], **{"eval.save_predictions": True})
    said = end(two)
    assert [process.returncode for process in two] == [0, 0], said
    evaluated = buckets.fetched(run)
    assert_same(evaluated, alone)
    assert len([*evaluated.glob("predictions/otseg_plus/*.png")]) == 6  # each labelled three


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    """Four, of which one is killed; two, of which one is stopped; one to the end."""
    four = start(tmp_path, 4)
    wait_for((tmp_path / "checkpoints" / "4").is_dir, four)
    four[2].kill()
    killed = time.monotonic()
    said = end(four)
    assert time.monotonic() - killed < 60
    assert not (tmp_path / "results.json").exists(), "the run was over: the test shows nothing"
    for process, told in zip(four, said, strict=True):
        assert process.returncode != 0
        assert "Traceback" not in told
        # the last line, of the killed one too, whatever libraries said before
        found = re.search(ENDED.format("goes on from step (\\d+)(, or .*)?"), told)
        assert found, told
        assert int(found[1]) <= latest(tmp_path) or found[2]

    for told in stopped(start(tmp_path, 2), tmp_path):
        assert f"stopped after step {latest(tmp_path)}, which is saved: the same command" in told

    one = start(tmp_path, 1)
    said = end(one)
    assert one[0].returncode == 0, said
    assert_same(tmp_path, alone)

    for told in stopped(start(tmp_path, 2, "eval"), tmp_path):
        assert re.search(r"stopped before photo \d, without results: the same command", told)


def stopped(two, workdir):
    """What two processes said that were stopped by SIGTERM to one of them."""
    owner = workdir / lock.OWNER
    # they know one another from here, and compile for seconds
    wait_for(lambda: owner.exists() and str(two[0].pid) in owner.read_text(), two)
    two[1].send_signal(signal.SIGTERM)
    said = end(two)
    assert [process.returncode for process in two] == [130, 130], said
    return said


def test_an_error_of_one_process_ends_the_others(tmp_path):
    """A photo that one of them cannot read, in the third step."""
    masks = [np.tile(own_data.MASK, (10, 8))] * 130
    own_data.write(tmp_path / "mine", masks)
    own_data.write(tmp_path / "mine", masks[:2], split="val")
    order = grain.MapDataset.range(len(masks)).seed(0).shuffle()
    # of 130 photos each third is looked at before the run
    broken = next(order[k] for k in range(8, 12) if order[k] % 3)
    photo = tmp_path / f"mine/images/train/{broken:04}.png"
    photo.write_bytes(photo.read_bytes()[:50])
    root = str(tmp_path / "mine")
    two = start(tmp_path / "run", 2, **{"data.dataset": "folder", "data.root": root})
    said = end(two)
    reader = [photo.name in told for told in said].index(True)
    assert two[reader].returncode == 1, said
    assert two[1 - reader].returncode in (1, -signal.SIGABRT), said  # it raises, or JAX aborts it
    assert re.search(rf"^error: .*{photo.name}.*\n\Z", said[reader], re.MULTILINE), said
    assert re.search(ENDED.format("goes on from step 2(, or .*)?"), said[1 - reader]), said


def latest(workdir):
    """The last step that was saved."""
    with Checkpoints(buckets.fetched(workdir) / "checkpoints") as checkpoints:
        return checkpoints.latest_step()


def wait_for(condition, started, seconds=200):
    """Until it holds; the processes must be alive meanwhile."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to that"
        assert all(process.poll() is None for process in started), end(started)
        time.sleep(0.02)
