"""A workdir and the processes that write to it: killed, stopped, two at once, no room to save."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from otseg_jax.checkpoints import lock
from otseg_jax.checkpoints.failure import SaveError
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.training import watch
from otseg_jax.weights import names

# arrays are read without saying for which devices
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

HERE = Path(__file__).parent
STEPS = 4
# the last evaluation takes seconds, and nothing but the evaluations asks for a save
FIELDS = {"train.steps": STEPS, "train.eval_every": 2, "train.eval_images": 6}
FIELDS |= {"data.images.val": 300, "train.checkpoint_every": 100}
CODE = """
import sys, json, small
from otseg_jax import cli
from otseg_jax.training import loop
cli.quiet_libraries()
cli.run(lambda: loop.train(small.settings(**json.loads(sys.argv[2])), sys.argv[1]))
"""


def start(workdir, **fields):
    paths = f"{HERE}{os.pathsep}{HERE.parent}"
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(workdir), json.dumps(FIELDS | fields)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_well(process):
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said


def wait_for(condition, seconds=200):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.02)


def last_lines(workdir):
    """Of each step its last line of losses, and its last line of an evaluation."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], "loss" in line): {n: x for n, x in line.items() if n not in watch.FIGURES}
        for line in lines
    }


def trained(workdir):
    """What a run leaves, bit for bit, without what tells of time."""
    folder, arrays = workdir / "checkpoints", {}
    with Checkpoints(folder) as checkpoints:
        kept = checkpoints.steps()
    for step in kept:
        restored = ocp.PyTreeCheckpointer().restore(folder / str(step) / "state")
        for name, leaf in names.flatten(restored).items():
            arrays[step, name] = np.asarray(leaf).tobytes()
    scores = {step: (folder / str(step) / "metrics.json").read_text() for step in kept}
    return arrays, scores, (workdir / "results.json").read_text(), last_lines(workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run alone and uninterrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ends_well(start(run))
    return run


def test_killed_and_stopped_in_the_evaluation_it_ends_the_same(whole, tmp_path):
    """Killed after a step, killed in the last evaluation, stopped there by SIGTERM, then let go."""
    run = tmp_path / "run"
    steps = run / "checkpoints"

    def logged(step):
        return (run / "metrics.jsonl").exists() and (step, True) in last_lines(run)

    killed = start(run)
    wait_for(lambda: logged(STEPS - 1))
    killed.kill()
    killed.communicate()
    assert (steps / str(STEPS // 2)).is_dir(), "steps before an evaluation are lost"

    killed = start(run)
    wait_for(lambda: (steps / str(STEPS)).is_dir())
    killed.kill()
    killed.communicate()
    assert not (run / "results.json").exists(), "the evaluation was over: the test shows nothing"

    stopped = start(run)
    seen = ""
    while "evaluate:" not in seen:
        seen += stopped.stderr.read(1)
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate(timeout=100)[1]
    assert stopped.returncode == 130, said
    assert f"stopped after step {STEPS}, which is saved: the same command goes on" in said
    assert "Traceback" not in said
    assert not (run / "results.json").exists()

    ends_well(start(run))
    assert trained(run) == trained(whole)
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}


def test_the_second_command_in_a_workdir_ends_at_once(whole, tmp_path):
    first = start(tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / lock.NAME).exists())
    second = start(tmp_path / "run")
    said = second.communicate(timeout=100)[1]
    assert first.poll() is None, "the first was over before the second was refused"
    assert second.returncode == 1
    assert f"in use by process {first.pid} on " in said
    # Grain has a line of its own with an old jaxlib
    (told,) = [line for line in said.splitlines() if not line.startswith("WARNING:absl:Grain")]
    assert told.startswith("error: ")
    ends_well(first)
    assert trained(tmp_path / "run") == trained(whole)


ELSEWHERE = "1\nanother\n"  # filelock's record of process 1 of another machine
# Holds a workdir, says so, and is killed in the end.
HOLDER = """
import sys, time
{before}
from otseg_jax.checkpoints import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
# As network file systems answer that lock no files; none is at hand.
UNABLE = """
import errno, fcntl
def flock(fd, how):
    raise OSError(errno.{error}, "No locks available")
fcntl.flock = flock
"""


def holder(workdir, before=""):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(before=before), str(workdir)],
        env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n", process.stderr.read()
    return process


@pytest.fixture
def unable(request, monkeypatch):
    """A file system that locks no files, for this process too."""

    def flock(fd, how):
        raise OSError(getattr(errno, request.param), "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    return UNABLE.format(error=request.param)


def refused(workdir):
    with pytest.raises(ValueError, match=r"--workdir=.* is in use by ") as told:
        lock.hold(workdir).__enter__()
    return str(told.value)


def test_a_killed_process_holds_nothing(tmp_path, caplog):
    """Neither one of this machine nor one of another: the system has let go of its file."""
    caplog.set_level("INFO", logger="otseg_jax")
    (tmp_path / lock.NAME).touch()
    (tmp_path / lock.OWNER).write_text(ELSEWHERE)
    with lock.hold(tmp_path):
        assert f"in use by process {os.getpid()} on {socket.gethostname()} since" in refused(
            tmp_path
        )
    assert "was in use by process 1 on another since" in caplog.text
    assert not list(tmp_path.iterdir())


def test_two_never_hold_a_workdir_whatever_is_removed(tmp_path):
    folder = tmp_path / "held by me"  # words of the library's own messages
    with lock.hold(folder):
        (folder / lock.NAME).unlink()
        assert f"process {os.getpid()} " in refused(folder)
        assert not (folder / lock.NAME).exists(), "the one that was refused left its own file"
    with lock.hold(tmp_path):
        (tmp_path / lock.OWNER).unlink()
        assert "another process" in refused(tmp_path)
    with lock.hold(tmp_path):
        (tmp_path / lock.NAME).unlink()
        (tmp_path / lock.NAME).write_text("of somebody else")
    assert (tmp_path / lock.NAME).read_text() == "of somebody else"


@pytest.mark.parametrize("unable", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"], indirect=True)
def test_where_no_files_are_locked_the_second_one_holds(unable, tmp_path):
    with lock.hold(tmp_path):
        said = refused(tmp_path)
    assert f"process {os.getpid()} on {socket.gethostname()} since" in said
    assert f"remove {tmp_path / lock.OWNER} if that is gone" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unable", ["ENOLCK"], indirect=True)
def test_where_no_files_are_locked_a_killed_process_of_this_machine_holds_nothing(
    unable, tmp_path, caplog
):
    caplog.set_level("INFO", logger="otseg_jax")
    killed = holder(tmp_path, unable)
    assert f"process {killed.pid} on " in refused(tmp_path)
    killed.kill()
    killed.communicate()
    with lock.hold(tmp_path):
        assert f"was in use by process {killed.pid} on" in caplog.text
    # of another machine it is not known: the message says what to do, and that works
    (tmp_path / lock.OWNER).write_text(ELSEWHERE)
    said = refused(tmp_path)
    assert "process 1 on another since" in said
    Path(re.search(r"remove (\S+) if", said)[1]).unlink()
    with lock.hold(tmp_path):
        pass


def test_a_save_that_fails_is_told_before_the_next_one(tmp_path):
    big = {"noise": np.random.default_rng(0).integers(0, 2**31, 2**24).astype(np.int32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"noise": big["noise"][:9]}, {})
        checkpoints.wait()
        checkpoints.save(2, big, {})
        (tmp_path / "2").write_text("in the way")

        with pytest.raises(SaveError, match=r"saving step 2 .*kept: step 1\."):
            wait_for(lambda: not checkpoints.saving(), 60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
