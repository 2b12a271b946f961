"""A folder of weights by name: one that is here, the one of the package, or one of the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

BUILT_IN = "shapes-clip"
"""Name of the small CLIP of the shapes world, which comes with the package."""

TOKENIZER = ("vocab.json", "merges.txt", "tokenizer*.json")


def find(source: str | Path, patterns: Sequence[str]) -> Path:
    """The folder that a name stands for, fetched from the hub if it is not here.

    Args:
        source: folder, `BUILT_IN`, or hub name "owner/name".
        patterns: names of the files wanted, with * for any text.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such folder, and no hub name or none that can be had.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if name == BUILT_IN:
        return Path(__file__).parent.parent / "data" / "shapes_clip"
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise FileNotFoundError(f"{name!r} is no folder, and no hub name of the form owner/name")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is no folder here, and could not be had from the Hugging Face hub: {error}"
        ) from error


def upload(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Publish a folder on the hub; you must be logged in (`hf auth login`).

    Args:
        folder: model directory.
        name: hub name "owner/name"; the repository is made if need be.
        private: only for its owner, where it is made.

    Returns:
        Address of the commit.
    """
    huggingface_hub.create_repo(name, private=private, exist_ok=True)
    return huggingface_hub.upload_folder(repo_id=name, folder_path=folder).commit_url
