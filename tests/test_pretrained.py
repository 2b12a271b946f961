"""Model directories in use: from a trained run, to training, evaluation and prediction."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from oracles import torch
from PIL import Image

import otseg_jax
from otseg_jax import build
from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.spec import Origin, Spec
from otseg_jax.convert import convert, read
from otseg_jax.convert.hints import Hints
from otseg_jax.data import classes
from otseg_jax.evaluation import report
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig
from otseg_jax.models.otseg import FROZEN, TRAINABLE, OTSeg, OTSegConfig
from otseg_jax.training import loop, start
from otseg_jax.weights import clip, names


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run, as after its first step, and its evaluation."""
    workdir, options = tmp_path_factory.mktemp("run"), small.settings()
    parts = build.assemble(options, classes.VOCABULARIES["shapes"])
    with start.checkpoints_of(workdir, options, parts.vocabulary) as checkpoints:
        state = {"trainable": parts.trainable}
        checkpoints.save(1, state, parts.record.to_json(), text=np.asarray(parts.text))
    report.evaluate(options, workdir)
    return workdir


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """The run as a model directory."""
    dest = tmp_path_factory.mktemp("model") / "m"
    assert convert(str(run), dest).endswith("(otseg_jax run) → " + f"{dest} (model)")
    return dest


def test_a_run_becomes_a_model_that_evaluates_the_same(run, model, tmp_path):
    report.evaluate(small.settings(init_from=str(model)), tmp_path / "eval")
    want = json.loads((run / report.RESULTS).read_text())
    assert json.loads((tmp_path / "eval" / report.RESULTS).read_text()) == want
    stored = pretrained.read(model)
    assert stored.clip.tokenizer == model / "tokenizer"
    assert stored.spec.vocabulary == classes.VOCABULARIES["shapes"]
    assert stored.origin.format == "otseg_jax run"


def test_others_may_read_what_is_written(model, tmp_path):
    """As `touch` would leave files: safetensors alone writes for its own user."""
    convert(str(model), tmp_path / "hf", format="hf")
    (tmp_path / "plain").touch()
    for folder in (model, tmp_path / "hf"):
        modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
        assert modes == {(tmp_path / "plain").stat().st_mode}
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "hf").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_the_segmenter_and_the_evaluation_agree(run, model, tmp_path):
    options = small.settings(init_from=str(model), **{"eval.save_predictions": True})
    report.evaluate(options, tmp_path / "eval")
    source = build.open_split(options, "val")
    photos = [source[i]["image"] for i in range(len(source))]
    stored = [
        np.asarray(
            Image.open(tmp_path / "eval/predictions/otseg_plus" / f"{source[i]['name']}.png")
        )
        for i in range(len(source))
    ]
    for segmenter in (otseg_jax.load(model), otseg_jax.load(run, batch_size=1)):
        for found, want in zip(segmenter(photos), stored, strict=True):
            np.testing.assert_array_equal(found.labels, want)


def test_words_of_your_own(model):
    segmenter = otseg_jax.load(model)
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    names = list(segmenter.vocabulary.names)
    prepared = segmenter.prepare(photo)
    stored = segmenter.scores(prepared, size=(40, 56))
    assert stored.shape == (20, 40, 56)
    # the stored vocabulary, asked for by name: embedded anew, filled up to 32 classes
    again = segmenter.scores(prepared, names, size=(40, 56))
    np.testing.assert_allclose(again, stored, atol=2e-5)
    few = segmenter.scores(prepared, [names[3], "a purple hippo"], size=(40, 56))
    np.testing.assert_allclose(few[0], stored[3], atol=2e-5)
    label = segmenter(photo, [names[3], "a purple hippo"])
    np.testing.assert_array_equal(label, few.argmax(0))
    plain = segmenter.scores(prepared, size=(40, 56), method="otseg")
    assert not np.allclose(plain, stored)
    with pytest.raises(ValueError, match=r"method='zegclip': this model has otseg, otseg_plus"):
        segmenter.scores(prepared, method="zegclip")
    with pytest.raises(ValueError, match=r"words\[0\] is blank"):
        segmenter.embed([" "])


def test_training_starts_from_a_model_directory(model, tmp_path):
    loop.train(small.settings("transductive", init_from=str(model)), tmp_path / "run")
    assert (tmp_path / "run" / report.RESULTS).is_file()
    # and its run, which names the model as its CLIP, becomes a model in turn
    convert(str(tmp_path / "run"), tmp_path / "again", hints=Hints(clip=str(model)))
    first, second = pretrained.read(model), pretrained.read(tmp_path / "again")
    assert second.clip.fingerprint == first.clip.fingerprint
    np.testing.assert_array_equal(
        second.clip.vision["blocks/0/mlp/up/kernel"], first.clip.vision["blocks/0/mlp/up/kernel"]
    )
    assert not np.array_equal(second.trained["q_proj/kernel"], first.trained["q_proj/kernel"])


def test_models_that_do_not_fit_a_training(model, tmp_path):
    def start(**changes):
        loop.train(small.settings(init_from=str(model), **changes), tmp_path / "run")

    with pytest.raises(ValueError, match=r"init_step=3: .*holds one step; leave it 0"):
        start(init_step=3)
    with pytest.raises(ValueError, match=r"not of this configuration's model(?s:.)*prompts/first"):
        start(**{"model.prompt_tokens": 5})
    with pytest.raises(ValueError, match=r"text\.templates were .* and are the"):
        start(**{"text.templates": ("the {}.", "this {}.")})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_workdir_whose_clip_changed(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        convert(str(run), tmp_path / "m", hints=Hints(clip="nowhere"))
    with pytest.raises(ValueError, match=r"none of its steps \[1\] has an evaluation"):
        convert(str(run), tmp_path / "m", hints=Hints(checkpoint="best"))
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        convert(str(run), tmp_path / "m", hints=Hints(checkpoint="7"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_trained_here_goes_to_the_original_program(model, tmp_path):
    convert(str(model), tmp_path / "a.pth", format="mmseg")
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    attention = torch.nn.MultiheadAttention(16, 8)
    prefix = "decode_head.decoder_1.layers.0.self_attn."
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    attention.load_state_dict(own, strict=True)
    weights = state["decode_head.loss_decode.criterion.empty_weight"]
    assert weights.tolist() == [*[1.0] * 15, pytest.approx(0.1)]  # 15 seen classes and "none"
    stored = pretrained.read(model)
    np.save(tmp_path / "t.npy", stored.embeddings)
    options = small.settings(**{"text.embeddings": str(tmp_path / "t.npy")})
    hints = Hints(settings=options, vision_heads=2, text_heads=2)
    back = read.load(tmp_path / "a.pth", hints=hints).model.leaves()
    assert set(back) == set(stored.leaves())
    # unit vectors that were read from a file are scaled to unit length once more
    np.testing.assert_allclose(back.pop("embeddings"), stored.embeddings, atol=1e-7)
    for name, leaf in back.items():
        np.testing.assert_array_equal(leaf, stored.leaves()[name])


def real_words(clip_files) -> pretrained.Model:
    """A small random OTSeg whose text tower reads CLIP's real tokens."""
    shared = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64, "embed_dim": 32}
    vision = VisionConfig(image_size=64, patch_size=16, **shared)
    words = TextConfig(vocab_size=49408, context_length=77, **shared)
    config = OTSegConfig(prompt_tokens=2, iterations=5)
    states = {
        "text": nnx.state(TextTower(words, rngs=nnx.Rngs(1))),
        **nnx.state(OTSeg(vision, config, rngs=nnx.Rngs(0))),
    }
    leaves = {name: np.asarray(leaf) for name, leaf in names.flatten(states).items()}
    towers = {n: leaf for n, leaf in leaves.items() if n.startswith(("vision/", "text/"))}
    loaded = clip.identified(towers, vision, words, name="test", tokenizer=clip_files / "tokenizer")
    voc, templates = classes.VOCABULARIES["voc12"], ("a photo of a {}.", "a part of a {}.")
    return pretrained.Model(
        clip=loaded,
        origin=Origin(name="test", format="random"),
        spec=Spec(
            dataset="voc12",
            classes=voc.names,
            unseen=voc.unseen,
            palette=voc.palette,
            templates=templates,
            regime="inductive",
            model=config,
            outputs=config.outputs(),
            mean=(120.0, 120.0, 120.0),
            std=(60.0, 60.0, 60.0),
            scale=(256.0, 64.0),
            window=64,
            stride=48,
            seen_offset=0.1,
            clip_source="test",
        ),
        trained={name: leaf for name, leaf in leaves.items() if name not in towers},
        embeddings=loaded.embed(voc.names, templates),
    )


def test_real_photos_with_real_words(clip_files, photos, tmp_path):
    pretrained.write(tmp_path / "m", real_words(clip_files))
    segmenter = otseg_jax.load(tmp_path / "m")
    path = sorted((photos / "voc2012_mini").rglob("JPEGImages/*.jpg"))[0]
    photo = np.asarray(Image.open(path).convert("RGB"))[:200, :120]
    own = segmenter(photo, ["zebra crossing", "sky", "my neighbour's cat"]).labels
    assert own.shape == photo.shape[:2]
    assert own.max() < 3
    prepared, size = segmenter.prepare(photo), photo.shape[:2]
    # a name that was trained with labels: its offset is asked for, or there is none
    asked = otseg_jax.load(tmp_path / "m", seen_offset=0.1)
    by_name = asked.scores(prepared, ["cat"], size=size)
    np.testing.assert_allclose(
        segmenter.scores(prepared, ["cat"], size=size), by_name + 0.1, atol=2e-5
    )
    want = segmenter.scores(prepared, size=size)[segmenter.vocabulary.names.index("cat")]
    np.testing.assert_allclose(by_name[0], want, atol=2e-5)


def test_frozen_and_trained_leaves_are_told_by_name(model):
    stored = pretrained.read(model)
    graphdef, trained, frozen = nnx.split(stored.build(), TRAINABLE, ...)
    assert all(name.startswith(f"{FROZEN}/") for name in names.flatten(frozen))
    assert not any(name.startswith(f"{FROZEN}/") for name in names.flatten(trained))
    assert jax.tree.leaves(nnx.merge(graphdef, trained, frozen))[0].dtype == jnp.float32
