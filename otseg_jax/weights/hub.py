"""A folder of weights by name: one that is here, the one of the package, or one of the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from otseg_jax import paths

BUILT_IN = "shapes-clip"  # the small CLIP of the shapes world that comes with the package
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer*.json")


def find(source: str | Path, patterns: Sequence[str]) -> Path:
    """The folder that a name stands for, fetched from the hub if it is not here.

    Args:
        source: folder, `BUILT_IN`, or hub name "owner/name".
        patterns: names of the files wanted, with * for any text.

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
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise FileNotFoundError(f"{name!r} is no folder, and no hub name of the form owner/name")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is no folder here, and could not be had from the Hugging Face hub: {error}"
        ) from error


def upload(folder: str | Path, name: str) -> str:
    """Publish a model directory on the hub and return the address of the commit.

    You must be logged in (`hf auth login`). The repository "owner/name" is made if need be.
    """
    huggingface_hub.create_repo(name, exist_ok=True)
    return huggingface_hub.upload_folder(repo_id=name, folder_path=folder).commit_url
