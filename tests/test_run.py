"""Checkpoints: round trips, what is kept, and what is refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from otseg_jax.checkpoints.run import Checkpoints

META = {"classes": ["cat", "dog"], "templates": ["a photo of a {}."], "mean": [123.675, 116.28]}


def make_state(seed: int = 0) -> dict[str, Any]:
    """As a training run has it: an nnx state and optax's named tuples around it."""
    layers = nnx.Linear(3, 4, rngs=nnx.Rngs(seed)), nnx.LayerNorm(4, rngs=nnx.Rngs(1))
    model = nnx.Sequential(*layers)
    trainable = nnx.split(model)[1]
    optimizer = optax.chain(optax.clip(1.0), optax.adamw(lambda step: 0.1 / (step + 1)))
    gradients = jax.tree.map(lambda x: x + 0.5, trainable)
    opt_state = optimizer.update(gradients, optimizer.init(trainable), trainable)[1]
    return {
        "trainable": trainable,
        "opt_state": opt_state,
        "extra": (jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), np.array([True, False])),
    }


def assert_same(restored: Any, wanted: Any) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(wanted)
    for got, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        np.testing.assert_array_equal(got, leaf)


def abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def tiny(value: float = 0.0) -> dict[str, jax.Array]:
    return {"weight": jnp.full((2, 3), value, jnp.float32)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.core
def test_round_trip(tmp_path: Path) -> None:
    state = make_state()
    text = np.random.default_rng(0).normal(size=(2, 1, 4)).astype(np.float32)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(7, state, META, text=text)
        checkpoints.judge(7, {"hiou": np.float32(40.5)})
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps() == [7]
        assert_same(checkpoints.restore(7, abstract(state)), state)
        assert_same(checkpoints.restore(7, make_state(3)), state)
        assert checkpoints.read_meta(7) == META
        restored = checkpoints.read_text(7)
    assert isinstance(restored, np.ndarray)
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, text)


def test_evaluation_restores_no_optimiser_state(tmp_path: Path) -> None:
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        part = {"trainable": state["trainable"]}
        assert_same(checkpoints.restore(1, abstract(part)), part)


def test_values_are_those_of_the_call(tmp_path: Path) -> None:
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    weight, counts = jnp.arange(2.0**20), np.arange(5)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            wanted = np.array(weight)
            checkpoints.save(step, {"weight": weight, "counts": counts}, {})
            weight = double(weight)
            counts[:] = -1
            restored = checkpoints.restore(
                step, {"weight": jax.ShapeDtypeStruct((2**20,), "float32")}
            )
            np.testing.assert_array_equal(restored["weight"], wanted)


def run_schedule(directory: Path, scores: dict[int, float | None], **options: Any) -> Checkpoints:
    checkpoints = Checkpoints(directory, **options)
    for step, score in scores.items():
        checkpoints.save(step, tiny(step), {})
        if score is not None:
            checkpoints.judge(step, {"hiou": score, "miou": -score})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("reopened", [False, True])
def test_newest_best_and_milestones_stay(tmp_path: Path, reopened: bool) -> None:
    scores = {1: 0.1, 2: 0.5, 3: None, 4: 0.4, 5: float("nan"), 6: 0.3}
    options = {"milestones": (3, 99)}
    if reopened:  # as a run that was stopped after every step
        for step, score in scores.items():
            run_schedule(tmp_path, {step: score}, **options).close()
        checkpoints = Checkpoints(tmp_path, **options)
    else:
        checkpoints = run_schedule(tmp_path, scores, **options)
    with checkpoints:
        assert checkpoints.steps() == [2, 3, 6]
        assert checkpoints.latest_step() == 6
        assert checkpoints.best_step() == 2
        assert_same(checkpoints.restore(2, tiny()), tiny(2.0))
    on_disk = {int(f.name) for f in tmp_path.iterdir()}
    assert on_disk == {2, 3, 6}


def test_without_metrics_only_the_newest_stays(tmp_path: Path) -> None:
    with run_schedule(tmp_path, {1: None, 2: None, 3: None}) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([3], None)


def test_best_compares_what_was_judged_by_as_many_images(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step, images, hiou in ((1, 6, 90.0), (2, 3, 50.0), (3, 3, 40.0)):
            checkpoints.save(step, tiny(), META)
            checkpoints.judge(step, {"hiou": hiou, "images": images})
        assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 3], 2)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 2


def test_newest_of_equals_is_best(tmp_path: Path) -> None:
    with run_schedule(tmp_path, {1: 0.5, 2: 0.5, 3: 0.1}) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([2, 3], 2)


def test_metric_is_a_choice(tmp_path: Path) -> None:
    with run_schedule(tmp_path, {1: 0.1, 2: 0.5, 3: 0.4}, metric="miou") as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([1, 3], 1)


def test_metrics_are_kept_as_plain_numbers(tmp_path: Path) -> None:
    metrics = {
        "hiou": np.float64(1.5),
        "iou": {"cat": float("nan"), "dog": None, "cow": np.float32(0.25)},
        "steps": 3,
        "inf": np.inf,
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tiny(), {})
        checkpoints.judge(1, metrics)
        assert checkpoints.best_step() == 1
    record = (tmp_path / "1" / "metrics.json").read_text()
    assert '"iou": {"cat": null, "cow": 0.25, "dog": null}' in record
    assert '"inf": null' in record


def test_reading_writes_nothing(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "absent") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.latest_step() is checkpoints.best_step() is None
        with pytest.raises(ValueError, match=r"of step 3 in .*absent \(there: none\)"):
            checkpoints.restore(3, tiny())
    assert not (tmp_path / "absent").exists()

    run_schedule(tmp_path / "run", {1: 0.5}).close()
    before = contents(tmp_path)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.restore(1, tiny())
        checkpoints.read_meta(1)
        with pytest.raises(ValueError, match=r"/1 was saved without text embeddings"):
            checkpoints.read_text(1)
    assert contents(tmp_path) == before


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(ValueError, match="run is a file; wanted a folder"):
        Checkpoints(tmp_path / "run")


def test_relative_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_schedule(Path("run"), {1: 0.5}).close()
    with Checkpoints("run") as checkpoints:
        assert checkpoints.directory == str(tmp_path / "run")
        assert checkpoints.steps() == [1]


def test_missing_step_lists_those_there(tmp_path: Path) -> None:
    with run_schedule(tmp_path, {1: 0.5, 2: 0.1}) as checkpoints:
        for read in (lambda: checkpoints.restore(3, tiny()), lambda: checkpoints.read_meta(3)):
            with pytest.raises(ValueError, match=r"step 3 in .*\(there: step 1, step 2\)") as error:
                read()
            assert str(tmp_path) in str(error.value)


def test_other_model_lists_every_difference(tmp_path: Path) -> None:
    saved = {"a": {"x": jnp.ones((2, 3)), "y": jnp.ones(2), "old": jnp.ones(1)}, "b": jnp.ones(4)}
    other = {"a": {"x": jnp.ones((3, 2)), "y": jnp.ones(2, jnp.int32), "new": jnp.ones(1)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, saved, {})
        checkpoints.wait()
        before = contents(tmp_path / "5")
        with pytest.raises(ValueError, match=r"5 does not fit this model: ") as error:
            checkpoints.restore(5, other)
        assert contents(tmp_path / "5") == before
    for part in (
        "a/x is float32[2, 3], the model wants float32[3, 2]",
        "a/y is float32[2], the model wants int32[2]",
        "it lacks a/new",
        "it has a/old, the model has not",
        f"{tmp_path}/5",
    ):
        assert part in str(error.value)
    assert "b" not in str(error.value).split("does not fit")[1].split("Use")[0].split()


def test_many_differences_are_shortened(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, {str(i): jnp.ones(1) for i in range(30)}, {})
        with pytest.raises(ValueError, match="and 25 more"):
            checkpoints.restore(5, {str(i): jnp.ones(2) for i in range(30)})


@pytest.mark.parametrize(
    ("step", "state", "meta", "told"),
    [
        (2, {"a": 1.0}, {}, ["a is a float, wanted an array"]),
        (2, {}, {}, ["no named array"]),
        (2, np.ones(3), {}, ["no named array"]),
        (2, {"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, {}, ["share a name"]),
        (2, tiny(), {"mean": np.ones(3)}, ["plain JSON", "ndarray"]),
        (2, tiny(), {"lr": float("nan")}, ["plain JSON"]),
        (1, tiny(), {}, ["step 1 is there already", "--workdir"]),
        (0, {"a": "text"}, {"f": print}, ["step 1 is there", "a is a str", "plain JSON"]),
    ],
)
def test_refused_save_writes_nothing(
    tmp_path: Path, step: int, state: Any, meta: dict[str, Any], told: list[str]
) -> None:
    with run_schedule(tmp_path, {1: 0.5}) as checkpoints:
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=f"cannot save step {step} to ") as error:
            checkpoints.save(step, state, meta)
        for part in told:
            assert part in str(error.value)
        assert checkpoints.steps() == [1]
        assert contents(tmp_path) == before
        checkpoints.save(2, tiny(), {})  # the run goes on
