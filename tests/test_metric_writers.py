"""Logs of a run elsewhere, read back by TensorBoard and Weights & Biases: each step once."""

import hashlib
import importlib.util
import io
import json
import logging
import os
import signal
import struct
import sys
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import small
from PIL import Image

from otseg_jax.cli import is_ours
from otseg_jax.training import loop, metric_writers
from otseg_jax.training.log import Log


@pytest.fixture(autouse=True)
def _libraries(tmp_path, monkeypatch):
    """The libraries of the extras, which must be there in CI; nobody is logged in."""
    names = ("tensorboard", "tensorboardX", "wandb")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing and os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{missing} must be there in CI: pip install '.[test]'")
    if missing:
        pytest.skip(f"{missing} are not installed")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def read_tensorboard(folder):
    """(tag, step) → value, as TensorBoard shows them; nothing of it is written twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    written = Counter(
        (value.tag, event.step)
        for path in folder.iterdir()
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )
    assert not [name for name, times in written.items() if times > 1]
    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    shown.Reload()
    tags = shown.Tags()
    found = {(tag, e.step): e.value for tag in tags["scalars"] for e in shown.Scalars(tag)}
    pictures = {
        (tag, e.step): np.asarray(Image.open(io.BytesIO(e.encoded_image_string)))
        for tag in tags["images"]
        for e in shown.Images(tag)
    }
    assert written.keys() == found.keys() | pictures.keys()
    return found, pictures


def wandb_records(path):
    """What a file of Weights & Biases holds, in LevelDB's log format: blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        _, length, kind = struct.unpack_from("<IHB", data, at)  # checksum, length, part
        if left < 7 or kind == 0:  # padding
            at += left
            continue
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def read_wandb(workdir):
    """(name, step) → value of all that the sessions of a run have kept, and the ids of these."""
    found, runs = {}, set()
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                runs.add((record.run.project, record.run.run_id))
            for item in record.history.item:
                name = item.key or ".".join(item.nested_key)
                assert (name, record.history.step.num) not in found
                found[name, record.history.step.num] = json.loads(item.value_json)
    return found, runs


def logged(workdir):
    """(name, step) → value of `metrics.jsonl`, by the names that are used elsewhere."""
    found = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        group = "train/" if "loss" in line else "val/"
        found |= {(group + n, line["step"]): x for n, x in line.items() if n != "step"}
    return {key: value for key, value in found.items() if isinstance(value, float)}


def test_an_interrupted_run_goes_on_in_the_same_logs(tmp_path, monkeypatch):
    options = small.settings(log="tensorboard,wandb", **{"train.eval_every": 2})
    write = Log.write

    def interrupt_at_three(self, step, numbers):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        write(self, step, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", interrupt_at_three)
        with pytest.raises(KeyboardInterrupt, match="step 3, which is saved"):
            loop.train(options, tmp_path / "run")
    loop.train(options, tmp_path / "run")

    want = logged(tmp_path / "run")
    assert {step for name, step in want if name == "train/loss"} == {1, 2, 3, 4}
    assert {step for name, step in want if name == "val/otseg_plus/hiou"} == {2, 4}
    assert {"train/learning_rate", "train/images_per_second"} < {name for name, _ in want}
    figures, pictures = read_tensorboard(tmp_path / "run" / "tensorboard")
    assert figures == pytest.approx(want, rel=1e-6)  # as float32
    assert pictures.keys() == {("val/predictions", 2), ("val/predictions", 4)}
    last = np.asarray(Image.open(tmp_path / "run" / "predictions.png").convert("RGB"))
    np.testing.assert_array_equal(pictures["val/predictions", 4], last)

    kept, runs = read_wandb(tmp_path / "run")
    digest = hashlib.sha256((tmp_path / "run" / "predictions.png").read_bytes()).hexdigest()
    assert kept["val/predictions.sha256", 4] == digest
    assert kept["val/predictions.height", 2] == pictures["val/predictions", 2].shape[0]
    others = ("_", "val/predictions.")
    assert {key: x for key, x in kept.items() if not key[0].startswith(others)} == want
    assert runs == {("otseg_jax", (tmp_path / "run" / "wandb_id").read_text().strip())}


def test_steps_that_were_lost_are_logged_once(tmp_path):
    """As after a kill at step 5, in the middle of a write, where 3 was the last that is saved."""

    def write(steps, done, *, judged):
        how = {"done": done, "judged": judged, "settings": {}}
        with metric_writers.opened("tensorboard", tmp_path, **how) as writers:
            for step in steps:
                writers.scalars(step, {"train/loss": step + done / 10})
            writers.scalars(steps[-1], {"val/otseg/hiou": 50.0 + done})

    write([1, 2, 3], 0, judged=False)
    write([4, 5], 3, judged=True)
    last = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-5])
    write([4, 5, 6], 3, judged=False)  # its evaluation was lost too
    found, _ = read_tensorboard(tmp_path / "tensorboard")
    losses = {step: value for (name, step), value in found.items() if name == "train/loss"}
    assert losses == pytest.approx({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.3, 5: 5.3, 6: 6.3})
    assert {key: x for key, x in found.items() if key[0] == "val/otseg/hiou"} == {
        ("val/otseg/hiou", 6): 53.0
    }


def test_what_fails_is_told_once_and_the_rest_goes_on(tmp_path, caplog):
    (tmp_path / "wandb_id").mkdir()  # no file can be written of that name
    how = {"done": 0, "judged": False, "settings": {}}
    with (
        caplog.at_level(logging.WARNING, logger="otseg_jax"),
        metric_writers.opened("wandb,tensorboard", tmp_path, **how) as writers,
    ):
        for step in (1, 2):
            writers.scalars(step, {"train/loss": 1.0})
            writers.picture(step, "val/predictions", lambda path: path.write_text("no picture"))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("wandb gets no more of this run: ")
    assert told[1].startswith("tensorboard gets no more of this run: cannot identify image file")
    assert read_tensorboard(tmp_path / "tensorboard")[0] == {("train/loss", 1): 1.0}


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("tensorboard,wandb", r"needs tensorboardX and wandb: .*'otseg_jax\[tensorboard,wandb\]'"),
        ("wandb", r"--config\.log=wandb needs wandb: pip install 'otseg_jax\[wandb\]'"),
    ],
)
def test_a_missing_extra_is_told_before_the_work(tmp_path, log, message):
    absent = dict.fromkeys(("tensorboardX", "wandb"))
    with (
        mock.patch.dict(sys.modules, absent),
        pytest.raises(ValueError, match=message) as error,
    ):
        loop.train(small.settings(log=log), tmp_path / "run")
    assert is_ours(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_wandb_left_is_not_taken_for_it(tmp_path, monkeypatch):
    kept = {k: v for k, v in sys.modules.items() if k.split(".")[0] != "wandb"}
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with mock.patch.dict(sys.modules, kept, clear=True), pytest.raises(ValueError, match="needs"):
        metric_writers.check("wandb")


def test_nobody_is_logged_in(tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # the mode is read once in a process
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"nobody is logged in: `wandb login`.*WANDB_MODE"
    ) as error:
        loop.train(small.settings(log="wandb"), tmp_path / "run")
    wandb.teardown()
    assert is_ours(error.value)
    assert not (tmp_path / "run").exists()
