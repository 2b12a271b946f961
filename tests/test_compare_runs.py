"""Two evaluations beside one another: from the command line, and what cannot be compared."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from otseg_jax import compare
from otseg_jax.cli import is_ours
from otseg_jax.data.classes import Vocabulary
from otseg_jax.evaluation import confusions, metrics
from otseg_jax.evaluation.confusions import FILE, Confusions
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Best

VOCABULARY = Vocabulary(("cat", "dog", "sky", "tree"), unseen=(1,))


def evaluated(skill, *, seed=0, names=tuple(f"photo {i}" for i in range(12)), methods=("a", "b")):
    """Confusions of photos of which a part of the pixels is right, and their sum."""
    tally, rng = Tally(VOCABULARY, methods), np.random.default_rng(seed)
    total = {method: np.zeros((4, 4), np.int64) for method in methods}
    for number, name in enumerate(names):
        # the same photos whatever the skill
        truth = np.random.default_rng(number).integers(-1, 4, (9, 7)).astype(np.int16)
        maps = {
            m: np.where(rng.random(truth.shape) < skill, truth % 4, rng.integers(0, 4, truth.shape))
            for m in methods
        }
        maps = {method: labels.astype(np.int32) for method, labels in maps.items()}
        tally.name(name)
        best = {method: Best(None, labels, None, None) for method, labels in maps.items()}
        tally.add(number, truth, tally.count(truth, best))
        for method, labels in maps.items():
            total[method] += metrics.confusion(truth, labels, 4)
    return tally.finished(dataset="pets", main=methods[0]).confusions, total


@pytest.fixture
def runs(tmp_path):
    """Two workdirs."""
    for name, skill in (("one", 0.3), ("two", 0.8)):
        confusions.write(tmp_path / name / FILE, evaluated(skill)[0])
    return [str(tmp_path / name) for name in ("one", "two")]


def command(capsys, *argv) -> str:
    compare.main(["compare", "--nojson", "--methods=", *argv])  # flags keep their values
    return capsys.readouterr().out


def test_what_is_written_is_read(tmp_path):
    found, total = evaluated(0.5)
    confusions.write(tmp_path / FILE, found)
    read = confusions.read(tmp_path)
    for name in ("dataset", "classes", "unseen", "photos", "main"):
        assert getattr(read, name) == getattr(found, name)
    for method, counts in total.items():
        np.testing.assert_array_equal(read.entries[method], found.entries[method])
        np.testing.assert_array_equal(read.total(method), counts)
        right, truth, predicted = read.by_photo(method)
        np.testing.assert_array_equal(right.sum(0), np.diagonal(counts))
        np.testing.assert_array_equal(truth.sum(0), counts.sum(1))
        np.testing.assert_array_equal(predicted.sum(0), counts.sum(0))


def test_many_classes_and_photos_stay_small(tmp_path):
    """171 classes, 5,000 photos: dense, their confusions would be 1.2 GB."""
    rng = np.random.default_rng(0)
    photo = np.repeat(np.arange(5000), 60)
    truth, found = rng.integers(0, 171, (2, photo.size))
    entries = np.stack([photo, truth, found, rng.integers(1, 9999, photo.size)]).astype(np.int32)
    names, photos = (tuple(f"name {i}" for i in range(n)) for n in (171, 5000))
    many = Confusions(
        dataset="x", classes=names, unseen=(), photos=photos, main="m", entries={"m": entries}
    )
    confusions.write(tmp_path / FILE, many)
    assert (tmp_path / FILE).stat().st_size < 2_500_000
    assert confusions.read(tmp_path).by_photo("m").truth.shape == (5000, 171)


def test_the_command_prints_both_and_their_difference(runs, capsys):
    said = command(capsys, *runs, "--draws=300")
    (_, one), (_, two) = evaluated(0.3), evaluated(0.8)
    first, second = (metrics.summary(t["b"], VOCABULARY.names, (1,)) for t in (one, two))
    dog = next(line for line in said.split("B = ")[2].splitlines() if line.startswith("dog *"))
    cells = dog.split()
    assert cells[2] == "12"  # photos
    assert float(cells[3]) == pytest.approx(first["iou"]["dog"], abs=0.006)
    assert float(cells[4]) == pytest.approx(second["iou"]["dog"], abs=0.006)
    assert float(cells[6]) < float(cells[5]) < float(cells[8])
    assert cells[9] == "B"
    found = json.loads(command(capsys, *runs, "--draws=300", "--json"))
    row = found["compared"][1]["measures"]["hiou"]
    assert (row["a"], row["b"]) == pytest.approx((first["hiou"], second["hiou"]))
    assert row["low"] < row["difference"] == pytest.approx(row["b"] - row["a"])
    assert found["compared"][1]["iou"]["dog"]["photos"] == 12


def test_a_run_against_itself_and_methods_of_it(runs, capsys):
    same = json.loads(command(capsys, runs[0], f"{runs[0]}/{FILE}", "--draws=100", "--json"))
    for compared in same["compared"]:
        for row in compared["measures"].values():
            assert row["low"] == row["difference"] == row["high"] == 0.0
    pair = json.loads(command(capsys, runs[0], runs[0], "--methods=a,b", "--draws=100", "--json"))
    (compared,) = pair["compared"]
    assert compared["methods"] == {"a": "a", "b": "b"}
    assert compared["measures"]["miou"]["difference"] != 0.0


def test_photos_in_another_order_are_paired_by_name():
    one, _ = evaluated(0.5)
    order = np.random.default_rng(5).permutation(12)
    entries = {
        m: np.concatenate([order[e[:1]], e[1:]]).astype("i4") for m, e in one.entries.items()
    }
    photos = tuple(one.photos[i] for i in np.argsort(order))
    pair = compare.match(one, replace(one, photos=photos, entries=entries), ("A", "B"))
    for first, second in zip(*pair.pixels(("a", "a")), strict=True):
        np.testing.assert_array_equal(first, second)


def test_what_cannot_be_compared_is_named():
    one, _ = evaluated(0.5)
    fewer, _ = evaluated(0.5, names=one.photos[:10])
    classes = replace(one, classes=("cat", "dog", "sky", "cow"))
    e = one.entries["a"].copy()
    e[3, 0] += 1
    masks = replace(one, entries={"a": e})
    for other, said in (
        (fewer, r"2 photo names only in A: photo 10, photo 11: evaluate both .*eval\.images"),
        (classes, r"1 class names only in A: tree; 1 class names only in B: cow: evaluate both"),
        (replace(one, classes=one.classes[::-1]), "classes are in another order: evaluate both"),
        (masks, "masks of 1 of 12 photos differ: photo 0: evaluate both on the same data"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            compare.match(one, other, ("A", "B"))
        assert is_ours(error.value)


def test_other_unseen_classes_leave_the_halves_out(tmp_path, runs, capsys):
    other = replace(evaluated(0.8)[0], unseen=(2, 3))
    confusions.write(tmp_path / "three" / FILE, other)
    said = command(capsys, runs[0], str(tmp_path / "three"), "--draws=100")
    assert "Other classes are unseen in A than in B" in said
    assert "mIoU(U)" not in said
    assert "mIoU " in said


@pytest.mark.parametrize("damage", ["cut", "text", "key", "bomb", "range", "pickle"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / FILE
    confusions.write(path, evaluated(0.5)[0])
    whole = path.read_bytes()
    with np.load(path) as arrays:
        held = dict(arrays)
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "bomb":  # says that it unpacks to more than there is
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in held.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
            with archive.open("pixels/c.npy", "w") as file:
                header = {"descr": "<i4", "fortran_order": False, "shape": (4, 10**13)}
                np.lib.format.write_array_header_1_0(file, header)
    else:
        if damage == "key":
            del held["photos"]
        elif damage == "range":
            held["pixels/a"][2, 0] = 4
        else:
            held["photos"] = np.array([object()], object)
        np.savez(path, **held)
    with pytest.raises(ValueError, match=r"is not a whole confusions\.npz .*evaluate") as error:
        confusions.read(path)
    assert is_ours(error.value)
    assert "\n" not in str(error.value)
