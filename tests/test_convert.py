"""Conversion end to end: the authors' checkpoint in, their numbers out, their file back."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from oracles import DATA, authors_labels, numbers, reference_sinkhorn, relative_error, torch
from safetensors.numpy import load_file, save_file
from test_hugging_face import torch_clip
from transformers import CLIPModel

import otseg_jax
from otseg_jax import build, text
from otseg_jax.checkpoints import pretrained
from otseg_jax.convert import convert, read, verify, write
from otseg_jax.convert.__main__ import main as convert_main
from otseg_jax.convert.hints import Hints
from otseg_jax.data import regimes
from otseg_jax.models.outputs import upsample
from otseg_jax.training import losses, pseudo_labels
from otseg_jax.weights.clip import resize_position_embedding

SOURCE = DATA / "otseg_tiny.pth"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Class list and embeddings, as a user would have them."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "classes.csv").write_text(tiny.CLASSES)
    np.save(folder / "otseg.npy", numbers("otseg_tiny_io")["text_features"])
    np.save(folder / "zegclip.npy", numbers("zegclip_tiny_io")["text_features"])
    return folder


def hints(inputs, config=None) -> Hints:
    """What the authors' file does not tell; `config` is that of its data set."""
    return Hints(
        settings=None if config is None else build.settings_of(config),
        classes=str(inputs / "classes.csv"),
        vision_heads=12,
        text_heads=8,
    )


@nnx.jit
def run(model, image, text):
    return model(image, text)


def converted(inputs, dest, regime="inductive", decoder="mpsa", **more) -> Path:
    zegclip = decoder == "cross_attention"
    config = tiny.config(
        regime,
        embeddings=inputs / ("zegclip.npy" if zegclip else "otseg.npy"),
        templates=1 if zegclip else 4,
    )
    config.model.decoder = decoder
    convert(str(SOURCE), dest, hints=hints(inputs, config), **more)
    return dest


@pytest.fixture(scope="module")
def otseg(inputs, tmp_path_factory) -> Path:
    """The authors' checkpoint as a model directory; tests that damage it copy it first."""
    return converted(inputs, tmp_path_factory.mktemp("model") / "otseg")


def parts_of_loss(maps, regime_name):
    expected = authors_labels()
    regime = regimes.resolve(regime_name, num_classes=7, unseen=tiny.UNSEEN)
    labels = pseudo_labels.relabel(jnp.asarray(expected), regime.label_table)
    mixture = dict.fromkeys(maps, 1 / len(maps))
    target = pseudo_labels.pseudo_label(maps, labels, regime.unseen, mixture=mixture)
    pairs = jnp.maximum(losses.count_pairs(target, len(regime.classes)), 1.0)
    parts = {}
    for name, value in maps.items():
        for term, loss in losses.segmentation(value, target).items():
            parts[f"{name}.{term}"] = loss / pairs
        parts[f"{name}.accuracy"] = losses.pixel_accuracy(jnp.argmax(value, axis=1), target)
    return parts


@pytest.mark.core
def test_scores_slides_and_losses_are_the_authors(otseg):
    """To 1e-5, with Sinkhorn stopping early as theirs does: over all that is in one batch."""
    expected = numbers("otseg_tiny_io")
    segmenter = otseg_jax.load(otseg, batch_size=1, transport=reference_sinkhorn)
    images = np.asarray(tiny.image())
    alone = np.stack([segmenter.scores(image) for image in images])
    assert relative_error(alone, expected["scores_inductive"]) < 2e-5  # they: two in one batch
    # the last bit of a mean decides after which update it stops: one earlier or later is 1e-5
    slide = np.asarray(tiny.image("image_slide"))[0]
    assert relative_error(segmenter.scores(slide), expected["scores_slide"][0]) < 2e-5
    resized = segmenter.scores(slide, size=(60, 90))
    assert relative_error(resized, expected["scores_slide_rescaled"][0]) < 2e-5

    offset = np.isin(np.arange(7), tiny.SEEN)[:, None, None] * segmenter.spec.seen_offset
    maps = run(segmenter.model, jnp.asarray(images), segmenter.text)
    together = jax.nn.sigmoid(upsample((maps["decoder"] + maps["mps"]) / 2, (32, 32)))
    assert relative_error(together, expected["scores_transductive"]) < 1e-6
    assert relative_error(together - offset[None], expected["scores_inductive"]) < 1e-6

    seen = run(segmenter.model, jnp.asarray(images), segmenter.text[jnp.array(tiny.SEEN)])
    for regime, found in (("transductive", maps), ("inductive", seen)):
        full = {name: upsample(z, (32, 32)) for name, z in found.items()}
        parts = parts_of_loss(full, regime)
        for name, prefix in (("decoder", "decode"), ("mps", "score")):
            for term, theirs in (("focal", "loss_mask"), ("dice", "loss_dice")):
                want = expected[f"{regime}_loss.{prefix}.{theirs}"]
                assert relative_error(parts[f"{name}.{term}"], want) < 1e-5


def test_the_regime_decides_the_offset(inputs, tmp_path):
    for regime, offset in (("inductive", 0.1), ("transductive", 0.0), ("supervised", 0.0)):
        folder = converted(inputs, tmp_path / regime, regime)
        spec = pretrained.read(folder).spec
        assert (spec.regime, spec.seen_offset) == (regime, offset)


def test_zegclip_is_the_authors(inputs, tmp_path):
    expected = numbers("zegclip_tiny_io")
    folder = converted(inputs, tmp_path / "m", decoder="cross_attention")
    segmenter = otseg_jax.load(folder)
    got = np.stack([segmenter.scores(image) for image in np.asarray(tiny.image())])
    assert relative_error(got, expected["scores_inductive"]) < 1e-5
    offset = 0.1 * np.isin(np.arange(7), tiny.SEEN)[None, :, None, None]
    assert relative_error(got + offset, expected["scores_transductive"]) < 1e-5
    g = jnp.asarray(numbers("otseg_tiny_io")["global_embedding"])
    f = numbers("otseg_tiny_io")["visual_embedding"]
    f = jnp.asarray(f.reshape(*f.shape[:2], -1).transpose(0, 2, 1))
    for regime in ("inductive", "transductive"):
        text = segmenter.text[jnp.array(tiny.SEEN)] if regime == "inductive" else segmenter.text
        logits = upsample(
            segmenter.model.match(g, f, text)["decoder"].reshape(2, -1, 4, 4), (32, 32)
        )
        assert relative_error(logits, expected[f"{regime}_decoder_logits"]) < 1e-5
        parts = parts_of_loss({"decoder": logits}, regime)
        for term, theirs in (("focal", "loss_mask"), ("dice", "loss_dice")):
            want = expected[f"{regime}_loss.{theirs}"]
            assert relative_error(parts[f"decoder.{term}"], want) < 1e-5
    convert(str(folder), tmp_path / "back.pth", format="mmseg")
    check_same_state(tmp_path / "back.pth")


def check_same_state(path):
    """The authors' file, as torch reads it, name by name and bit by bit."""
    back = torch.load(path, weights_only=True)["state_dict"]
    want = torch.load(SOURCE, weights_only=True)["state_dict"]
    assert set(back) == set(want)
    for name, tensor in want.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_exported_back_it_is_the_identical_state_dict(otseg, tmp_path):
    convert(str(otseg), tmp_path / "back.pth", format="mmseg")
    check_same_state(tmp_path / "back.pth")
    meta = torch.load(tmp_path / "back.pth", weights_only=True)["meta"]
    assert meta["CLASSES"] == [f"c{k}" for k in range(7)]


def test_text_features_from_the_files_own_tower(inputs, tmp_path):
    expected = numbers("otseg_tiny_io")
    config = tiny.config(embeddings=inputs / "otseg.npy")
    found = read.load(SOURCE, hints=hints(inputs, config))
    tower = found.model.clip.build_text()
    features = text.embed(tower, expected["text_tokens"], shape=(7, 4))
    assert relative_error(features, expected["text_features"]) < 2e-6
    pretrained.write(tmp_path / "m", found.model)
    with pytest.raises(ValueError, match=r"no tokenizer beside .*pth: put its tokenizer"):
        otseg_jax.load(tmp_path / "m").embed(["cat"])


def test_the_model_directory_is_all_there_is(otseg):
    assert sorted(path.name for path in otseg.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((otseg / "config.json").read_text())
    assert config["origin"]["format"] == "mmseg"
    assert config["origin"]["sha256"] == hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    model = config["model"]
    assert (model["window"], model["stride"], model["seen_offset"]) == (32, 24, 0.1)
    assert model["model"]["prompt_tokens"] == 5
    assert (model["model"]["epsilon"], model["model"]["sinkhorn"]) == (0.05, "implicit")
    assert model["outputs"]["main"] == "otseg_plus"
    assert config["clip"]["vision"]["image_size"] == 32
    names = set(load_file(otseg / "model.safetensors"))
    assert "unused/decode_head.loss_decode.criterion.empty_weight" in names
    assert {"embeddings", "q_proj/kernel", "vision/ln_pre/bias", "text/ln_final/bias"} <= names


def test_the_clip_inside_loads_into_transformers(otseg, tmp_path):
    convert(str(otseg), tmp_path / "hf", format="hf")
    raw = numbers("otseg_tiny_io")
    with torch.no_grad():
        model = CLIPModel.from_pretrained(tmp_path / "hf").eval()
        texts = model.get_text_features(torch.tensor(raw["text_tokens"])).pooler_output
    assert relative_error(texts.numpy(), raw["text_features_raw"]) < 2e-6
    convert(str(tmp_path / "hf"), tmp_path / "clip")
    back, want = pretrained.read(tmp_path / "clip"), pretrained.read(otseg)
    for name, leaf in back.leaves().items():
        np.testing.assert_array_equal(leaf, want.leaves()[name])
    assert back.clip.fingerprint == want.clip.fingerprint


def test_a_clip_goes_through_and_comes_back(tmp_path):
    torch_clip().save_pretrained(tmp_path / "hf")
    report = convert(str(tmp_path / "hf"), tmp_path / "clip", check=True)
    assert "largest difference after the round trip 0." in report
    convert(str(tmp_path / "clip"), tmp_path / "back", format="hf")
    want, got = (load_file(tmp_path / n / "model.safetensors") for n in ("hf", "back"))
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
    assert "naclip" in repr(otseg_jax.load(tmp_path / "clip"))
    with pytest.raises(ValueError, match="is a CLIP alone: this format"):
        convert(str(tmp_path / "clip"), tmp_path / "x.pth", format="mmseg")


def test_a_clip_at_another_size(tmp_path):
    torch_clip().save_pretrained(tmp_path / "hf")
    convert(
        str(tmp_path / "hf"), tmp_path / "clip", hints=Hints(image_size=72),
        check=True,
    )  # fmt: skip
    loaded = pretrained.read(tmp_path / "clip").clip
    assert loaded.vision_config.grid == 9
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    native = stored["vision_model.embeddings.position_embedding.weight"]
    want = resize_position_embedding(native, 9)
    np.testing.assert_array_equal(loaded.vision["position_embedding"], want)
    report = json.loads((tmp_path / "clip.parity.json").read_text())
    (note,) = {row["note"] for row in report["tensors"] if "position_embedding" in row["name"]
               and "vision" in row["name"]}  # fmt: skip
    assert note == "resized to [82, 48]"


@pytest.mark.core
def test_stablehlo_takes_other_classes_without_a_new_artifact(otseg, tmp_path):
    convert(str(otseg), tmp_path / "hlo", format="stablehlo")
    scores = write.load_stablehlo(tmp_path / "hlo")
    segmenter = otseg_jax.load(tmp_path / "hlo")  # it is a model directory as well
    images, text = np.asarray(tiny.image()), np.asarray(segmenter.text)
    offset = 0.1 * np.isin(np.arange(7), tiny.SEEN)
    want = np.stack([segmenter.scores(image) for image in images])
    # 1e-4: the authors' Sinkhorn stops early; all else agrees to 1e-6, see above
    assert relative_error(want, numbers("otseg_tiny_io")["scores_inductive"]) < 1e-4
    np.testing.assert_allclose(scores(images, text, offset), want, rtol=0, atol=2e-6)
    few = scores(images, text[2:5], offset[2:5])
    np.testing.assert_allclose(few, want[:, 2:5], rtol=0, atol=2e-6)
    many = np.concatenate([text] * 4)
    got = scores(images, many, np.zeros(28))
    np.testing.assert_allclose(got[:, 14:21], want + offset[None, :, None, None], atol=2e-6)
    with pytest.raises(ValueError, match="35 classes: this artifact takes at most 32"):
        scores(images, np.concatenate([text] * 5), np.zeros(35))
    artifact = tmp_path / "hlo" / write.ARTIFACT
    artifact.write_bytes(artifact.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"scores\.stablehlo is damaged"):
        write.load_stablehlo(tmp_path / "hlo")
    with pytest.raises(FileNotFoundError, match="make it with --format=stablehlo"):
        write.load_stablehlo(otseg)


@pytest.mark.parametrize("decoder", ["mpsa", "cross_attention"])
def test_the_parity_report_of_the_authors_checkpoint(inputs, tmp_path, decoder):
    pytest.importorskip("torch")  # which `convert` compares the layers with
    converted(inputs, tmp_path / "m", decoder=decoder, check=True)
    report = json.loads((tmp_path / "m.parity.json").read_text())
    assert (tmp_path / "m.parity.md").read_text().startswith(f"# Conversion of {SOURCE}")
    names = [row["name"] for row in report["tensors"]]
    assert sorted(names) == sorted(tiny.state_dict())
    assert {row["delta"] for row in report["tensors"]} == {0.0}
    layers = {row["name"]: row for row in report["layers"]}
    both = {"vision block 3", "vision projection", "text block 2", "text projection", "logits"}
    assert both | {"decoder layer 2"} <= set(layers)
    assert ("mps logits" in layers) == (decoder == "mpsa")
    for row in layers.values():
        assert row["delta"] < 5e-6 * row["scale"], row
    json.dumps(report, allow_nan=False)


def test_the_parity_report_sees_a_wrong_weight(tmp_path):
    torch_clip().save_pretrained(tmp_path / "hf")
    convert(str(tmp_path / "hf"), tmp_path / "clip")
    arrays = load_file(tmp_path / "clip" / "model.safetensors")
    arrays["vision/blocks/1/mlp/up/bias"][7] += 8.0
    save_file(arrays, tmp_path / "clip" / "model.safetensors")
    found = read.load(tmp_path / "hf")
    tampered = found._replace(model=pretrained.read(tmp_path / "clip"))
    report = verify.measure(tampered, tmp_path / "clip", format="model", source="x")
    wrong = {row["name"]: row["delta"] for row in report["tensors"] if row["delta"]}
    assert wrong == {"vision_model.encoder.layers.1.mlp.fc1.bias": pytest.approx(8.0)}
    deltas = {row["name"]: row["delta"] for row in report["layers"]}
    assert deltas["vision block 0"] < 1e-5 < 1e-2 < deltas["vision block 1"]


def broken(tmp_path, change) -> Path:
    file = torch.load(SOURCE, weights_only=True)
    change(file)
    torch.save(file, tmp_path / "broken.pth")
    return tmp_path / "broken.pth"


BAD = {
    "nan": (
        lambda f: f["state_dict"]["decode_head.q_proj.bias"].fill_(float("nan")),
        r"not finite, in q_proj/bias \(32 of 32\)",
    ),
    "missing": (
        lambda f: f["state_dict"].pop("decode_head.q_proj.bias"),
        "missing: decode_head.q_proj.bias",
    ),
    "surplus": (
        lambda f: f["state_dict"].update({"backbone.extra": torch.ones(1)}),
        "unmapped: backbone.extra",
    ),
    "shape": (
        lambda f: f["state_dict"].update({"decode_head.q_proj.bias": torch.ones(7)}),
        r"q_proj/bias wants \(32,\)",
    ),
    "self-attention of a fourth layer": (
        lambda f: f["state_dict"].update(
            {"decode_head.decoder_1.layers.3.self_attn.in_proj_bias": torch.ones(96)}
        ),
        "missing: decode_head.decoder_1.layers.3.norm2.weight",
    ),
    "no decoder": (
        lambda f: [f["state_dict"].pop(n) for n in list(f["state_dict"]) if "decoder_1" in n],
        r"lacks visual prompts or the layers.*decode_head\.decoder_1\.layers",
    ),
    "other classes": (
        lambda f: f["meta"].update(CLASSES=("cat", *f["meta"]["CLASSES"][1:])),
        "its class 0 is 'cat', here 'c0'",
    ),
    "more classes": (
        lambda f: f["meta"].update(CLASSES=[*f["meta"]["CLASSES"], "cat"]),
        "trained on 8 classes, here are 7",
    ),
    "more seen classes": (
        lambda f: f["state_dict"].update(
            {"decode_head.loss_decode.criterion.empty_weight": torch.ones(16)}
        ),
        "its loss knew 15 classes, here 5 are seen of 7",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_checkpoints_that_do_not_fit_leave_nothing(inputs, tmp_path, case):
    change, message = BAD[case]
    path = broken(tmp_path, change)
    config = tiny.config(embeddings=inputs / "otseg.npy")
    with pytest.raises(ValueError, match=message) as error:
        convert(str(path), tmp_path / "dest", hints=hints(inputs, config))
    assert str(path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.pth"]


def test_what_the_user_leaves_out_or_gets_wrong(inputs, tmp_path, otseg):
    def run(hints=Hints(), source=SOURCE):  # noqa: B008
        convert(str(source), tmp_path / "dest", hints=hints)

    with pytest.raises(ValueError, match=r"does not tell its classes.*give --config="):
        run()
    with pytest.raises(ValueError, match=r"give --vision_heads=N --text_heads=N"):
        run(Hints(settings=build.settings_of(tiny.config())))
    with pytest.raises(ValueError, match=r"data set 'folder' has no known classes: give --classes"):
        run(hints(inputs, tiny.config())._replace(classes=""))
    voc = tiny.config()
    voc.data.dataset = "voc12"
    with pytest.raises(ValueError, match="trained on 7 classes, here are 20"):
        run(hints(inputs, voc)._replace(classes=""))
    with pytest.raises(ValueError, match=r"zegclip\.npy is \[7, 32\], wanted \[7, 4, 32\]"):
        run(hints(inputs, tiny.config(embeddings=inputs / "zegclip.npy")))
    with pytest.raises(FileNotFoundError, match="is no folder, and no hub name"):
        run(source="nowhere.pth")
    with pytest.raises(ValueError, match="is there already: remove it"):
        convert(str(SOURCE), otseg)
    with pytest.raises(FileNotFoundError, match="make the folder first"):
        convert(str(SOURCE), tmp_path / "a" / "b")
    with pytest.raises(ValueError, match="--upload publishes model directories"):
        convert(str(otseg), tmp_path / "dest", format="hf", upload="a/b")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_tower(inputs, tmp_path, clip_files):
    given = hints(inputs, tiny.config())._replace(tokenizer=str(clip_files / "tokenizer"))
    with pytest.raises(ValueError, match=r"has 49408 token ids, the text tower of .* 64"):
        convert(str(SOURCE), tmp_path / "dest", hints=given)
    assert list(tmp_path.iterdir()) == []


def edited(otseg, tmp_path, change) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    config = json.loads((otseg / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").write_bytes((otseg / "model.safetensors").read_bytes())
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("classes"), "model.classes is missing"),
        (lambda c: c["model"].update(window="wide", stride=[]), "window='wide': .*stride="),
        (lambda c: c.update(version=1), "version is 1, this program reads 2: convert"),
        (lambda c: c["clip"]["vision"].update(heads=5), "width 48 is not a multiple of heads 5"),
        (lambda c: c["clip"]["vision"].update(colour=5), "clip.vision.colour"),
        (lambda c: c["model"]["outputs"].update(main="mps"), "'mps' is none of otseg"),
        (
            lambda c: c["model"]["classes"].append("cat"),
            r"embeddings are \[7, 4, 32\], wanted \[8, 4, 32\]",
        ),
        (lambda c: c.update(format="other"), "does not describe a CLIP that can be read"),
    ],
)
def test_model_directories_that_are_damaged(otseg, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        otseg_jax.load(edited(otseg, tmp_path, change))


def test_model_directories_that_lack_something(otseg, tmp_path):
    copy = edited(otseg, tmp_path, lambda config: None)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors .*damaged or cut short"):
        otseg_jax.load(copy)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not there"):
        otseg_jax.load(copy)
    arrays = load_file(otseg / "model.safetensors")
    arrays["surplus"] = arrays.pop("q_proj/bias")
    save_file(arrays, weights)
    with pytest.raises(ValueError, match="unfilled: q_proj/bias") as error:
        otseg_jax.load(copy)
    assert "unknown: the model has no surplus" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        otseg_jax.load(tmp_path)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_the_command_line(inputs, tmp_path, capsys, monkeypatch):
    flags = [f"--classes={inputs / 'classes.csv'}", "--vision_heads=12", "--text_heads=8"]
    flags += ["--config=configs/voc12.py:supervised"]
    flags += [f"--config.text.embeddings={inputs / 'otseg.npy'}", "--config.data.crop=32"]
    flags += ["--config.eval.stride=24"]
    flags += ["--config.text.templates=('a {}','b {}','c {}','d {}')"]
    dest = str(tmp_path / "m")
    command = [sys.executable, "-m", "otseg_jax.convert", str(SOURCE), dest, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{SOURCE} (mmseg) → {dest} (model)"
    assert pretrained.read(dest).spec.seen_offset == 0.0

    monkeypatch.chdir(ROOT)
    for arguments, message in (
        ([str(SOURCE), dest, *flags], f"error: {dest} is there already"),
        ([str(SOURCE)], "error: wanted SOURCE DEST"),
        ([str(SOURCE), dest, "--colour=red"], "error: there is no flag --colour"),
        (
            [str(SOURCE), dest, "--config=configs/none.py"],
            "error: --config=configs/none.py: no such file here",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])  # config_flags look there
        with pytest.raises(SystemExit) as stop:
            convert_main(sys.argv)
        assert str(stop.value.code).startswith(message)
    with pytest.raises(SystemExit) as stop:
        convert_main(["convert", "--help"])
    assert stop.value.code == 0
    assert "Resize a CLIP's positions" in capsys.readouterr().out
