"""Trains the small CLIP that the package ships, on captioned pictures of the shapes world.

    python experiments/pretrain_shapes_clip.py                 # → otseg_jax/data/shapes_clip/
    python experiments/pretrain_shapes_clip.py --minutes 5 --output /tmp/clip

Pictures show one to four things out of ALL combinations of pattern, colour and shape; captions are
in the paper's templates and free ones and name some or all of the things, in one of several words
for each attribute. Never a mask: what is where, the tower has to find out.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from otseg_jax.data import shapes
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig, VisionTower

PATTERNS = {
    "plain": ("plain", "solid", "uniform"),
    "striped": ("striped", "stripy", "lined"),
    "dotted": ("dotted", "spotted", "speckled"),
    "checked": ("checked", "chequered", "checkered"),
}
COLOURS = {
    "red": ("red", "scarlet"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
}
SHAPES = {
    "disc": ("disc", "circle"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "star": ("star", "pentagram"),
    "cross": ("cross", "plus"),
}
AXES = (PATTERNS, COLOURS, SHAPES)
NAMES = [list(axis) for axis in AXES]
SIZES = [len(axis) for axis in AXES]
THINGS = list(itertools.product(*(range(size) for size in SIZES)))
NOUNS = ("thing", "object", "shape")
TEMPLATES = (
    "a photo of a {}.",
    "a portrait of a {}.",
    "a part of a {}.",
    "a segment of a {}.",
    "a photo of small {}.",
    "a photo of medium {}.",
    "a photo of large {}.",
    "a background of a {}.",
    "{}",
    "a {}",
    "a picture of a {}.",
    "there is a {} here.",
    "we see a {}.",
    "an image with a {}.",
    "the {}.",
)
ANY = -1  # an attribute that a caption leaves open
CONTEXT = 32
PIXELS = 64
PATCH = 8
MOST = 4  # things in one picture
MEAN = np.array((122.7709383, 116.7460125, 104.09373615), np.float32)
STD = np.array((68.5005327, 66.6321579, 70.32316305), np.float32)


class Pool(NamedTuple):
    images: np.ndarray  # u8[i, 64, 64, 3]
    things: np.ndarray  # i8[i, 4, 3], −2 where there are fewer


def scene(arguments):
    seed, index, most = arguments
    rng = np.random.default_rng([seed, index])
    count = 1 + int(rng.random() * most)
    chosen = [THINGS[int(rng.random() * len(THINGS))] for _ in range(count)]
    words = [tuple(NAMES[a][k] for a, k in enumerate(thing)) for thing in chosen]
    image, which = shapes.draw(rng, words, image_size=PIXELS, unit=1.0)
    things = np.full((MOST, 3), -2, np.int8)
    seen = [thing for i, thing in enumerate(chosen) if (which == i).any()]
    things[: len(seen)] = seen
    return image, things


def make_pool(seed: int, size: int, most: int) -> Pool:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        tasks = ((seed, i, most) for i in range(size))
        images, things = zip(*tqdm(pool.imap(scene, tasks, chunksize=64), total=size), strict=True)
    return Pool(np.stack(images), np.stack(things))


def phrase(rng, thing, *, canonical: bool = False):
    """Words for a thing, and the attributes they name."""
    open_ = rng.random(3) < 0.12 if not canonical else np.zeros(3, bool)
    words, named = [], []
    for axis, (names, value) in enumerate(zip(NAMES, thing, strict=True)):
        forms = AXES[axis][names[value]]
        word = forms[0] if canonical or rng.random() < 0.6 else forms[rng.integers(len(forms))]
        if open_[axis]:
            word = NOUNS[rng.integers(len(NOUNS))] if axis == 2 else ""
        named.append(ANY if open_[axis] else value)
        words.append(word)
    return " ".join(filter(None, words)), named


def caption(rng, things, *, canonical: bool = False):
    """A sentence true of a picture, and i8[4, 3] what it says (all −3 where nothing)."""
    present = [t for t in things if t[0] >= 0]
    count = len(present) if canonical or rng.random() < 0.7 else int(rng.integers(len(present))) + 1
    chosen = [present[i] for i in rng.permutation(len(present))[:count]]
    said = np.full((MOST, 3), -3, np.int8)
    parts = []
    for i, thing in enumerate(chosen):
        words, said[i] = phrase(rng, thing, canonical=canonical)
        parts.append(words)
    template = TEMPLATES[0] if canonical else TEMPLATES[rng.integers(len(TEMPLATES))]
    listed = parts[0]
    if len(parts) > 1:
        listed = ", a ".join(parts[:-1]) + " and a " + parts[-1]
    return template.format(listed), said


def truth(things, said):
    """bool[i, j]: caption j is true of picture i."""
    a, b = things[:, None, :, None], said[None, :, None, :]  # [i, j, thing, mention, axis]
    match = ((a == b) | (b == ANY)) & (a >= 0)
    silent = (said[:, :, 0] == -3)[None]
    return (match.all(-1).any(2) | silent).all(-1)


def corpus(rng, count):
    for _ in range(count):
        yield caption(rng, [THINGS[i] for i in rng.integers(len(THINGS), size=rng.integers(1, 5))])[0]


def train_tokenizer(folder: Path):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import RobertaProcessing

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    begin, end = "<|startoftext|>", "<|endoftext|>"
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=bytes_, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(corpus(np.random.default_rng(0), 20000), trainer)
    state = json.loads(model.to_str())
    learned, merges = state["model"]["vocab"], state["model"]["merges"]
    # CLIP's order: bytes, bytes that end a word, merges, begin and end
    tokens = [*bytes_, *(b + "</w>" for b in bytes_)]
    tokens += [t for t in sorted(learned, key=learned.get) if t not in set(tokens)]
    vocabulary = {t: i for i, t in enumerate([*tokens, begin, end])}
    merges = [tuple(m) for m in merges]
    model.model = models.BPE(
        vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix="",
        unk_token=end,
    )
    model.post_processor = RobertaProcessing(
        (end, vocabulary[end]), (begin, vocabulary[begin]),
        trim_offsets=False, add_prefix_space=False,
    )
    model.add_special_tokens([begin, end])
    model.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    return model, len(vocabulary)


def encode(tokenizer, texts):
    rows = np.zeros((len(texts), CONTEXT), np.int32)
    for row, item in zip(rows, tokenizer.encode_batch(texts), strict=True):
        ids = item.ids
        assert len(ids) <= CONTEXT, item.tokens
        row[: len(ids)] = ids
    return rows


class Clip(nnx.Module):
    def __init__(self, vision: VisionConfig, text: TextConfig, *, rngs: nnx.Rngs):
        self.vision = VisionTower(vision, double_class_embedding=False, rngs=rngs)
        self.text = TextTower(text, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.array(1 / 0.07)))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrast(image, text, scale, false_negatives):
    logits = jnp.where(false_negatives, -jnp.inf, scale * unit(image) @ unit(text).T)
    diagonal = jnp.diag(logits)
    rows = jax.nn.logsumexp(logits, axis=1) - diagonal
    columns = jax.nn.logsumexp(logits, axis=0) - diagonal
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(len(logits)))
    return (rows.mean() + columns.mean()) / 2, accuracy


def normalised(images):
    return (images.astype(jnp.float32) - MEAN) / STD


def make_step(graphdef, optimiser, patch_weight):
    def loss_of(params, images, tokens, false_negatives):
        model = nnx.merge(graphdef, params)
        out = model.vision.project(model.vision.encode(normalised(images)))
        words = model.text(tokens)
        scale = jnp.exp(jnp.minimum(model.logit_scale[...], jnp.log(100.0)))
        loss, accuracy = contrast(out[:, 0], words, scale, false_negatives)
        other = jnp.float32(0)
        if patch_weight:
            patches, other = contrast(out[:, 1:].mean(1), words, scale, false_negatives)
            loss = loss + patch_weight * patches
        return loss, (accuracy, other)

    @jax.jit
    def step(params, moments, images, tokens, false_negatives):
        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            params, images, tokens, false_negatives
        )
        updates, moments = optimiser.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, loss, accuracy

    return step


def batches(rng, pool, tokenizer, size):
    order = np.empty(0, int)
    while True:
        if len(order) < size:
            order = rng.permutation(len(pool.images))
        chosen, order = order[:size], order[size:]
        turn = rng.integers(4)
        images = np.rot90(pool.images[chosen], turn, axes=(1, 2))
        images = images[:, ::-1] if rng.random() < 0.5 else images
        things = pool.things[chosen]
        texts, said = zip(*(caption(rng, t) for t in things), strict=True)
        negatives = truth(things, np.stack(said)) & ~np.eye(size, dtype=bool)
        yield np.ascontiguousarray(images), encode(tokenizer, list(texts)), negatives


def evaluate(graphdef, params, tokenizer, single, crowd):
    run_v = jax.jit(lambda p, x: (lambda m: m.vision.project(m.vision.encode(normalised(x))))(nnx.merge(graphdef, p)))
    run_e = jax.jit(lambda p, x: nnx.merge(graphdef, p).vision.encode(normalised(x)))
    run_t = jax.jit(lambda p, x: nnx.merge(graphdef, p).text(x))
    from otseg_jax.data.classes import SHAPES as vocabulary

    names = [f"a photo of a {n}." for n in vocabulary.names]
    ids = [tuple(NAMES[a].index(w) for a, w in enumerate(n.split())) for n in vocabulary.names]
    classes = unit(run_t(params, encode(tokenizer, names)))
    known = np.array([[tuple(t[0]) == i for i in ids] for t in single.things])
    keep = known.any(1)
    image = run_v(params, single.images[keep])
    report = {"zero_shot": float(np.mean(np.argmax(unit(image[:, 0]) @ classes.T, 1) == known[keep].argmax(1)))}
    every = unit(run_t(params, encode(tokenizer, ["a photo of a " + " ".join(NAMES[a][k] for a, k in enumerate(t)) + "." for t in THINGS])))
    index = np.array([THINGS.index(tuple(int(v) for v in t[0])) for t in single.things])
    guess = np.argmax(unit(run_v(params, single.images)[:, 0]) @ every.T, 1)
    report["of_100_things"] = float(np.mean(guess == index))
    for a, n in enumerate(("pattern", "colour", "shape")):
        report[n] = float(np.mean(np.array(THINGS)[guess, a] == np.array(THINGS)[index, a]))
    rng = np.random.default_rng(5)
    texts, said = zip(*(caption(rng, t, canonical=True) for t in crowd.things[:400]), strict=True)
    text, image = unit(run_t(params, encode(tokenizer, list(texts)))), unit(run_v(params, crowd.images[:400])[:, 0])
    hits = []
    for i in range(0, 400, 100):
        fn = truth(crowd.things[i:i+100], np.stack(said[i:i+100])) & ~np.eye(100, dtype=bool)
        hits.append(np.mean(np.argmax(np.where(fn, -9, image[i:i+100] @ text[i:i+100].T), 1) == np.arange(100)))
    report["retrieval"] = float(np.mean(hits))

    # patches of 96-pixel scenes: embeddings as they are, and a linear probe
    config = graphdef
    def tokens_of(split, size):
        data = shapes.Shapes(split, size=size)
        xs, zs, ys = [], [], []
        for start in range(0, size, 50):
            part = [data[i] for i in range(start, min(size, start + 50))]
            x = np.stack([p["image"] for p in part])
            y = np.stack([p["label"] for p in part]).reshape(len(part), 12, 8, 12, 8).swapaxes(2, 3).reshape(len(part), 144, 64)
            e = np.asarray(run_e(params, x))[:, 1:]
            xs.append(e); zs.append(np.asarray(run_v(params, x))[:, 1:]); ys.append(y)
        x, z, y = np.concatenate(xs), np.concatenate(zs), np.concatenate(ys)
        whole = (y == y[..., :1]).all(-1) & (y[..., 0] != 255)
        return x[whole], z[whole], y[..., 0][whole]
    x, z, y = tokens_of("train", 300)
    vx, vz, vy = tokens_of("val", 100)
    report["patch_zero_shot"] = float(np.mean(np.argmax(unit(vz) @ classes.T, 1) == vy))
    mean, std = x.mean(0), x.std(0) + 1e-6
    a = np.concatenate([(x - mean) / std, np.ones((len(x), 1))], 1)
    w = np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ np.eye(20)[y])
    va = np.concatenate([(vx - mean) / std, np.ones((len(vx), 1))], 1)
    report["probe"] = float(np.mean((va @ w).argmax(1) == vy))
    return report


def save(folder: Path, params, vision, text):
    from safetensors.numpy import save_file

    from otseg_jax.exporting import hugging_face_config
    from otseg_jax.weights import hugging_face, table

    leaves = {name: np.asarray(leaf) for name, leaf in table.flatten(params).items()}
    scale = leaves.pop("logit_scale")
    arrays = table.invert(hugging_face.rules(vision.layers, text.layers), leaves)
    arrays = {"logit_scale": scale, **arrays}
    half = {name: np.asarray(array, np.float16, order="C") for name, array in arrays.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**hugging_face_config(vision, text), "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", default="/tmp/w/clip/out")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=20000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--patch_weight", type=float, default=0.0)
    parser.add_argument("--single", type=float, default=0.5)
    parser.add_argument("--every", type=int, default=500)
    args = parser.parse_args()
    folder = Path(args.output)
    tokenizer, vocab = train_tokenizer(folder)
    print("vocab", vocab)
    w = args.width
    vision = VisionConfig(image_size=PIXELS, patch_size=PATCH, width=w, layers=args.layers, heads=w // 32, mlp_width=4 * w, embed_dim=128)
    text = TextConfig(vocab_size=vocab, context_length=CONTEXT, width=128, layers=2, heads=4, mlp_width=512, embed_dim=128)
    model = Clip(vision, text, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    print("parameters", sum(x.size for x in jax.tree.leaves(params)))
    schedule = optax.warmup_cosine_decay_schedule(0, args.lr, 200, args.steps, 0.0)
    mask = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05, mask=mask))
    moments = optimiser.init(params)
    step = make_step(graphdef, optimiser, args.patch_weight)
    start = time.time()
    single, crowd = make_pool(1, args.pool, 1), make_pool(2, args.pool, 4)
    vs, vc = make_pool(3, 2000, 1), make_pool(4, 400, 4)
    print("drawn in", time.time() - start)
    rng = np.random.default_rng(0)
    ones, many = batches(rng, single, tokenizer, args.batch), batches(rng, crowd, tokenizer, args.batch)
    start = time.time()
    for i in range(args.steps):
        first = i < args.single * args.steps or i % 4 == 0
        batch = next(ones if first else many)
        params, moments, loss, accuracy = step(params, moments, *batch)
        if i % 100 == 0:
            print(i, first, float(loss), [round(float(a), 3) for a in accuracy], float(jnp.exp(params["logit_scale"][...])), round(time.time() - start, 1), flush=True)
        if (i + 1) % args.every == 0 or i + 1 == args.steps:
            print(i + 1, json.dumps(evaluate(graphdef, params, tokenizer, vs, vc)), flush=True)
            save(folder, params, vision, text)


if __name__ == "__main__":
    main()
