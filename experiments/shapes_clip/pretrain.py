"""Trains the small CLIP that the package ships, on captioned pictures of the shapes world.

    python -m experiments.shapes_clip.pretrain                   # the shipped one, from its seed
    python -m experiments.shapes_clip.pretrain --steps=200 --output=runs/clip    # a quick look

Nothing but pictures and captions: no mask, no class label. Both towers start at random and learn by
the symmetric contrastive loss with a learned temperature. Pictures of one thing come first, which
teaches the words; then three batches in four show up to four things, which teaches where they are.
A batch of 128 holds most of the 100 things, so that every caption meets its hard negatives (same
colour, other shape); a caption that happens to be true of another picture is not its negative.

Writes a Hugging Face directory (config.json, model.safetensors in fp16, tokenizer.json), loaded as
`openai/clip-vit-base-patch16` is, and beside this script a JSON of recipe, time and accuracy. Give
the command again to go on after a stop.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm

from experiments.shapes_clip import captions
from experiments.shapes_clip.captions import Pictures
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.convert import write
from otseg_jax.data import shapes, transforms
from otseg_jax.data.classes import IGNORE
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower
from otseg_jax.weights import hugging_face, names, rules

HERE = Path(__file__).parent
SHIPPED = HERE.parent.parent / "otseg_jax" / "data" / "shapes_clip"
MEAN = (122.7709383, 116.7460125, 104.09373615)  # OpenAI's, as in configs/common.py
STD = (68.5005327, 66.6321579, 70.32316305)
IMAGE_SIZE, PATCH_SIZE, EMBED_DIM, CONTEXT_LENGTH = 64, 8, 128, 32
TOWER = {"width": 128, "heads": 4, "mlp_width": 512, "embed_dim": EMBED_DIM}
LARGEST_SCALE = 100.0  # of the logits, as OpenAI's
EVALUATED = 400  # pictures of each kind, drawn from seeds of their own


class Clip(nnx.Module):
    """Both towers and the learned temperature."""

    def __init__(self, vision: VisionConfig, text: TextConfig, *, rngs: nnx.Rngs) -> None:
        # OTSeg adds the class embedding a second time; CLIP itself does not
        self.vision = VisionTower(vision, double_class_embedding=False, rngs=rngs)
        self.text = TextTower(text, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def embed_patches(self, images):
        """Embeddings f32[b, 1+m, c] of the class token and the patches of images u8[b, s, s, 3]."""
        return self.vision.project(self.encode(images))

    def encode(self, images):
        """Tokens after the last block, f32[b, 1+m, d]."""
        return self.vision.encode((images.astype(jnp.float32) - jnp.array(MEAN)) / jnp.array(STD))


def train_tokenizer(seed: int, *, captions_read: int = 20_000) -> Tokenizer:
    """CLIP's kind of byte-pair tokenizer, learned from captions; every word of theirs is one token.

    The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, begin and end of text.
    """
    rng = np.random.default_rng(seed)

    def corpus():
        for _ in range(captions_read):
            things = np.full((captions.MOST_THINGS, 3), captions.ABSENT, np.int8)
            count = 1 + rng.integers(captions.MOST_THINGS)
            things[:count] = rng.permutation(captions.THINGS)[:count]
            yield captions.describe(rng, things).text

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    begin, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4000,  # more than there is to merge
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet)]
    known = set(tokens)
    tokens += [t for t in sorted(learned["vocab"], key=learned["vocab"].get) if t not in known]
    vocabulary = {token: i for i, token in enumerate([*tokens, begin, end])}
    tokenizer.model = models.BPE(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        end_of_word_suffix="</w>",
        unk_token=end,
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (begin, vocabulary[begin]), False, False
    )
    tokenizer.add_special_tokens([begin, end])
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Token ids i32[t, 32], 0 after the end of a text."""
    rows = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
    for row, found in zip(rows, tokenizer.encode_batch(texts), strict=True):
        row[: len(found.ids)] = found.ids
    return rows


def draw_batch(
    rng: np.random.Generator, pictures: Pictures, tokenizer: Tokenizer, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, tokens, and bool[i, j] where caption j is true of picture i that it was not made for.

    Pictures are turned and mirrored together, and their light is changed one by one.
    """
    chosen = rng.choice(len(pictures.images), size, replace=False)
    images = np.rot90(pictures.images[chosen], rng.integers(4), axes=(1, 2))
    images = images[:, ::-1] if rng.random() < 0.5 else images
    lit = [transforms.photometric(np.ascontiguousarray(x), rng, hue=0) for x in images]
    things = pictures.things[chosen]
    texts, said = zip(*(captions.describe(rng, thing) for thing in things), strict=True)
    also_true = captions.is_true(things, np.stack(said)) & ~np.eye(size, dtype=bool)
    return np.stack(lit), encode(tokenizer, list(texts)), also_true


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrastive_loss(images, texts, scale, ignored):
    """Symmetric cross-entropy of scale·cosine f32[i, j] against the diagonal, less `ignored`.

    Source: CLIP (arXiv 2103.00020), figure 3.
    """
    logits = jnp.where(ignored, -jnp.inf, scale * unit(images) @ unit(texts).T)
    right = jnp.diagonal(logits)
    by_image = jax.nn.logsumexp(logits, axis=1) - right
    by_text = jax.nn.logsumexp(logits, axis=0) - right
    return (jnp.mean(by_image) + jnp.mean(by_text)) / 2


@partial(jax.jit, static_argnums=(0, 1))
def train_step(graphdef, optimizer, state, images, tokens, ignored):
    def loss_of(params):
        clip = nnx.merge(graphdef, params)
        scale = jnp.exp(jnp.minimum(clip.logit_scale[...], np.log(LARGEST_SCALE)))
        return contrastive_loss(clip.embed_patches(images)[:, 0], clip.text(tokens), scale, ignored)

    loss, gradient = jax.value_and_grad(loss_of)(state["params"])
    updates, moments = optimizer.update(gradient, state["moments"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "moments": moments}, loss


@partial(jax.jit, static_argnums=(0, 3))
def _call(graphdef, params, x, method: str):
    return getattr(nnx.merge(graphdef, params), method)(x)


class Evaluation:
    """What the towers know, on pictures that training never saw."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        draw = partial(captions.draw, EVALUATED, image_size=IMAGE_SIZE)
        self.tokenizer = tokenizer
        self.single = draw(most=1, seed=seed)
        self.crowded = draw(most=captions.MOST_THINGS, seed=seed + 1)
        self.classes = shapes.Shapes("val", size=1).vocabulary.names

    def __call__(self, graphdef, params) -> dict[str, float]:
        """Fractions in 0..1: `README.md` of this folder says of what."""
        clip = partial(_call, graphdef, params)
        report = self._naming(clip) | self._retrieval(clip) | self._patches(clip)
        return {name: round(float(value), 4) for name, value in report.items()}

    def _embed(self, clip, texts: list[str]) -> np.ndarray:
        return np.asarray(unit(clip(encode(self.tokenizer, texts), "text")))

    def _embed_names(self, clip, names: Iterable[str]) -> np.ndarray:
        return self._embed(clip, [captions.TEMPLATES[0].format(name) for name in names])

    def _naming(self, clip) -> dict[str, float]:
        images = np.asarray(unit(clip(self.single.images, "embed_patches")[:, 0]))
        things = self.single.things[:, 0]
        names = [captions.name(thing) for thing in things]
        known = np.array([name in self.classes for name in names])
        answer = [self.classes.index(name) for name in names if name in self.classes]
        guess = (images[known] @ self._embed_names(clip, self.classes).T).argmax(1)
        report = {"zero_shot_of_20_classes": np.mean(guess == answer)}

        every = map(captions.name, captions.THINGS)
        guess = np.array(captions.THINGS)[(images @ self._embed_names(clip, every).T).argmax(1)]
        report["zero_shot_of_100_things"] = np.mean((guess == things).all(1))
        for axis, attribute in enumerate(("pattern", "colour", "shape")):
            report[f"zero_shot_{attribute}"] = np.mean(guess[:, axis] == things[:, axis])
        return report

    def _retrieval(self, clip) -> dict[str, float]:
        stated = [captions.state(things) for things in self.crowded.things]
        texts = self._embed(clip, [caption.text for caption in stated])
        images = np.asarray(unit(clip(self.crowded.images, "embed_patches")[:, 0]))
        hits = []
        for part in (slice(i, i + 100) for i in range(0, EVALUATED, 100)):
            said = np.stack([caption.said for caption in stated[part]])
            also = captions.is_true(self.crowded.things[part], said) & ~np.eye(100, dtype=bool)
            cosine = np.where(also, -np.inf, images[part] @ texts[part].T)
            hits.append(cosine.argmax(1) == np.arange(100))
        return {"retrieval_of_100_captions": np.mean(hits)}

    def _patches(self, clip) -> dict[str, float]:
        tokens, _, label = whole_patches(clip, "train", 300)
        val_tokens, val_embeddings, val_label = whole_patches(clip, "val", 100)
        classes = self._embed_names(clip, self.classes)
        nearest = (np.asarray(unit(val_embeddings)) @ classes.T).argmax(1)
        return {
            "patches_zero_shot": np.mean(nearest == val_label),
            "patches_linear_probe": linear_probe(tokens, label, val_tokens, val_label),
        }


def whole_patches(clip, split: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, embeddings and classes of the patches that lie inside one object."""
    examples = list(shapes.Shapes(split, size=size))
    images = np.stack([example["image"] for example in examples])
    side = images.shape[1] // PATCH_SIZE
    label = np.stack([example["label"] for example in examples])
    label = label.reshape(size, side, PATCH_SIZE, side, PATCH_SIZE).swapaxes(2, 3)
    label = label.reshape(size, side * side, -1)
    whole = (label == label[..., :1]).all(-1) & (label[..., 0] != IGNORE)
    found = []
    for method in ("encode", "embed_patches"):
        parts = [clip(images[i : i + 50], method)[:, 1:] for i in range(0, size, 50)]
        found.append(np.concatenate(parts)[whole])
    return found[0], found[1], label[..., 0][whole]


def linear_probe(x, y, val_x, val_y, *, ridge: float = 10.0) -> float:
    """Accuracy of ridge regression from standardised features to one-hot classes."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    features, val_features = (
        np.concatenate([(z - mean) / std, np.ones((len(z), 1))], axis=1) for z in (x, val_x)
    )
    gram = features.T @ features + ridge * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ np.eye(y.max() + 1)[y])
    return float(np.mean((val_features @ weights).argmax(1) == val_y))


def save(folder: Path, params: Any, vision: VisionConfig, text: TextConfig, tokenizer) -> str:
    """Write the Hugging Face directory; returns the SHA-256 of its weights."""
    leaves = {name: np.asarray(leaf) for name, leaf in names.flatten(params).items()}
    scale = leaves.pop("logit_scale")
    arrays = rules.invert(hugging_face.rules(vision.layers, text.layers), leaves)
    half = {n: np.asarray(x, np.float16, order="C") for n, x in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file({"logit_scale": scale.astype(np.float16), **half}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config = {**write.hugging_face_config(vision, text), "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder of the result")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/shapes_clip"), help="checkpoints to go on from"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_size", type=int, default=128, help="pictures a step")
    parser.add_argument("--pictures", type=int, default=24_000, help="drawn, of each kind")
    parser.add_argument(
        "--single", type=float, default=0.25, help="part of one-thing pictures alone"
    )
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="peak")
    parser.add_argument("--warmup", type=float, default=0.1, help="part of the steps")
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, evaluate, write."""
    options = parse()
    tokenizer = train_tokenizer(options.seed)
    vision = VisionConfig(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, layers=4, **TOWER)
    text = TextConfig(
        vocab_size=tokenizer.get_vocab_size(), context_length=CONTEXT_LENGTH, layers=2, **TOWER
    )
    graphdef, params = nnx.split(Clip(vision, text, rngs=nnx.Rngs(options.seed)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, int(options.warmup * options.steps), options.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=options.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
    state = {"params": params, "moments": optimizer.init(params)}
    draw = partial(captions.draw, options.pictures, image_size=IMAGE_SIZE)
    single = draw(most=1, seed=4 * options.seed + 1)
    crowded = draw(most=captions.MOST_THINGS, seed=4 * options.seed + 2)
    evaluate = Evaluation(tokenizer, seed=4 * options.seed + 3)

    recipe = {k: v for k, v in vars(options).items() if k not in ("output", "workdir")}
    seconds, losses = 0.0, []
    with Checkpoints(options.workdir / "checkpoints") as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            meta = checkpoints.read_meta(start)
            if meta["recipe"] != recipe:
                sys.exit(f"error: --workdir={options.workdir} holds a run of {meta['recipe']}")
            state = checkpoints.restore(start, state)
            seconds, report = meta["seconds"], meta["accuracy"]
        bar = tqdm(range(start, options.steps), initial=start, total=options.steps, unit="step")
        for step in bar:
            begun = time.perf_counter()
            rng = np.random.default_rng([options.seed, step])
            alone = step < options.single * options.steps or step % 4 == 0
            batch = draw_batch(rng, single if alone else crowded, tokenizer, options.batch_size)
            state, loss = train_step(graphdef, optimizer, state, *batch)
            losses.append(float(loss))
            seconds += time.perf_counter() - begun
            done = step + 1
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            if done % 250 == 0 or done == options.steps:
                report = evaluate(graphdef, state["params"])
                tqdm.write(f"step {done}: {json.dumps(report)}")
                meta = {"recipe": recipe, "seconds": seconds, "accuracy": report}
                checkpoints.save(done, state, meta)
                checkpoints.wait()
    digest = save(options.output, state["params"], vision, text, tokenizer)
    result = {
        "recipe": recipe,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state["params"])),
        "bytes": sum(path.stat().st_size for path in options.output.iterdir()),
        "sha256": digest,
        "seconds_of_training": round(seconds),
        "machine": {
            "device": jax.devices()[0].device_kind,
            "platform": f"{platform.system()} {platform.machine()}, "
            f"{len(os.sched_getaffinity(0))} cores",
            "jax": jax.__version__,
        },
        "accuracy": report,
    }
    if options.output == SHIPPED:
        path = HERE / "pretrain.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
