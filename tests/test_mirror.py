"""Workdirs in a bucket: what a run leaves there is whole, whatever fails, and anybody goes on."""

import shutil

import pytest
import small
from bucket_server import BUCKET

from otseg_jax import buckets
from otseg_jax.checkpoints import lock
from otseg_jax.training import loop

RUN = f"{BUCKET}/runs/one"
GONE = r"s3://bucket/runs/one cannot be reached .*Unavailable.*: the same command goes on from what"


@pytest.fixture
def another_machine(monkeypatch, tmp_path):
    """Function that makes this machine one that has no copies."""
    numbers = iter(range(9))
    return lambda: monkeypatch.setenv(buckets.HOME, str(tmp_path / f"machine{next(numbers)}"))


def written(name, text="x"):
    path = buckets.here(RUN) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def step(number, *more):
    for name in ("state/a", "state/b", "files.json", *more):
        written(f"checkpoints/{number}/{name}", f"{name} of {number}")


def here():
    """Files of the copy, but for what is of this machine."""
    home, mine = buckets.here(RUN), (buckets.RECORD, buckets.LOCK, lock.NAME, lock.OWNER)
    names = [p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()]
    return {name for name in names if name not in mine}


def held():
    with lock.hold(RUN):
        return here()


def test_a_workdir_goes_up_and_comes_down(server, another_machine):
    with lock.hold(RUN) as folder:
        assert folder == buckets.here(RUN)
        step(1)
        written("metrics.jsonl", "1\n")
        written(".results.json.0a1b.part")
        written("checkpoints/2.orbax-checkpoint-tmp/state/a")
        buckets.Copy(RUN).push()
        # in the next save the first step goes, and the log grows
        shutil.rmtree(folder / "checkpoints/1")
        step(2, "metrics.json")
        written("metrics.jsonl", "1\n2\n")
    wanted = {f"checkpoints/2/{n}" for n in ("state/a", "state/b", "files.json", "metrics.json")}
    another_machine()
    assert held() == wanted | {"metrics.jsonl"}
    assert (buckets.here(RUN) / "metrics.jsonl").read_text() == "1\n2\n"
    before = len(server.asked)
    assert held() == wanted | {"metrics.jsonl"}
    moved = [line for line in server.asked[before:] if "writable" not in line]
    assert not [line for line in moved if line != "GET /bucket"], "nothing was changed"


@pytest.mark.parametrize("last", ["checkpoints/2/state", "checkpoints/2/files.json"])
def test_a_step_that_went_up_in_part_is_none(server, another_machine, last):
    with lock.hold(RUN):
        step(1)
    server.refuse = lambda asked: asked.startswith("PUT") and last in asked
    with pytest.raises(buckets.Unreachable, match=GONE), lock.hold(RUN):
        step(2)
    server.refuse = lambda asked: False
    ones = {f"checkpoints/1/{name}" for name in ("state/a", "state/b", "files.json")}
    another_machine()
    assert held() == ones
    # what is left of it was removed
    assert buckets.Copy(RUN).names("checkpoints") == ["1"]


def test_what_could_not_go_up_goes_up_later(server, another_machine, caplog):
    with lock.hold(RUN):
        step(1)
    server.refuse = lambda asked: asked.startswith("PUT") and "writable" not in asked
    with pytest.raises(buckets.Unreachable, match=GONE), lock.hold(RUN):
        step(2)
    # an error of the run itself is what is told, if both fail
    with pytest.raises(ValueError, match="of the run"), lock.hold(RUN):
        raise ValueError("of the run")
    assert "s3://bucket/runs/one cannot be reached" in caplog.text
    server.refuse = lambda asked: False
    twos = {
        f"checkpoints/{n}/{name}" for n in (1, 2) for name in ("state/a", "state/b", "files.json")
    }
    assert held() == twos
    another_machine()
    assert held() == twos


def test_the_bucket_wins_where_another_machine_went_on(
    server, another_machine, tmp_path, monkeypatch
):
    with lock.hold(RUN):
        step(1)
    server.refuse = lambda asked: asked.startswith("PUT") and "writable" not in asked
    with pytest.raises(buckets.Unreachable), lock.hold(RUN):
        step(9)
    server.refuse = lambda asked: False
    another_machine()
    with lock.hold(RUN):
        step(2)
    monkeypatch.setenv(buckets.HOME, str(tmp_path / "cache"))
    assert {name.split("/")[1] for name in held()} == {"1", "2"}
    assert not (buckets.here(RUN) / "checkpoints/9").exists()


def test_a_bucket_that_cannot_be_used_is_told_before_the_work(server, tmp_path):
    with pytest.raises(buckets.Unreachable, match="there is no such bucket"):
        loop.train(small.settings(), "s3://other/run")
    server.refuse = lambda asked: asked.startswith("PUT")
    with pytest.raises(buckets.Unreachable, match=GONE):
        loop.train(small.settings(), RUN)
    assert not here()
