"""The packaged CLIP: small, read by whoever reads CLIP, and good enough to learn OTSeg from.

Accuracies are measured on pictures of seeds that its training never drew.
"""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from oracles import relative_error, torch

from configs import shapes as shapes_config
from experiments.shapes_clip import captions, pretrain
from otseg_jax import build
from otseg_jax.data.classes import IGNORE
from otseg_jax.data.shapes import Shapes
from otseg_jax.weights import hub

FOLDER = hub.find(hub.BUILT_IN, ())
RECORD = json.loads(Path(pretrain.__file__).with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def clip():
    return build.load_clip(hub.BUILT_IN).clip


@pytest.fixture(scope="module")
def tower(clip):
    return clip.build_vision()


def embed(clip, texts: list[str]) -> np.ndarray:
    return clip.embed(texts, ["{}"])[:, 0]


def normalised(images: np.ndarray) -> np.ndarray:
    return ((images - np.array(pretrain.MEAN)) / np.array(pretrain.STD)).astype(np.float32)


def test_it_is_small_and_the_one_on_record():
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6e6
    assert (
        RECORD["sha256"] == hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    )


def test_transformers_agrees(clip, tower):
    """Its own loader, its own tokenizer, its own towers, in torch."""
    plain = torch.float32  # asked first: where there is no torch, this skips
    model = transformers.CLIPModel.from_pretrained(FOLDER, dtype=plain).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(FOLDER)
    texts = ["a photo of a striped red disc.", "Two  chequered zebras, and an azure box!"]
    images = captions.draw(3, most=4, image_size=64, seed=50, processes=1).images
    with torch.no_grad():
        words = tokenizer(texts, padding=True, return_tensors="pt")
        expected_text = model.get_text_features(**words)
        pixels = torch.from_numpy(normalised(images)).permute(0, 3, 1, 2)
        expected_image = model.get_image_features(pixel_values=pixels)
    expected_text, expected_image = (
        np.asarray(getattr(x, "pooler_output", x)) for x in (expected_text, expected_image)
    )
    expected_text /= np.linalg.norm(expected_text, axis=-1, keepdims=True)
    found = tower.project(tower.encode(jnp.asarray(normalised(images))))[:, 0]
    assert relative_error(found, expected_image) < 1e-5
    assert relative_error(embed(clip, texts), expected_text) < 1e-5


def test_one_thing_is_recognised_without_training(clip, tower):
    """Zero-shot accuracy among the 20 classes; the issue of its making asked for 90 %."""
    names = Shapes("val", size=1).vocabulary.names
    pictures = captions.draw(700, most=1, image_size=64, seed=51, processes=2)
    shown = [captions.name(things[0]) for things in pictures.things]
    keep = np.array([name in names for name in shown])
    assert keep.sum() > 100
    classes = embed(clip, [f"a photo of a {name}." for name in names])
    raw = jax.jit(lambda x: tower.project(tower.encode(x))[:, 0])(normalised(pictures.images[keep]))
    guess = (np.asarray(raw) @ classes.T).argmax(1)
    answer = [names.index(name) for name in np.array(shown)[keep]]
    assert np.mean(guess == answer) >= 0.9


def test_patch_tokens_tell_the_class_to_a_linear_probe(tower):
    """Logistic regression by Newton's method (not the ridge of the script) on single tokens."""
    encode = jax.jit(lambda x: tower.encode(x)[:, 1:])

    def tokens(split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        examples = list(Shapes(split, size=size, seed=7))
        label = np.stack([e["label"] for e in examples]).reshape(size, 12, 8, 12, 8)
        label = label.swapaxes(2, 3).reshape(size, 144, 64)
        whole = (label == label[..., :1]).all(-1) & (label[..., 0] != IGNORE)
        x = np.asarray(encode(normalised(np.stack([e["image"] for e in examples]))))
        return x[whole].astype(np.float64), label[..., 0][whole].astype(int)

    x, y = tokens("train", 160)
    val_x, val_y = tokens("val", 40)
    mean, std = x.mean(0), x.std(0)
    accuracy = logistic_accuracy((x - mean) / std, y, (val_x - mean) / std, val_y)
    assert accuracy >= 0.8


def logistic_accuracy(x, y, val_x, val_y) -> float:
    with torch.enable_grad():
        torch.manual_seed(0)
        layer = torch.nn.Linear(x.shape[1], 20, dtype=torch.float64)
        inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=60)

        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(layer(inputs), targets)
            loss = loss + 1e-3 * layer.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    guess = layer(torch.from_numpy(val_x)).argmax(1).numpy()
    return float(np.mean(guess == val_y))


def test_the_configuration_takes_it_with_its_normalisation():
    config = shapes_config.get_config()
    assert config.clip.source == hub.BUILT_IN
    assert (config.data.mean, config.data.std) == (pretrain.MEAN, pretrain.STD)
    found = build.load_clip(hub.BUILT_IN, image_size=config.data.crop).clip
    assert found.vision_config.image_size == 96
    assert found.vision["position_embedding"].shape[0] == 1 + 12**2


def test_words_of_one_attribute_are_closer_than_others(clip):
    """A synonym is nearer to its own class than to any other."""
    names = [f"a photo of a {n}." for n in Shapes("val", size=1).vocabulary.names]
    other = Shapes("val", size=1, words="shapes_synonyms").vocabulary.names
    cosine = embed(clip, [f"a photo of a {n}." for n in other]) @ embed(clip, names).T
    assert (cosine.argmax(1) == np.arange(20)).all()


def test_templates_of_one_class_are_all_but_the_same(clip):
    """Why transport, softmax and mean over prompts do alike in `experiments/ablations.md`."""
    names = Shapes("val", size=1).vocabulary.names
    templates = shapes_config.get_config().text.templates
    rows = np.stack([embed(clip, [t.format(name) for name in names]) for t in templates], 1)
    assert np.einsum("knc,kmc->knm", rows, rows).min() > 0.999
    assert np.einsum("kc,lc->kl", rows[:, 0], rows[:, 0])[~np.eye(20, dtype=bool)].max() < 0.9


@pytest.mark.parametrize("ignored", [False, True])
def test_contrastive_loss_is_torchs_cross_entropy(ignored):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 6, 5)).astype(np.float32)
    mask = (rng.random((6, 6)) < 0.2) & ~np.eye(6, dtype=bool) & ignored
    unit = torch.nn.functional.normalize
    logits = 7.0 * unit(torch.from_numpy(x)) @ unit(torch.from_numpy(y)).T
    logits = logits.masked_fill(torch.from_numpy(mask), -torch.inf)
    target, entropy = torch.arange(6), torch.nn.functional.cross_entropy
    expected = (entropy(logits, target) + entropy(logits.T, target)) / 2
    found = pretrain.contrastive_loss(jnp.asarray(x), jnp.asarray(y), 7.0, jnp.asarray(mask))
    assert relative_error(found, expected.numpy()) < 1e-6


def test_its_tokenizer_knows_every_word_of_the_captions():
    tokenizer = pretrain.train_tokenizer(0, captions_read=20_000)
    assert (
        tokenizer.to_str() == pretrain.Tokenizer.from_file(str(FOLDER / "tokenizer.json")).to_str()
    )
    for axis in captions.WORDS:
        for words in axis.values():
            for word in words:
                assert len(tokenizer.encode(word).ids) == 3, word  # begin, the word, end
