"""Batches depend on the seed and the position alone; errors of worker threads stay readable."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image

from otseg_jax.data import folders, pipeline, transforms


class Numbers:
    """Example i holds i; counts what is read."""

    def __init__(self, size):
        self.size = size
        self.reads = []

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        self.reads.append(int(i))
        return {"id": int(i)}


def _noisy(example, rng):
    return {"id": np.int64(example["id"]), "noise": rng.integers(2**40)}


def _take(count, size=11, **options):
    options = {"batch_size": 4, "seed": 7, **options}
    batches = pipeline.train_batches(Numbers(size), _noisy, **options)
    return list(itertools.islice(batches, count))


def _pairs(batches):
    """(id, noise) of every example, in order."""
    return [
        pair
        for batch in batches
        for pair in zip(*map(np.ndarray.tolist, batch.values()), strict=True)
    ]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_one_process_equals_two(threads):
    alone = _take(9)
    shares = [
        _take(9, process_index=p, process_count=2, threads=threads, buffer=1 + threads)
        for p in range(2)
    ]
    for k in range(9):
        assert shares[0][k]["id"].shape == (2,)
        assert _pairs([alone[k]]) == _pairs([shares[0][k], shares[1][k]])


@pytest.mark.parametrize("start", [1, 2, 3, 7, 50])
def test_resumed_equals_uninterrupted(start):
    uninterrupted = _pairs(_take(start + 4)[start:])
    assert _pairs(_take(4, start=start)) == uninterrupted


def test_resuming_reads_nothing_that_was_consumed():
    source = Numbers(1000)
    options = {"batch_size": 4, "seed": 7, "start": 200, "threads": 0}
    next(pipeline.train_batches(source, _noisy, **options))
    assert len(source.reads) == 4


def test_resume_on_another_number_of_processes():
    expected = _pairs(_take(6)[3:])
    shares = [_take(3, start=3, process_index=p, process_count=4) for p in range(4)]
    assert sorted(expected) == sorted(pair for share in shares for pair in _pairs(share))


def test_each_epoch_is_complete_and_differs():
    pairs = _pairs(_take(33))  # 132 examples, 12 epochs of 11
    epochs = [pairs[i : i + 11] for i in range(0, 132, 11)]
    orders = [tuple(identity for identity, _ in epoch) for epoch in epochs]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len(set(orders)) == 12
    # augmentation is drawn anew, for every example of every epoch
    assert len({noise for _, noise in pairs}) == 132


def test_seed_decides_order_and_augmentation():
    assert _pairs(_take(5)) == _pairs(_take(5, threads=3, buffer=9))
    other = _pairs(_take(5, seed=8))
    assert [i for i, _ in other] != [i for i, _ in _pairs(_take(5))]
    assert not {n for _, n in other} & {n for _, n in _pairs(_take(5))}


def test_batch_larger_than_the_data_set():
    pairs = _pairs(_take(2, size=3, batch_size=6))
    assert [sorted(i for i, _ in pairs[k : k + 3]) for k in (0, 3, 6, 9)] == [[0, 1, 2]] * 4


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_evaluation_covers_each_example_once_in_order(count):
    shares = [
        [
            example["id"]
            for example in pipeline.eval_examples(
                Numbers(11), lambda e: e, process_index=p, process_count=count
            )
        ]
        for p in range(count)
    ]
    assert shares == [list(range(p, 11, count)) for p in range(count)]


def test_every_reader_of_an_evaluation_has_a_photo_to_read(caplog):
    """Grain warns where there are fewer places than threads."""
    examples = pipeline.eval_examples(Numbers(5), lambda e: e, threads=3, buffer=1)
    assert len(list(examples)) == 5
    assert "prefetch_buffer_size" not in caplog.text


def _broken_folder(root):
    (root / "classes.csv").write_text("name,split\ncat,seen\n")
    for split, part in itertools.product(("train", "val"), ("images", "labels")):
        (root / part / split).mkdir(parents=True)
        for name in "abc":
            Image.new("L", (9, 9)).save(root / part / split / f"{name}.png")
        if part == "images":
            (root / part / split / "b.png").write_bytes(b"<html>not found</html>")
    return root


@pytest.mark.parametrize("threads", [0, 2])
def test_error_of_a_reading_thread_is_the_reader_s_own(tmp_path, threads):
    root = _broken_folder(tmp_path)
    train, val = (folders.index("folder", root, split) for split in ("train", "val"))
    with pytest.raises(ValueError, match=r"^.*images/train/b.png cannot be used: "):
        list(
            itertools.islice(
                pipeline.train_batches(
                    train, lambda e, _: e, batch_size=3, seed=0, threads=threads
                ),
                2,
            )
        )
    examples = pipeline.eval_examples(val, lambda e: e, threads=threads)
    assert next(examples)["name"] == "a"
    with pytest.raises(ValueError, match=r"^.*images/val/b.png cannot be used: "):
        next(examples)


def test_error_of_a_transform_is_its_own():
    def fail(example, rng):
        raise KeyError(f"no such thing in example {example['id']}")

    with pytest.raises(KeyError, match="no such thing in example"):
        next(pipeline.train_batches(Numbers(4), fail, batch_size=2, seed=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "the data set is empty"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 is not a positive multiple of the 2"),
        ({"batch_size": 0, "start": -1}, "batch_size 0 .*; start -1 is negative"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2 does not exist"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _take(1, **options)


def test_real_photos_make_batches(photos):
    folder = folders.index("voc12", photos / "voc2012_mini", "train")

    def augment(example, rng):
        options = {"crop": 64, "scale": (256, 64)}
        return transforms.for_train(example, rng, **options)

    one, two = (
        next(pipeline.train_batches(folder, augment, batch_size=8, seed=0, threads=threads))
        for threads in (0, 2)
    )
    assert one["image"].shape == (8, 64, 64, 4)
    assert one["image"].dtype == np.uint8
    assert one["label"].shape == (8, 64, 64)
    assert one["label"].dtype == np.int16
    np.testing.assert_array_equal(one["image"], two["image"])
    np.testing.assert_array_equal(one["label"], two["label"])


def test_put_on_one_device():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = {"image": np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)}
    placed = pipeline.put(batch, sharding)
    assert placed["image"].sharding == sharding
    np.testing.assert_array_equal(placed["image"], batch["image"])


TWO_DEVICES = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from otseg_jax.data import pipeline

def transform(example, rng):
    return {"image": np.full((2, 2, 3), example, np.float32), "label": np.zeros((2, 2), np.int16)}

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
batch = next(pipeline.train_batches(list(range(6)), transform, batch_size=4, seed=0))
placed = pipeline.put(batch, sharding)
assert placed["image"].shape == (4, 2, 2, 3), placed["image"].shape
shards = placed["image"].addressable_shards
assert [s.data.shape[0] for s in shards] == [2, 2]
for shard in shards:
    np.testing.assert_array_equal(shard.data, batch["image"][shard.index])
print("placed")
"""


def test_put_splits_a_batch_over_devices():
    """In a process of its own: the number of devices is fixed when JAX starts. It also shows that
    a program ends although the endless iterator's threads still hold batches."""
    result = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "placed\n"), result.stderr
