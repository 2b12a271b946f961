"""A folder of weights by name: one that is here, the one of the package, or one of the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from otseg_jax import paths, text

BUILT_IN = "shapes-clip"  # the small CLIP of the shapes world that comes with the package
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer*.json")
OF_HUB = r"[\w-][\w.-]*/[\w-][\w.-]*"


def find(
    source: str | Path, patterns: Sequence[str], choices: Sequence[Sequence[str]] = ()
) -> Path:
    """The folder that a name stands for, fetched from the hub if it is not here.

    Args:
        source: folder, `BUILT_IN`, or hub name "owner/name".
        patterns: names of the files wanted, with * for any text.
        choices: more of them, of which the first whose first name is there is fetched alone: the
            same weights often lie there three times.

    Raises:
        FileNotFoundError: no such folder, and no hub name or none that can be had.
    """
    folder = paths.local(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if name == BUILT_IN:
        return Path(__file__).parent.parent / "data" / "shapes_clip"
    # Only what can be a hub name, and is no file here, goes out to the network.
    if folder.exists() or not re.fullmatch(OF_HUB, name):
        raise FileNotFoundError(f"{name!r} is no folder, and no hub name of the form owner/name")
    wanted = [*patterns, *_chosen(name, choices)]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # any type: the hub's HTTP library is another by its version
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name!r} is no folder here, and could not be had from the Hugging Face hub: {reason}"
        ) from error


def _chosen(name: str, choices: Sequence[Sequence[str]]) -> list[str]:
    try:
        listing = huggingface_hub.HfApi().model_info(name).siblings or []
    except Exception:  # any type, as above; offline: what was fetched before
        listing = []
    there = {entry.rfilename for entry in listing}
    first = [choice for choice in choices if choice[0] in there][:1]
    return [pattern for choice in first or choices for pattern in choice]


def tokenizer(name: str) -> str:
    """Where the tokenizer of a name lies: a folder here, that of a model directory, or a hub name.

    Raises:
        FileNotFoundError: neither a folder with a tokenizer, nor of the form of a hub name.
    """
    place = find(BUILT_IN, ()) if name == BUILT_IN else paths.local(name)
    if not place.exists() and re.fullmatch(OF_HUB, name):
        return name
    folders = [place, place / "tokenizer"] if place.is_dir() else [place.parent]
    found = next(filter(text.holds_tokenizer, folders), None)
    if found is None:
        raise FileNotFoundError(
            f"{name} is no folder that holds a tokenizer (tokenizer.json, or vocab.json and "
            "merges.txt), and no hub name such as openai/clip-vit-base-patch16"
        )
    return str(found)


def upload(folder: str | Path, name: str) -> str:
    """Publish a model directory on the hub and return the address of the commit.

    You must be logged in (`hf auth login`). The repository "owner/name" is made if need be.

    Raises:
        ValueError: it cannot be published, and why.
    """
    try:
        huggingface_hub.create_repo(name, exist_ok=True)
        return huggingface_hub.upload_folder(repo_id=name, folder_path=folder).commit_url
    except Exception as error:  # any type, as in `find`
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder} is written, but could not be published as {name}: {reason}. Log in with "
            "`hf auth login`, then `hf upload` sends the folder"
        ) from error
