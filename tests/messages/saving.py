"""Rows: workdirs, saves, and which checkpoint is meant."""

import os
import shutil

import numpy as np
import small

import otseg_jax
from messages import Row
from otseg_jax.checkpoints import lock, restore, spec
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.convert import convert
from otseg_jax.convert.hints import Hints
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.evaluation import report
from otseg_jax.training import loop
from otseg_jax.training.log import Log


def held(work):
    """While another holds the workdir."""

    def act(folder):
        with lock.hold(folder / "run"):
            work(small.settings(), folder / "run")

    return act


def steps(act, judged=()):
    """With checkpoints of steps 1 and 2."""

    def done(folder):
        with Checkpoints(folder / "checkpoints", milestones=[1]) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, {"x": np.ones(step, np.float32)}, {})
            for step in judged:
                checkpoints.judge(step, {"hiou": 1.0})
            act(checkpoints, folder)

    return done


def run_of(folder):
    """A run that was never evaluated."""
    steps(lambda checkpoints, folder: checkpoints.wait())(folder / "run")
    return folder / "run"


def read_again(folder, **settings):
    """The record of a run, whose settings were others."""
    options = small.settings()
    record = spec.Record(spec.describe(options, VOCABULARIES["shapes"]), options).to_json()
    record["settings"].update(settings)
    return spec.read_record(record, "runs/a, step 3")


def choose(wanted):
    return lambda checkpoints, folder: restore.choose(checkpoints, wanted, folder)


def spoiled(checkpoints, folder):
    (folder / "checkpoints" / "1" / "metrics.json").write_text("[")
    Checkpoints(folder / "checkpoints").close()


def without_folder(checkpoints, folder):
    checkpoints.wait()
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("")
    checkpoints.save(3, {"x": np.ones(1, np.float32)}, {})


def log_in_a_file(folder):
    (folder / "run").write_text("")
    Log(folder / "run").write(1, {"loss": 1.0})


def log_is_a_folder(folder):
    (folder / "metrics.jsonl").mkdir()
    Log(folder).write(1, {"loss": 1.0})


USED = rf"--workdir=.*run is in use by process {os.getpid()} on \S+ since \d.*another --workdir"

ROWS = [
    Row("the same training twice at once", held(loop.train), USED),
    Row("--mode=eval in the workdir of a training", held(report.evaluate), USED + ".*init_from"),
    Row(
        "--config.eval.checkpoint=best, never evaluated",
        steps(choose("best")),
        r"none of its steps \[1, 2\] has an evaluation.*checkpoint=latest",
    ),
    Row(
        "--config.eval.checkpoint=bset",
        steps(choose("bset")),
        r"choose latest, best, half or a step of \[1, 2\]",
    ),
    Row(
        "convert RUN --checkpoint=best, never evaluated",
        lambda folder: convert(str(run_of(folder)), folder / "m", hints=Hints(checkpoint="best")),
        r"none of its steps \[1, 2\] has an evaluation.*choose --checkpoint=latest, or a step",
    ),
    Row(
        "load(RUN, checkpoint='best'), never evaluated",
        lambda folder: otseg_jax.load(run_of(folder), checkpoint="best"),
        r"none of its steps \[1, 2\] has an evaluation.*choose checkpoint=latest, or a step",
    ),
    Row(
        "a run of another version, with a setting that is gone",
        lambda folder: read_again(folder, speed=1),
        r"^runs/a, step 3 was written by another version of otseg_jax.*another --workdir "
        r"\(config: speed=1: there is no such field\)",
    ),
    Row(
        "--config.init_from=RUN/checkpoints/2",
        lambda folder: restore.find(run_of(folder) / "checkpoints" / "2"),
        r"run/checkpoints/2 is a part of .*/run: give that$",
    ),
    Row(
        "--config.eval.checkpoint=7", steps(choose("7")), r"no checkpoint of step 7.*step 1, step 2"
    ),
    Row(
        "metrics.json cut short",
        steps(spoiled, judged=[1]),
        r"metrics\.json of .*/1 is damaged.*it is kept",
        refused=False,
    ),
    Row(
        "a workdir that was removed and made a file in the run",
        steps(without_folder),
        r"saving step 3 to .*checkpoints failed \(.*Check free space",
    ),
    Row(
        "a workdir that is a file",
        log_in_a_file,
        r"metrics\.jsonl cannot be written \(.*free space",
    ),
    Row(
        "metrics.jsonl is a folder", log_is_a_folder, r"metrics\.jsonl cannot be written \(Is a dir"
    ),
    Row(
        "a save of a step that is there",
        steps(lambda c, folder: c.save(2, {"x": np.ones(1, np.float32)}, {})),
        r"step 2 is there already: resume from it, choose another --workdir",
    ),
    Row(
        "an evaluation of a step that is not there",
        steps(lambda c, folder: c.judge(5, {"hiou": 1.0})),
        r"no checkpoint of step 5",
    ),
]
