"""Metrics against plain loops and the published table."""

import json
import math

import numpy as np
import pytest

from otseg_jax.data.classes import IGNORE
from otseg_jax.evaluation import metrics

NAMES = ["cat", "dog", "sky", "tree"]


def plain(truth, prediction, names, unseen):
    """Every figure pixel by pixel, with sets."""
    pixels = [
        (int(t), int(p))
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True)
        if t != IGNORE
    ]
    iou = {}
    for index, name in enumerate(names):
        inside = sum(t == index and p == index for t, p in pixels)
        either = sum(t == index or p == index for t, p in pixels)
        iou[name] = 100 * inside / either if either else None

    def mean(keep):
        values = [iou[n] for i, n in enumerate(names) if keep(i) and iou[n] is not None]
        return sum(values) / len(values) if values else None

    def accuracy(keep):
        hits = [t == p for t, p in pixels if keep(t)]
        return 100 * sum(hits) / len(hits) if hits else None

    seen, held_out = mean(lambda i: i not in unseen), mean(lambda i: i in unseen)
    harmonic = None
    if seen is not None and held_out is not None:
        harmonic = 2 / (1 / seen + 1 / held_out) if seen and held_out else 0.0
    return {
        "miou_seen": seen,
        "miou_unseen": held_out,
        "hiou": harmonic,
        "miou": mean(lambda i: True),
        "pixel_accuracy": accuracy(lambda i: True),
        "pixel_accuracy_seen": accuracy(lambda i: i not in unseen),
        "pixel_accuracy_unseen": accuracy(lambda i: i in unseen),
        "iou": iou,
    }


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    assert list(result["iou"]) == list(expected["iou"])
    for ours, theirs in ((result, expected), (result["iou"], expected["iou"])):
        for key, value in theirs.items():
            if value is None:
                assert ours[key] is None, key
            elif key != "iou":
                assert type(ours[key]) is float
                assert math.isclose(ours[key], value, rel_tol=1e-12), key


@pytest.mark.parametrize("unseen", [(1, 3), (2,), (), (0, 1, 2, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_summary_equals_a_plain_loop(seed, unseen):
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 3, IGNORE], size=(13, 11)).astype(np.int16)
    prediction = np.where(rng.random(truth.shape) < 0.6, truth % 4, rng.integers(0, 4, (13, 11)))
    counts = metrics.confusion(truth, prediction.astype(np.int32), 4)
    assert counts.sum() == np.count_nonzero(truth != IGNORE)
    assert_same(metrics.summary(counts, NAMES, unseen), plain(truth, prediction, NAMES, unseen))


def test_absent_class_is_undefined_and_left_out_but_a_false_alarm_counts():
    truth = np.array([[0, 0, 1, IGNORE]])
    prediction = np.array([[0, 2, 1, 3]])  # tree is predicted only where nothing counts
    result = metrics.summary(metrics.confusion(truth, prediction, 4), NAMES, [1, 3])
    assert result["iou"] == {"cat": 50.0, "dog": 100.0, "sky": 0.0, "tree": None}
    assert (result["miou_seen"], result["miou_unseen"], result["miou"]) == (25.0, 100.0, 50.0)
    assert result["hiou"] == 40.0
    assert_same(result, plain(truth, prediction, NAMES, [1, 3]))


def test_nothing_counted_gives_none_everywhere():
    result = metrics.summary(np.zeros((2, 2), np.int64), ["a", "b"], [1])
    assert result.pop("iou") == {"a": None, "b": None}
    assert set(result.values()) == {None}


def test_all_wrong_gives_zero_harmonic_mean():
    result = metrics.summary(np.array([[0, 5], [3, 0]]), ["a", "b"], [1])
    assert (result["miou_seen"], result["miou_unseen"], result["hiou"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("unseen", "seen", "harmonic"),
    [(78.1, 92.1, 84.5), (81.6, 93.3, 87.1), (60.4, 55.2, 57.7), (41.4, 40.2, 40.8)],
)
def test_harmonic_mean_of_published_rows(unseen, seen, harmonic):
    # two classes that err 1e9 pixels towards each other have IoU hit / (hit + 1e9): counts of
    # this size also show that nothing runs in 32 bits
    errors = 10**9
    hits = [round(errors * iou / (100 - iou)) for iou in (seen, unseen)]
    counts = np.array([[hits[0], errors // 2], [errors // 2, hits[1]]])
    result = metrics.summary(counts, ["base", "novel"], [1])
    assert math.isclose(result["miou_seen"], seen, abs_tol=1e-6)
    assert math.isclose(result["miou_unseen"], unseen, abs_tol=1e-6)
    assert math.isclose(result["hiou"], harmonic, abs_tol=0.1)  # rows are rounded to 0.1


def test_confusion_adds_up_over_images():
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 3, (2, 6, 5)), rng.integers(0, 3, (2, 6, 5))
    both = metrics.confusion(truth.reshape(12, 5), prediction.reshape(12, 5), 3)
    parts = [metrics.confusion(t, p, 3) for t, p in zip(truth, prediction, strict=True)]
    assert np.array_equal(both, parts[0] + parts[1])
    assert both.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_ids_of_a_narrow_dtype_do_not_overflow(dtype):
    size = {np.uint8: 256, np.int16: 847, np.int32: 847}[dtype]
    ids = np.arange(size, dtype=dtype)[None]
    counts = metrics.confusion(ids, ids[:, ::-1], size)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, np.eye(size, dtype=np.int64)[::-1])


def test_847_classes_from_pixels_to_table():
    names, unseen = [f"class {k}" for k in range(847)], (255, 256, 846)
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 847, (60, 50)).astype(np.int16)
    prediction = np.where(
        rng.random(truth.shape) < 0.5, truth % 847, rng.integers(0, 847, (60, 50))
    )
    result = metrics.summary(metrics.confusion(truth, prediction, 847), names, unseen)
    assert_same(result, plain(truth, prediction, names, unseen))
    held_out = [names[k] for k in unseen]
    lines = metrics.table({"OTSeg": result}, held_out).splitlines()
    assert len(lines) == 2 + 847 + 1 + len(metrics.ROWS)
    shown = [line[: len("IoU, * unseen")].strip() for line in lines[2:849]]
    assert shown[:844] == [name for name in names if name not in held_out]
    assert shown[844:] == [f"{name} *" for name in held_out]
    iou = result["iou"].values()
    cells = {line[len("IoU, * unseen") :].strip() for line in lines[2:849]}
    assert cells == {"-" if value is None else f"{value:.2f}" for value in iou}


@pytest.mark.parametrize(
    ("truth", "prediction", "num_classes", "words"),
    [
        ([[0, 1]], [[0], [1]], 2, [r"\(1, 2\)", r"\(2, 1\)"]),
        ([[0, 2]], [[0, 1]], 2, [r"truth holds \[2\]", r"0 \.\. 1"]),
        ([[0, 1]], [[-1, 9]], 2, [r"prediction holds \[-1, 9\]"]),
        ([[0, 7]], [[0, 8]], 2, [r"truth holds \[7\].*prediction holds \[8\]"]),
        ([[0, 255]], [[0, 0]], 3, [r"truth holds \[255\]"]),
        ([[-2]], [[0]], 1, [r"truth holds \[-2\]"]),
        ([[0]], [[0]], 0, [r"num_classes is 0, wanted 1 \.\. 32768"]),
        ([[0]], [[0]], 32769, ["num_classes is 32769"]),
    ],
)
def test_confusion_names_what_is_wrong(truth, prediction, num_classes, words):
    for word in words:
        with pytest.raises(ValueError, match=word):
            metrics.confusion(np.array(truth), np.array(prediction), num_classes)


@pytest.mark.parametrize(
    ("names", "unseen", "words"),
    [
        (["a"], [0], "1 entries"),
        (["a", "a"], [], r"\['a'\] more than once"),
        (["a", "b"], [2, -1], r"unseen holds \[2, -1\]"),
        (["a", "a", "a"], [5], "3 entries.*more than once.*unseen holds"),
    ],
)
def test_summary_names_what_is_wrong(names, unseen, words):
    with pytest.raises(ValueError, match=words):
        metrics.summary(np.eye(2, dtype=np.int64), names, unseen)


@pytest.fixture
def results():
    one = metrics.summary(np.array([[6, 2, 0], [0, 9, 1], [0, 0, 0]]), ["cat", "dog", "sky"], [0])
    two = metrics.summary(np.diag([1, 1, 1]), ["cat", "dog", "sky"], [0])
    return {"OTSeg": one, "OTSeg+": two}


def test_table_reads_as_written(results):
    assert metrics.table(results, ["cat"]) == "\n".join(
        [
            "IoU, * unseen  OTSeg  OTSeg+",
            "----------------------------",
            "dog            75.00  100.00",
            "sky             0.00  100.00",
            "cat *          75.00  100.00",
            "----------------------------",
            "mIoU(S)        37.50  100.00",
            "mIoU(U)        75.00  100.00",
            "hIoU           50.00  100.00",
            "mIoU           50.00  100.00",
            "pAcc           83.33  100.00",
            "pAcc(S)        90.00  100.00",
            "pAcc(U)        75.00  100.00",
        ]
    )


def test_table_marks_undefined_figures():
    result = metrics.summary(np.zeros((1, 1), np.int64), ["cat"], [])
    lines = metrics.table({"A": result}, []).splitlines()
    assert lines[2].split() == ["cat", "-"]
    assert {len(line) for line in lines} == {len(lines[0])}


def test_table_has_no_halves_where_nothing_is_unseen(results):
    lines = metrics.table(results, []).splitlines()
    assert lines[0].split() == ["IoU", "OTSeg", "OTSeg+"]
    assert [line.split()[0] for line in lines[-2:]] == ["mIoU", "pAcc"]
    assert "mIoU(S)" not in "".join(lines)


def test_table_takes_names_as_they_are():
    names = ["1e5", "0x10", "---", "None"]
    counts = np.diag([1, 2, 3, 4])
    lines = metrics.table({"1": metrics.summary(counts, names, [1])}, ["0x10"]).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["1e5", "---", "None", "0x10"]
    assert [line.split()[-1] for line in lines[2:6]] == ["100.00"] * 4
    assert lines[0] == "IoU, * unseen       1"


def test_table_names_what_is_wrong(results):
    with pytest.raises(ValueError, match="empty"):
        metrics.table({}, [])
    with pytest.raises(ValueError, match="'cow'"):
        metrics.table(results, ["cow"])
    results["other"] = metrics.summary(np.eye(1, dtype=np.int64), ["cat"], [])
    with pytest.raises(ValueError, match="'other' and 'OTSeg' are over different classes"):
        metrics.table(results, ["cat"])


def test_json_round_trips_and_is_stable(results, tmp_path):
    one, two = tmp_path / "new" / "a.json", tmp_path / "b.json"
    metrics.write_json(one, results)
    metrics.write_json(str(two), dict(reversed(results.items())))
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(one.read_text()) == results
    assert [path.name for path in one.parent.iterdir()] == ["a.json"]


def test_json_holds_no_nan_and_takes_numpy(tmp_path):
    path = tmp_path / "a.json"
    metrics.write_json(
        path,
        {"a": float("nan"), "b": [np.float32(0.5), (np.inf,)], "c": np.int64(2), "d": np.ones(2)},
    )
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [0.5, [None]],
        "c": 2,
        "d": [1.0, 1.0],
    }


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    metrics.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        metrics.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    path.unlink()
    path.mkdir()  # the rename fails: nothing may be left beside it
    with pytest.raises(OSError, match=r"a\.json"):
        metrics.write_json(path, {"a": 2})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
