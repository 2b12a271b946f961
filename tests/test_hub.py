"""The hub, by its real client against a stand-in: what is fetched, published, and refused."""

import logging
import shutil

import hub_server
import huggingface_hub.constants
import numpy as np
import pytest
from huggingface_hub import ModelCard

import otseg_jax
from otseg_jax.checkpoints import pretrained
from otseg_jax.cli import is_ours
from otseg_jax.convert import convert
from otseg_jax.data.shapes import Shapes
from otseg_jax.weights import hub, source

ONNX = {"onnx/model.onnx", "tf_model.h5", "flax_model.msgpack", "model.fp16.safetensors"}
SIZES, OPEN = {"config.json"}, {"open_clip_config.json"}


@pytest.mark.parametrize(
    ("there", "weights"),
    [
        ({"model.safetensors", "pytorch_model.bin", *ONNX, *SIZES}, SIZES | {"model.safetensors"}),
        ({"pytorch_model.bin", *ONNX, *SIZES}, SIZES | {"pytorch_model.bin"}),
        ({*ONNX, *SIZES}, SIZES | {"flax_model.msgpack"}),
        (
            {
                *("model.safetensors.index.json", "model-1-of-2.safetensors", *SIZES, *ONNX),
                *("model-2-of-2.safetensors", "pytorch_model.bin"),
            },
            {"model.safetensors.index.json", "model-1-of-2.safetensors", *SIZES}
            | {"model-2-of-2.safetensors"},
        ),
        (
            {"open_clip_model.safetensors", "open_clip_pytorch_model.bin", *OPEN},
            OPEN | {"open_clip_model.safetensors"},
        ),
        (
            {"open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin", *OPEN}
            | SIZES,
            SIZES | {"model.safetensors"},
        ),
        ({"open_clip_pytorch_model.bin", *OPEN}, OPEN | {"open_clip_pytorch_model.bin"}),
        (
            # no sizes beside these: they are of no CLIP that is read
            {"open_clip_pytorch_model.bin", "model.safetensors", *OPEN},
            OPEN | {"open_clip_pytorch_model.bin"},
        ),
    ],
    ids=lambda names: f"{len(names)} of {min(names)}",
)
def test_one_copy_of_the_weights_is_fetched_and_found_without_the_hub(there, weights, tmp_path):
    there |= {"README.md", "predictions.png", "merges.txt", "training_args.bin"}
    with hub_server.at_hand(tmp_path) as server:
        server.repositories["some/clip"] = {name: name.encode() for name in there}
        folder = hub.find("some/clip", source.PATTERNS, source.CHOICES)
        wanted = {*weights, "merges.txt", *(there & OPEN)}  # which tells a normalisation, too
        assert set(server.fetched) == wanted
        assert len(server.fetched) == len(set(server.fetched))
        server.broken = "/"
        assert hub.find("some/clip", source.PATTERNS, source.CHOICES) == folder
    assert {p.name for p in folder.iterdir()} == wanted


def test_without_a_network_what_was_fetched_is_used(tmp_path, monkeypatch, caplog):
    with hub_server.at_hand(tmp_path) as server:
        server.repositories["some/clip"] = {"config.json": b"{}", "model.safetensors": b"x"}
        found = hub.find("some/clip", source.PATTERNS, source.CHOICES)
    # the server is gone
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", hub_server.WRITE)
    with caplog.at_level(logging.INFO, logger="otseg_jax"):
        assert hub.find("some/clip", source.PATTERNS, source.CHOICES) == found
    assert "some/clip: as it was fetched before" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"other.* cannot be reached \(no connection\)"):
        hub.find("some/other", source.PATTERNS, source.CHOICES)
    with pytest.raises(ValueError, match=r"cannot be published: .*\(no connection\): try again"):
        hub.check_login("someone/model")


@pytest.mark.parametrize(
    ("name", "broken", "token", "told"),
    [
        ("no/such", "", None, "there is no such model, or it is private: .*`hf auth login`"),
        ("some/secret", "", None, "there is no such model, or it is private: .*HF_TOKEN"),
        ("some/clip", "/api/", None, r"cannot be reached \(it answered 500\): try again later"),
        ("some/clip", "/resolve/", None, r"cannot be reached \(it answered 500\)"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(name, broken, token, told, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
    with hub_server.at_hand(tmp_path, token) as server:
        files = {"config.json": b"{}", "model.safetensors": b"x"}
        server.repositories |= {"some/clip": files, "some/secret": files}
        server.private, server.broken = {"some/secret"}, broken
        with pytest.raises(FileNotFoundError, match=told) as error:
            otseg_jax.load(name)
    assert is_ours(error.value)
    assert str(error.value).startswith(f"{name!r} is no folder here, and could not be had from ")
    assert "\n" not in str(error.value)


def test_a_private_model_is_had_by_who_is_logged_in(tmp_path):
    with hub_server.at_hand(tmp_path) as server:
        server.repositories["some/secret"] = {"config.json": b"{}", "model.safetensors": b"x"}
        server.private = {"some/secret"}
        assert hub.find("some/secret", source.PATTERNS, source.CHOICES).is_dir()


@pytest.fixture(scope="module")
def shapes():
    return otseg_jax.load("shapes")


def test_the_packaged_model_goes_there_and_comes_back(shapes, tmp_path, caplog):
    with (
        hub_server.at_hand(tmp_path) as server,
        caplog.at_level(logging.INFO, logger="otseg_jax"),
    ):
        address = shapes.push_to_hub("lab/shapes", private=True)
        assert address == f"{server.address}/lab/shapes/commit/{hub_server.SHA}"
        assert set(server.repositories["lab/shapes"]) == {
            *("README.md", "config.json", "model.safetensors"),
            *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        }
        assert server.private == {"lab/shapes"}
        assert server.repositories["lab/shapes"]["model.safetensors"] in server.large.values()
        again = otseg_jax.load("lab/shapes")
        assert sorted(server.fetched) == [
            *("config.json", "model.safetensors"),
            *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
        ]
        card = ModelCard(server.repositories["lab/shapes"]["README.md"].decode())
    assert "names no licence: --license=NAME (push_to_hub(license=NAME))" in caplog.text
    assert card.data.license is None
    assert card.data.eval_results is None
    assert "None are stated" in card.text
    assert card.data.pipeline_tag == "image-segmentation"
    picture = Shapes("val", size=100)[7]["image"]
    np.testing.assert_array_equal(again(picture).labels, shapes(picture).labels)
    words = ["red disc", "blue star", "nothing at all"]
    np.testing.assert_array_equal(again(picture, words).labels, shapes(picture, words).labels)


def test_a_clip_alone_goes_there_and_comes_back(tmp_path):
    clip = otseg_jax.load("shapes-clip", method="sclip")
    with hub_server.at_hand(tmp_path) as server:
        clip.push_to_hub("someone/clip", license="apache-2.0")
        again = otseg_jax.load("someone/clip", method="sclip")
        card = ModelCard(server.repositories["someone/clip"]["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "Nothing was trained" in card.text
    assert again.clip.fingerprint == clip.clip.fingerprint


@pytest.mark.parametrize(
    ("name", "token", "license", "told"),
    [
        ("model", hub_server.WRITE, "", "'model' cannot be published to: wanted .*owner/name"),
        ("someone/model", None, "", "nobody is logged in: log in with `hf auth login`.*HF_TOKEN"),
        ("someone/model", "hf_old", "", "the token is not accepted: .*`hf auth login`"),
        ("someone/model", hub_server.READ, "", "may only read; make one that may write at "),
        ("google/model", hub_server.WRITE, "", r"login is someone, .*someone/…, lab/…"),
        ("someone/model", hub_server.WRITE, "MIT", r"license='MIT': .*must be one of.*names of"),
    ],
)
def test_what_may_not_be_published_is_told_before_the_work(
    name, token, license, told, shapes, tmp_path
):
    with hub_server.at_hand(tmp_path, token) as server:
        with pytest.raises(ValueError, match=told) as error:
            convert("shapes-clip", tmp_path / "clip", upload=name, license=license)
        assert is_ours(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=told):
            shapes.push_to_hub(name, license=license)
        assert not server.repositories
    assert not (tmp_path / "clip").exists()


@pytest.mark.parametrize("broken", ["/repos/create", "/preupload/", "/lfs", "/commit/"])
def test_the_hub_has_all_files_or_none(broken, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
    dest = tmp_path / "clip"
    with hub_server.at_hand(tmp_path) as server:
        server.broken = broken
        with pytest.raises(ValueError, match=r"someone/clip was not published: .*500") as error:
            convert("shapes-clip", dest, upload="someone/clip", license="mit")
        assert is_ours(error.value)
        assert str(error.value).endswith(
            f". {dest} is written: `hf upload someone/clip {dest}` sends it"
        )
        assert not server.repositories.get("someone/clip")
    assert pretrained.read(dest).clip.fingerprint
    assert ModelCard.load(dest / "README.md").data.license == "mit"
    shutil.rmtree(dest)


def test_the_licence_that_a_card_has_on_the_hub_stays(tmp_path):
    clip = otseg_jax.load("shapes-clip")
    with hub_server.at_hand(tmp_path) as server:
        clip.push_to_hub("someone/clip")
        files = server.repositories["someone/clip"]
        card = ModelCard(files["README.md"].decode())
        card.data.license = "mit"  # as on the site
        files["README.md"] = str(card).encode()
        clip.push_to_hub("someone/clip")
        assert ModelCard(files["README.md"].decode()).data.license == "mit"
        clip.push_to_hub("someone/clip", license="apache-2.0")
        assert ModelCard(files["README.md"].decode()).data.license == "apache-2.0"


def test_flags_of_a_card_need_an_upload(tmp_path):
    with pytest.raises(ValueError, match="--license and --private are of what --upload"):
        convert("shapes-clip", tmp_path / "clip", license="mit")
