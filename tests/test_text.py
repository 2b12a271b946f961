"""Vocabularies: real CLIP tokens and embeddings, and the cache."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import DATA

from configs import common
from otseg_jax import text
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.models.clip import TextConfig, TextTower

CONFIG = TextConfig(
    vocab_size=64,
    context_length=16,
    width=16,
    layers=1,
    heads=2,
    mlp_width=16,
    embed_dim=8,
)
NAMES, TEMPLATES = ["cat", "red disc", "café"], ["a {}.", "the {}"]


@pytest.fixture(scope="module")
def tower():
    return TextTower(CONFIG, rngs=nnx.Rngs(0))


def tokenizer(texts):
    """Some ids that differ between texts; the largest, which ends a text, is 63."""
    rows = np.zeros((len(texts), 16), np.int32)
    for row, words in zip(rows, texts, strict=True):
        ids = [62, *(1 + byte % 60 for byte in words.encode()[:14]), 63]
        row[: len(ids)] = ids
    return rows


def test_fill_is_class_major():
    texts = text.fill(NAMES, TEMPLATES)
    assert texts == ["a cat.", "the cat", "a red disc.", "the red disc", "a café.", "the café"]


def test_fill_tells_all_problems_at_once():
    with pytest.raises(ValueError, match="vocabulary") as error:
        text.fill(["cat", " "], ["a {}.", "none", "{} and {}"])
    for part in ("names[1] is blank", "templates[1] 'none'", "templates[2] '{} and {}'"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="names is empty; templates is empty"):
        text.fill([], [])


def test_a_brace_in_a_name_is_kept():
    assert text.fill(["{0}"], ["a {}."]) == ["a {0}."]


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("voc12", "voc2012"),
        ("pascal_context", "pascal_context"),
        ("coco_stuff", "coco_stuff"),
        ("ade20k", "ade20k"),
    ],
)
def test_tokens_are_openais(clip_files, key, stored):
    with np.load(DATA / "clip_tokens.npz") as file:
        want = file[stored]
    texts = text.fill(VOCABULARIES[key].names, common.TEMPLATES_8)
    got = text.tokenise(texts, clip_files / "tokenizer")
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got.reshape(want.shape), want)


def test_six_templates_are_the_first_of_eight(clip_files):
    with np.load(DATA / "clip_tokens.npz") as file:
        want = file["voc2012"][:, :6]
    texts = text.fill(VOCABULARIES["voc12"].names, common.TEMPLATES_6)
    got = text.tokenise(texts, clip_files / "tokenizer")
    np.testing.assert_array_equal(got.reshape(want.shape), want)


def test_long_texts_are_cut_and_keep_their_end(clip_files):
    long, short = text.tokenise(["cat " * 100, "cat"], clip_files / "tokenizer", context_length=8)
    assert long.tolist() == [49406, *[2368] * 6, 49407]
    assert short.tolist() == [49406, 2368, 49407, 0, 0, 0, 0, 0]
    assert (np.argmax(long), np.argmax(short)) == (7, 2)


def test_either_pair_of_tokenizer_files_will_do(clip_files, tmp_path):
    halves, whole = tmp_path / "halves", tmp_path / "whole"
    for folder, names in ((halves, ("vocab.json", "merges.txt")), (whole, ("tokenizer.json",))):
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(clip_files / "tokenizer" / name)
    texts = ["a photo of a potted plant.", "Ünïcode, it's 42"]
    want = text.tokenise(texts, clip_files / "tokenizer")
    np.testing.assert_array_equal(text.tokenise(texts, halves), want)
    np.testing.assert_array_equal(text.tokenise(texts, whole), want)


def small_tokenizer(folder, words):
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    return folder


def test_a_tokenizer_whose_end_is_not_the_largest_id(tmp_path):
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = ["a", "b", "a</w>", "b</w>", "ab</w>"]
    good = small_tokenizer(tmp_path, [*letters, *marks])
    assert text.tokenise(["ab b"], good, context_length=6).tolist() == [[5, 4, 3, 6, 0, 0]]
    with pytest.raises(ValueError, match="EOT is 1 of 7 ids, wanted the largest"):
        text.tokenise(["ab"], small_tokenizer(tmp_path, [*marks, *letters]))


def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"no folder that holds a tokenizer: wanted tokenizer\.json, or"
    ):
        text.tokenise(["cat"], tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder here"):
        text.tokenise(["cat"], tmp_path / "none")


@pytest.mark.parametrize("content", ["", "{", "{}", "[1, 2"])
def test_a_damaged_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"the tokenizer in .* is damaged"):
        text.tokenise(["cat"], tmp_path)


@pytest.mark.parametrize("batch", [1, 4, 6, 100])
def test_embed_is_one_text_at_a_time(tower, batch):
    tokens = tokenizer(text.fill(NAMES, TEMPLATES))
    got = text.embed(tower, tokens, shape=(3, 2), batch=batch)
    assert got.shape == (3, 2, 8)
    assert got.dtype == np.float32
    for row, want in zip(
        got.reshape(6, 8), (tower(jnp.asarray(t[None]))[0] for t in tokens), strict=True
    ):
        np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-6)


class CountingTower(TextTower):
    """Counts its traces: one for each compiled shape."""

    traces = 0

    def __call__(self, tokens):
        CountingTower.traces += 1
        return super().__call__(tokens)


def test_embed_compiles_once():
    tower = CountingTower(CONFIG, rngs=nnx.Rngs(0))
    text.embed(tower, tokenizer(["a", "b", "c", "d", "e"]), shape=(5, 1), batch=2)
    assert CountingTower.traces == 1


def test_embed_refuses_what_does_not_fit(tower):
    tokens = tokenizer(["a", "b"])
    with pytest.raises(ValueError, match="2 texts are not 3 classes × 1 templates"):
        text.embed(tower, tokens, shape=(3, 1))
    tokens[1, 2] = 49407
    with pytest.raises(ValueError, match=r"1 of 2 .* not finite: the tower has 64 .* 49407"):
        text.embed(tower, tokens, shape=(2, 1))


def load(tower, folder, *, names=NAMES, make=tokenizer, fingerprint="f"):
    def embed():
        return text.embed(tower, make(text.fill(names, TEMPLATES)), shape=(3, 2))

    key = text.vocabulary_hash(names, TEMPLATES, fingerprint)
    return text.cached(folder, key, (3, 2, 8), embed)


def never(texts):
    raise AssertionError("the cache was not used")


def test_a_vocabulary_is_embedded_once(tower, tmp_path):
    folder = tmp_path / "made" / "when needed"
    first = load(tower, folder)
    np.testing.assert_array_equal(load(tower, folder, make=never), first)
    name = text.vocabulary_hash(NAMES, TEMPLATES, "f")
    assert [path.name for path in folder.iterdir()] == [f"{name}.npy"]
    load(tower, folder, names=NAMES[::-1])
    load(tower, folder, fingerprint="g")
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "shape"])
def test_a_damaged_cache_is_written_anew(tower, tmp_path, damage):
    first = load(tower, tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, first[:2])
    np.testing.assert_array_equal(load(tower, tmp_path), first)
    np.testing.assert_array_equal(load(tower, tmp_path, make=never), first)


def test_the_hash_depends_on_names_templates_and_tower():
    hashes = {
        text.vocabulary_hash(names, templates, fingerprint)
        for names in (["a", "b"], ["b", "a"], ["ab"], ["a", "b "])
        for templates in (["{}"], ["{}", "a {}"])
        for fingerprint in ("f", "g")
    }
    assert len(hashes) == 16
    assert text.vocabulary_hash(("a",), ("{}",), "f") == text.vocabulary_hash(["a"], ["{}"], "f")


@pytest.mark.parametrize(
    ("name", "classes", "templates"),
    [
        ("voc12_otseg", 20, 6),
        ("context_otseg", 59, 8),
        ("coco_otseg", 171, 8),
        ("ade_single", 150, 1),
    ],
)
def test_real_embeddings_are_read(clip_files, name, classes, templates):
    path = clip_files / "text_embeddings" / f"{name}.npy"
    got = text.read_embeddings(path, classes=classes, templates=templates, width=512)
    assert got.shape == (classes, templates, 512)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, atol=1e-6)
    stored = np.load(path).reshape(got.shape).astype(np.float64)
    want = stored / np.linalg.norm(stored, axis=-1, keepdims=True)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3, 4)), r"is \[2, 3, 4\], wanted \[3, 2, 4\]"),
        (np.ones((3, 4)), r"is \[3, 4\], wanted \[3, 2, 4\]"),
        (np.ones((3, 2, 4), int), "holds int64, wanted floating point"),
        (np.full((3, 2, 4), np.nan), "6 of 6 embeddings are zero or not finite"),
        (np.zeros((3, 2, 4), np.float16), "6 of 6 embeddings are zero or not finite"),
        (np.array([None]), "is not a whole .npy file of numbers"),
    ],
)
def test_embeddings_that_are_refused(tmp_path, array, message):
    path = tmp_path / "t.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as error:
        text.read_embeddings(path, classes=3, templates=2, width=4)
    assert str(error.value).startswith(str(path))


def test_embedding_files_that_are_no_arrays(tmp_path):
    options = {"classes": 3, "templates": 2, "width": 4}
    with pytest.raises(FileNotFoundError, match="is not there"):
        text.read_embeddings(tmp_path / "t.npy", **options)
    for content in (b"", b"\x93NUMPY\x01\x00", b"no array"):
        (tmp_path / "t.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.npy is not a whole \.npy file"):
            text.read_embeddings(tmp_path / "t.npy", **options)
    np.savez(tmp_path / "t.npz", np.ones((3, 2, 4)))
    with pytest.raises(ValueError, match=r"t\.npz holds NpzFile"):
        text.read_embeddings(tmp_path / "t.npz", **options)
