"""What may befall a checkpoint: damage to any file, a failed or killed save, other devices."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_run import META, abstract, assert_same, contents, run_schedule, tiny

from otseg_jax.checkpoints import restore, spec
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.cli import is_ours
from otseg_jax.data import shapes


def spoil(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        middle = len(data) // 2
        file.write_bytes(data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :])


@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
def test_damage_to_any_file(tmp_path: Path, how: str) -> None:
    """Of two steps the newer is damaged, one file at a time: no wrong value, and none lost."""
    state = {"weight": jax.random.normal(jax.random.key(0), (50, 60)), "count": jnp.zeros(())}
    text = np.ones((2, 3, 4), np.float32)
    with Checkpoints(tmp_path / "good") as checkpoints:
        checkpoints.save(1, state, META, text=text)
        checkpoints.judge(1, {"hiou": 0.9})
        checkpoints.save(2, state, META, text=text)
        checkpoints.judge(2, {"hiou": 0.5})
    run, refused = tmp_path / "bad", 0
    for name in sorted(contents(tmp_path / "good" / "2")):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / "good", run)
        spoil(run / "2" / name, how)
        before, messages = contents(run), []
        with Checkpoints(run) as checkpoints:
            for read, wanted in (
                (lambda: checkpoints.restore(2, state), state),
                (lambda: {"text": checkpoints.read_text(2)}, {"text": text}),
                (lambda: checkpoints.read_meta(2), META),
            ):
                try:
                    got = read()
                except ValueError as error:
                    messages.append(str(error))
                else:
                    jax.tree.map(np.testing.assert_array_equal, got, wanted)
            assert (checkpoints.latest_step(), checkpoints.best_step()) == (2, 1)
            assert_same(checkpoints.restore(1, state), state)
        assert bool(messages) == name.startswith(("state/", "meta/", "text/", "files.json")), name
        for message in messages:
            assert f"{run}/2 is damaged" in message
            assert "(there: step 1)" in message
            assert len(message) < 600
        refused += len(messages)
        assert contents(run) == before
    assert refused > 12


@pytest.mark.parametrize("listing", ["", "[1]", "{}", '{"state/_METADATA": 3}', '{"meta/x": [1]}'])
def test_unusable_list_of_files(tmp_path: Path, listing: str) -> None:
    run_schedule(tmp_path, {1: 0.9, 2: 0.5}).close()
    (tmp_path / "2" / "files.json").write_text(listing)
    with Checkpoints(tmp_path) as checkpoints:
        for read in (lambda: checkpoints.restore(2, tiny()), lambda: checkpoints.read_meta(2)):
            with pytest.raises(ValueError, match=r"/2 is damaged: files\.json "):
                read()


def test_lost_item(tmp_path: Path) -> None:
    run_schedule(tmp_path, {1: 0.9, 2: 0.5}).close()
    shutil.rmtree(tmp_path / "2" / "state")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.read_meta(2) == {}
        with pytest.raises(ValueError, match=r"state of .*/2 is damaged: state/.* is missing"):
            checkpoints.restore(2, tiny())


def test_foreign_folders_are_let_alone(tmp_path: Path) -> None:
    """A number for a name does not make a checkpoint; what is not ours is not ours to delete."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "notes.txt").write_text("mine")
    (tmp_path / "notes").mkdir()
    with run_schedule(tmp_path, {8: 0.1, 9: 0.2}) as checkpoints:
        assert checkpoints.best_step() == 9
        with pytest.raises(ValueError, match=r"/7 is damaged: files\.json cannot be read"):
            checkpoints.read_meta(7)
    assert {f.name for f in tmp_path.iterdir()} == {"7", "9", "notes"}
    assert (tmp_path / "7" / "notes.txt").read_text() == "mine"


def test_damaged_steps_are_never_deleted(tmp_path: Path) -> None:
    run_schedule(tmp_path, {1: 0.9, 2: 0.5}).close()
    spoil(tmp_path / "1" / "meta" / "metadata", "cut")
    before = contents(tmp_path / "1")
    with run_schedule(tmp_path, {3: 0.1, 4: 0.2}) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([1, 2, 4], 2)
    assert contents(tmp_path / "1") == before


def test_failed_save_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """The last act of a save is a rename, which a file of that name prevents."""
    with run_schedule(tmp_path, {1: 0.5, 2: 0.1}) as checkpoints:
        before = {step: contents(tmp_path / step) for step in ("1", "2")}
        checkpoints.save(3, {"weight": jnp.ones(2**24)}, {})
        (tmp_path / "3").write_text("in the way")
        with pytest.raises(OSError, match=r"step 3 to .* failed .*kept: step 1, step 2") as error:
            checkpoints.wait()
        assert str(tmp_path) in str(error.value)
        assert (checkpoints.steps(), checkpoints.best_step()) == ([1, 2], 1)
        assert {step: contents(tmp_path / step) for step in ("1", "2")} == before
        (tmp_path / "3").unlink()
        checkpoints.save(3, tiny(3.0), {})
        checkpoints.judge(3, {"hiou": 0.9})
        assert (checkpoints.steps(), checkpoints.best_step()) == ([3], 3)
        assert_same(checkpoints.restore(3, tiny()), tiny(3.0))


def in_subprocess(code: str, directory: Path, *, devices: int) -> subprocess.CompletedProcess[str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(directory)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_kill_during_save_leaves_the_previous(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        import jax, numpy as np
        from otseg_jax.checkpoints.run import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        noise = np.random.default_rng(0).integers(0, 2**31, 2**24).astype(np.int32)
        checkpoints.save(1, {"noise": noise[:1000]}, {"run": 1})
        checkpoints.judge(1, {"hiou": 0.5})
        checkpoints.wait()
        checkpoints.save(2, {"noise": noise}, {"run": 1})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = in_subprocess(code, tmp_path, devices=1)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # else the save was over before the kill, and the test shows nothing
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith("2.")]
    noise = np.random.default_rng(0).integers(0, 2**31, 2**24).astype(np.int32)[:1000]
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([1], 1)
        assert_same(checkpoints.restore(1, {"noise": noise}), {"noise": noise})
        checkpoints.save(2, {"noise": noise + 1}, {})
        assert_same(checkpoints.restore(2, {"noise": noise}), {"noise": noise + 1})
    assert {f.name for f in tmp_path.iterdir()} == {"1", "2"}


def test_restores_onto_other_devices(tmp_path: Path) -> None:
    """One device saves; four restore, each array laid out its own way, and save; one restores."""
    code = """
        import sys
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from otseg_jax.checkpoints.run import Checkpoints

        assert jax.device_count() == 4
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        pair = jax.sharding.Mesh(jax.devices()[:2], ("data",))
        wanted = np.arange(64, dtype=np.float32).reshape(8, 8)

        def restore(step, **shardings):
            target = {k: jax.ShapeDtypeStruct((8, 8), "float32", sharding=s)
                      for k, s in shardings.items()}
            restored = checkpoints.restore(step, target)
            for i, (k, sharding) in enumerate(shardings.items()):
                assert restored[k].sharding == sharding, k
                np.testing.assert_array_equal(restored[k], wanted + i)
            return restored

        with Checkpoints(sys.argv[1]) as checkpoints:
            rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
            restored = restore(1, a=rows, b=columns, c=NamedSharding(mesh, P()))
            checkpoints.save(2, restored, {})
            restore(2, a=columns, b=NamedSharding(pair, P("data")), c=rows)
        print("done")
    """
    wanted = np.arange(64, dtype=np.float32).reshape(8, 8)
    state = {"a": wanted, "b": wanted + 1, "c": wanted + 2}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    ran = in_subprocess(code, tmp_path, devices=4)
    assert ran.stdout == "done\n", ran.stderr
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(2, abstract(state)), state)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A workdir with step 1, evaluated."""
    save(tmp_path, 1)
    return tmp_path


def state(step: int) -> dict[str, np.ndarray]:
    return {"x": np.full(3, step, np.float32)}


def save(workdir: Path, step: int) -> None:
    """As the next step of a training there: the one before it is deleted, unless it is the best."""
    described = spec.describe(small.settings(), shapes.Shapes("val", size=1).vocabulary)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        record = spec.Record(described, small.settings())
        checkpoints.save(step, {"trainable": state(step)}, record.to_json())
        checkpoints.judge(step, {"hiou": float(step)})


@pytest.mark.parametrize("wanted", ["latest", "best"])
def test_a_step_deleted_before_it_is_restored_gives_way_to_the_next(run, wanted, caplog):
    caplog.set_level("INFO", logger="otseg_jax")
    found = restore.find(run, wanted)
    save(run, 2)
    assert found.restore(state(0))["x"].tolist() == [2, 2, 2]
    assert "as the training there goes on (now there: step 2); best, half and" in caplog.text
    assert f"choosing {wanted} again" in caplog.text


def test_a_named_step_that_was_deleted_is_told(run):
    found = restore.find(run, "1")
    save(run, 2)
    with pytest.raises(ValueError, match=r"step 1 of .* was deleted .*: step 2\);") as told:
        found.restore(state(0))
    assert is_ours(told.value)


def test_a_step_deleted_while_it_is_read_gives_way_to_the_next(run):
    """The files of step 1 vanish between the look at its description and that at its arrays."""

    def work(checkpoints, step, record):
        if step < 3:
            save(run, step + 1)
        return step, checkpoints.restore(step, {"trainable": state(0)})["trainable"]["x"].tolist()

    assert restore.read(run, "latest", work) == (3, [3, 3, 3])
    with pytest.raises(ValueError, match=r"step 3 of .* was deleted .*now there: step 4\);"):
        restore.read(run, "3", lambda *read: (save(run, 4), read[0].read_text(3)))
