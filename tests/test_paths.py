"""Paths: one name is one place, whoever is given it."""

import os
from pathlib import Path

import numpy as np
import pytest
import small

from otseg_jax import paths, text
from otseg_jax.checkpoints import restore
from otseg_jax.convert import convert, published
from otseg_jax.training import loop
from otseg_jax.weights import hub, source


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another one to stand in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_names_of_one_place(home):
    wanted = home / "a b" / "ü"
    for name in ("~/a b/ü", wanted, str(wanted), "../home/a b/ü"):
        assert Path(os.path.normpath(paths.resolve(name))) == wanted
        assert Path(os.path.normpath(paths.local(name))) == wanted
    assert paths.local("run:1") == Path.cwd() / "run:1"  # a colon alone makes no address


def test_a_whole_run_is_in_one_place(home):
    options = small.settings(**{"text.cache": "~/cache"})
    loop.train(options, "~/run")
    assert {path.name for path in home.iterdir()} == {"run", "cache"}
    assert (home / "run" / "results.json").is_file()
    assert (home / "run" / "checkpoints" / "4").is_dir()
    assert not list(Path.cwd().iterdir())
    # and it is found by the same name
    assert restore.find("~/run").where == "~/run, step 4"
    assert source.find("~/run").path == home / "run"


def test_weights_and_classes_by_the_name_that_was_typed(home):
    convert("shapes-clip", "~/clip")
    assert {path.name for path in home.iterdir()} == {"clip"}
    assert source.is_model("~/clip")
    assert hub.find("~/clip", ()) == home / "clip"
    assert text.vocabulary_size("~/clip/tokenizer") > 100
    (home / "classes.csv").write_text("name,split\ncat,seen\ndog,unseen\n")
    options = small.settings(**{"data.dataset": "folder", "data.root": "~"})
    assert published.vocabulary_of(options).names == ("cat", "dog")
    assert published.vocabulary_of(options, "~/classes.csv").names == ("cat", "dog")
    np.save(home / "text.npy", np.ones((2, 1, 4), np.float32))
    assert text.read_embeddings("~/text.npy", classes=2, templates=1, width=4).shape == (2, 1, 4)
