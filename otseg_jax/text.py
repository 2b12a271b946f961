"""Class names to text embeddings: templates, tokens, and a vocabulary embedded once.

A vocabulary is t[k, n, c]: class k in each of n templates, c channels, float32, unit length. Token
ids are int32 [t, l]: begin-of-text, the text, end-of-text (EOT, the largest id), then zeros.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from transformers import CLIPTokenizer

from otseg_jax import paths
from otseg_jax.models.clip import TextTower

LOGGER = logging.getLogger(__name__)

SIZES = (16, 32, 64, 256)  # of batches of texts
LENGTH = 16  # texts are cut after their EOT to multiples of it: the tower looks back only
ODD = ("Äpfel  U+12 it's", "a\t\u0301 <|endoftext|> b")  # read otherwise by other normalisers


def fill(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every template filled with every name, spelt as given: text i·n+j is class i in template j.

    Raises:
        ValueError: no name, no template, a blank name, a template without exactly one "{}".

    Example:
        >>> fill(["cat", "dog"], ["a {}.", "the {}."])
        ['a cat.', 'the cat.', 'a dog.', 'the dog.']
    """
    problems = [
        f"templates[{i}] {t!r} must hold '{{}}' once"
        for i, t in enumerate(templates)
        if t.count("{}") != 1
    ]
    problems += [f"names[{i}] is blank" for i, name in enumerate(names) if not name.strip()]
    problems += [] if names else ["names is empty"]
    problems += [] if templates else ["templates is empty"]
    if problems:
        raise ValueError("vocabulary: " + "; ".join(problems))
    return [template.replace("{}", name) for name in names for template in templates]


def warn_of_twins(names: Sequence[str], tokens: Int[np.ndarray, "t l"]) -> None:
    """Log classes whose texts are the same tokens, by case or by the cut: one always wins."""
    first: dict[bytes, int] = {}
    rows = tokens.reshape(len(names), -1)
    twins = [(j, k) for k, row in enumerate(rows) if (j := first.setdefault(row.tobytes(), k)) != k]
    if twins:
        j, k = twins[0]
        LOGGER.warning(
            "%d of %d class names are no others to the text tower, and get no pixel: %s is the "
            "same tokens as %s",
            len(twins),
            len(names),
            _short(names[k]),
            _short(names[j]),
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:25]} … {text[-12:]}")


def tokenise(
    texts: Sequence[str], tokenizer: str | Path, *, context_length: int = 77
) -> Int[np.ndarray, "t l"]:
    """CLIP's byte-pair tokens; a text that is too long is cut and keeps its EOT.

    Args:
        tokenizer: folder with `tokenizer.json`, or `vocab.json` and `merges.txt`; or a hub name.

    Raises:
        FileNotFoundError: no such folder or hub name, or one without the files.
        ValueError: EOT is not the largest id, so that texts could not be pooled at it.

    Differs:
        transformers pads with EOT; zeros are OpenAI's own, and the first EOT is found either way.
    """
    clip = _load_tokenizer(tokenizer)
    # one more than there is room for, to see which are cut
    options = {"padding": "max_length", "truncation": True, "max_length": context_length + 1}
    rows = clip(list(texts), **options, return_tensors="np")
    cut = rows["attention_mask"][:, -1] == 1
    ids = (rows["input_ids"] * rows["attention_mask"])[:, :-1].astype(np.int32)
    ids[cut, -1] = clip.eos_token_id
    if cut.any():
        LOGGER.warning(
            "%d of %d texts are longer than the %d tokens that the text tower reads; the rest is "
            "cut: %s",
            cut.sum(),
            len(texts),
            context_length,
            _short(texts[int(cut.argmax())]),
        )
    return ids


def save_tokenizer(tokenizer: str | Path, folder: Path) -> None:
    """Write a tokenizer's files into a folder, where `tokenise` finds them; errors as there."""
    _load_tokenizer(tokenizer).save_pretrained(folder)


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds `tokenizer.json`, or `vocab.json` and `merges.txt`."""
    halves = [folder / "vocab.json", folder / "merges.txt"]
    return (folder / "tokenizer.json").is_file() or all(path.is_file() for path in halves)


def vocabulary_size(tokenizer: str | Path) -> int:
    """How many token ids a tokenizer has; errors as of `tokenise`."""
    return len(_load_tokenizer(tokenizer))


def tokenizer_fingerprint(tokenizer: str | Path) -> str:
    """SHA-256 of what decides a tokenizer's ids, whatever files it lies in; errors as there."""
    clip = _load_tokenizer(tokenizer)
    model = json.loads(clip.backend_tokenizer.to_str())["model"]
    # a merge is a pair, or one text in older files
    merges = [pair.split() if isinstance(pair, str) else pair for pair in model["merges"]]
    content = [sorted(model["vocab"].items()), merges, clip(list(ODD))["input_ids"]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load_tokenizer(source: str | Path) -> CLIPTokenizer:
    folder = paths.local(source)
    source = str(folder if folder.exists() else source)  # else it is a name on the hub
    # from_pretrained would answer a folder without them with a vocabulary of two words
    if folder.is_file() or (folder.is_dir() and not holds_tokenizer(folder)):
        raise FileNotFoundError(
            f"{source} is no folder that holds a tokenizer: wanted tokenizer.json, or vocab.json "
            "and merges.txt"
        )
    try:
        clip = CLIPTokenizer.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(
            f"{source!r} is no folder here, and could not be had from the Hugging Face hub: {error}"
        ) from error
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise ValueError(f"the tokenizer in {source} is damaged: {error}") from error
    if clip.eos_token_id != len(clip) - 1:
        raise ValueError(
            f"{source}: EOT is {clip.eos_token_id} of {len(clip)} ids, wanted the largest, at "
            "which texts are pooled: it is not CLIP's tokenizer, or tokens were added to it. Name "
            "one without them: --tokenizer=openai/clip-vit-base-patch16 (otseg_jax.convert), "
            "--config.clip.tokenizer=… (a training)"
        )
    return clip


def embed(
    tower: TextTower, tokens: Int[np.ndarray, "t l"], *, shape: tuple[int, int], batch: int = 256
) -> Float[np.ndarray, "k n c"]:
    """Embed the texts of `fill`, for a `shape` of (k, n), `batch` of them at a time.

    Raises:
        ValueError: k·n is not the number of texts; an embedding is not finite, as where the
            tokenizer is not the tower's.
    """
    if len(tokens) != shape[0] * shape[1]:
        raise ValueError(f"{len(tokens)} texts are not {shape[0]} classes × {shape[1]} templates")
    graphdef, state = nnx.split(tower)
    # what follows the end of a text changes nothing: most texts are a tenth as long as the tower
    longest = int(tokens.argmax(axis=1).max()) + 1 if len(tokens) else 1
    tokens = tokens[:, : -(-longest // LENGTH) * LENGTH]
    # batches of few sizes, so that few compiles serve all word lists
    batch = min(batch, next((size for size in SIZES if size >= len(tokens)), batch))
    padded = np.concatenate([tokens, np.repeat(tokens[-1:], -len(tokens) % batch, axis=0)])
    # done once: worth full precision, and the same on every accelerator
    with jax.default_matmul_precision("highest"):
        parts = (padded[i : i + batch] for i in range(0, len(padded), batch))
        rows = [np.asarray(_unit_rows(graphdef, state, part)) for part in parts]
    embeddings = np.concatenate(rows)[: len(tokens)]
    if not np.isfinite(embeddings).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(embeddings).all(1))} of {len(tokens)} text embeddings are not "
            f"finite: the tower has {tower.config.vocab_size} token ids, the largest here is "
            f"{tokens.max()}"
        )
    return embeddings.reshape(*shape, -1)


@partial(jax.jit, static_argnums=0)
def _unit_rows(graphdef, state, tokens):
    raw = nnx.merge(graphdef, state)(tokens)
    return raw / jnp.linalg.norm(raw, axis=-1, keepdims=True)


def vocabulary_hash(names: Sequence[str], templates: Sequence[str], text_fingerprint: str) -> str:
    """SHA-256 of all that decides a vocabulary's embeddings, the order of its classes included."""
    content = json.dumps([list(names), list(templates), text_fingerprint])
    return hashlib.sha256(content.encode()).hexdigest()


def cached(
    folder: str | Path,
    key: str,
    shape: tuple[int, int, int],
    make: Callable[[], Float[np.ndarray, "k n c"]],
) -> Float[np.ndarray, "k n c"]:
    """Embeddings of a `vocabulary_hash` from a folder, or made and put there.

    A damaged file is written anew; a folder that cannot be written to costs a warning.
    """
    path = paths.local(folder) / f"{key}.npy"
    if path.is_file():
        try:
            return _read(path, shape)
        except ValueError as error:
            LOGGER.warning("The cache is written anew: %s", error)
    embeddings = make()
    try:
        with paths.atomic(path) as part, part.open("wb") as file:
            np.save(file, embeddings)
    except OSError as error:
        LOGGER.warning("Text embeddings are not cached: %s", error)
    return embeddings


def read_embeddings(
    path: str | Path, *, classes: int, templates: int, width: int, first: bool = False
) -> Float[np.ndarray, "k n c"]:
    """Read a vocabulary that was embedded elsewhere, and bring it to unit length.

    Args:
        path: .npy file, [k, n, c] or, for one template, [k, c]; any float type, any length.
        first: take the first of the file's templates, however many they are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an array file, another shape or type, values that are zero or not finite.
    """
    array = _read(paths.local(path), (classes, templates, width), first=first)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def _read(
    path: Path, wanted: tuple[int, int, int], *, first: bool = False
) -> Float[np.ndarray, "k n c"]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; wanted a .npy file of text embeddings")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{path} holds {kind}, wanted floating point")
    if first and array.ndim == 3:
        array = array[:, :1]
    if array.shape != wanted and (wanted[1] != 1 or array.shape != (wanted[0], wanted[2])):
        raise ValueError(
            f"{path} is {list(array.shape)}, wanted {list(wanted)}: classes, templates and the "
            "width of the text tower; give the file of this vocabulary, or none to embed it"
        )
    array = array.astype(np.float32).reshape(wanted)
    lengths = np.linalg.norm(array, axis=-1)
    bad = int(np.sum(~(np.isfinite(lengths) & (lengths > 0))))
    if bad:
        raise ValueError(f"{path}: {bad} of {lengths.size} embeddings are zero or not finite")
    return array
