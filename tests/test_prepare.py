"""Preparing records: what is stopped goes on, what is wrong is told, nothing else is touched."""

import hashlib
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import own_data
import pytest
from PIL import Image

from otseg_jax import cli
from otseg_jax.data import splits
from otseg_jax.prepare import prepare, shards

ROOT = Path(__file__).parent.parent
FEW = 12_000  # bytes of files in a shard


@pytest.fixture
def few(monkeypatch):
    """Several shards of few photos."""
    monkeypatch.setattr(shards, "SIZE", FEW)


def written(root, count=24, split="train"):
    """Data of one's own, photos of about 4,000 bytes."""
    own_data.write(root, [own_data.MASK] * count, split=split)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{split}/{i:04}.png")
        mask = rng.integers(0, 3, (36, 36), dtype=np.uint8)
        Image.fromarray(mask).save(root / f"labels/{split}/{i:04}.png")
    return root


def place(output):
    return Path(output) / "folder" / "1.0.0"


def run(root, output, *names):
    return prepare("folder", root, str(output), names or ("train",), threads=2)


def shards_of(output):
    """Of each shard, a hash of its bytes."""
    files = place(output).glob("folder-*")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_was_killed_goes_on(tmp_path, few):
    root, output = written(tmp_path / "files", 120), tmp_path / "records"
    run(root, tmp_path / "whole")
    code = (
        f"from otseg_jax.prepare import prepare, shards; shards.SIZE = {FEW}; "
        f"prepare('folder', {str(root)!r}, {str(output)!r}, ('train',))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while len(shards_of(output)) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = shards_of(output)
    assert 3 <= len(kept) < len(shards_of(tmp_path / "whole"))
    times = {path: path.stat().st_mtime_ns for path in place(output).glob("folder-*")}
    with pytest.raises(ValueError, match=r"half-written: run prepare again .*--splits=train$"):
        splits.open_split("folder", output, "train")
    (place(output) / ".folder-train.array_record-00099-of-00100.a1.part").write_bytes(b"half")
    assert f"120 photos in {len(shards_of(tmp_path / 'whole'))} shards" in run(root, output)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert shards_of(output).keys() == shards_of(tmp_path / "whole").keys()
    assert {p.name for p in place(output).iterdir() if "array" not in p.name} == {
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        "metadata.json",
    }
    whole, split = (splits.open_split("folder", at, "train") for at in (tmp_path / "whole", output))
    assert len(split) == len(whole) == 120
    for i in range(120):
        assert split.name(i) == whole.name(i)
        assert [file.data for file in split.files(i)] == [file.data for file in whole.files(i)]


def test_again_compares_and_writes_nothing(tmp_path, few):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    run(root, output)
    before = {path: path.stat().st_mtime_ns for path in place(output).iterdir()}
    assert "0 written, all compared with their files" in run(root, output)
    assert before == {path: path.stat().st_mtime_ns for path in place(output).iterdir()}


def test_a_split_is_added(tmp_path):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    run(root, output)
    with pytest.raises(
        FileNotFoundError, match=r"no split 'val', only train: .*--splits=train,val"
    ):
        splits.open_split("folder", output, "val")
    written(root, 5, "val")
    assert "5 written" in run(root, output, "train", "val")
    assert [len(splits.open_split("folder", output, name)) for name in ("train", "val")] == [24, 5]
    with pytest.raises(
        ValueError, match=r"--splits were train,val, and train is not named.* rm -r"
    ):
        run(root, output, "val")


@pytest.mark.parametrize("change", ["photo", "mask", "shard"])
def test_what_is_not_as_its_files_is_written_again(tmp_path, few, change):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    run(root, output)
    last = sorted(place(output).glob("folder-*"))[-1]
    if change == "photo":
        Image.new("RGB", (36, 36)).save(root / "images/train/0023.png")
    elif change == "mask":
        Image.new("L", (36, 36), 1).save(root / "labels/train/0023.png")
    else:
        last.write_bytes(last.read_bytes()[:3000])
    with pytest.raises(ValueError, match=rf"{last.name}: .*; 1 shards were removed: the same comm"):
        run(root, output)
    with pytest.raises(ValueError, match="is half-written"):
        splits.open_split("folder", output, "train")
    assert not last.exists()
    run(root, output)
    files, records = (splits.open_split("folder", at, "train") for at in (root, output))
    for name in ("image", "label"):
        np.testing.assert_array_equal(records[23][name], files[23][name])


def test_all_photos_that_are_wrong_are_told_of_at_once(tmp_path, few):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    good = (root / "images/train/0001.png").read_bytes()
    (root / "images/train/0001.png").write_bytes(good[:900])
    Image.new("L", (36, 36), 7).save(root / "labels/train/0002.png")
    Image.new("L", (30, 36)).save(root / "labels/train/0020.png")
    with pytest.raises(ValueError, match=r"^3 photos cannot be prepared: .*0001.*0002.*0020"):
        run(root, output)
    left = shards_of(output)
    assert left
    (root / "images/train/0001.png").write_bytes(good)
    Image.new("L", (36, 36)).save(root / "labels/train/0002.png")
    Image.new("L", (36, 36)).save(root / "labels/train/0020.png")
    run(root, output)
    assert left.items() < shards_of(output).items()
    assert len(splits.open_split("folder", output, "train")) == 24


def test_a_full_disk_leaves_nothing_half(tmp_path):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"cannot be written \(.*File too large.*check free"
        ) as told:
            run(root, output)
        assert cli.is_ours(told.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in place(output).iterdir()} == {"unfinished.json"}
    run(root, output)
    assert len(splits.open_split("folder", output, "train")) == 24


def test_the_first_moment_of_a_kill(tmp_path):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    place(output).mkdir(parents=True)
    for name in (".lock", ".unfinished.json.a1.part"):
        (place(output) / name).write_text("")
    assert "24 written" in run(root, output)


def test_one_at_a_time(tmp_path):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    place(output).mkdir(parents=True)
    with (
        filelock.FileLock(place(output) / ".lock"),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        run(root, output)
    run(root, output)


def test_records_of_other_photos_are_refused(tmp_path):
    root, output = written(tmp_path / "files"), tmp_path / "records"
    run(root, output)
    (root / "images/train/0000.png").unlink()
    (root / "labels/train/0000.png").unlink()
    with pytest.raises(ValueError, match=r"other records: the photos of train were others.* rm -r"):
        run(root, output)
    (root / "classes.csv").write_text("name,split\na,seen\nb,seen\nc,seen\n")
    with pytest.raises(ValueError, match="other records: the classes were others"):
        run(root, output)
    assert len(splits.open_split("folder", output, "train")) == 24


def test_records_of_records(tmp_path):
    """What lies in records is a data set as any other."""
    root = written(tmp_path / "files")
    run(root, tmp_path / "first")
    run(tmp_path / "first", tmp_path / "second")
    assert shards_of(tmp_path / "first") == shards_of(tmp_path / "second")
