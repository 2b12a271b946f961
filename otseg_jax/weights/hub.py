"""A folder of weights by name: one that is here, the one of the package, or one of the hub."""

import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from otseg_jax import paths, text

LOGGER = logging.getLogger(__name__)

BUILT_IN = "shapes-clip"  # the small CLIP of the shapes world that comes with the package
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer*.json")
OF_HUB = r"[\w-][\w.-]*/[\w-][\w.-]*"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def find(
    source: str | Path, patterns: Sequence[str], choices: Sequence[Sequence[str]] = ()
) -> Path:
    """The folder that a name stands for, fetched from the hub if it is not here.

    Args:
        source: folder, `BUILT_IN`, or hub name "owner/name".
        patterns: names of the files wanted, with * for any text.
        choices: more of them, of which the first whose plain names are all there is fetched alone:
            the same weights often lie there three times. The first name is that of the weights.

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
    try:
        listing = huggingface_hub.HfApi().model_info(name).siblings or []
        wanted = [*patterns, *_choose(choices, {entry.rfilename for entry in listing})]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # any type: the hub's HTTP library is another by its version
        before = _fetched_before(name, patterns, choices)
        if before is None:
            raise FileNotFoundError(
                f"{name!r} is no folder here, and could not be had from the Hugging Face hub: "
                f"{reason(error)}"
            ) from error
        LOGGER.info("%s: as it was fetched before, for the hub gave nothing new", name)
        return before


def _choose(choices: Sequence[Sequence[str]], there: set[str]) -> Sequence[str]:
    plain = ([name for name in choice if "*" not in name] for choice in choices)
    return next((c for c, names in zip(choices, plain, strict=True) if there.issuperset(names)), ())


def _fetched_before(
    name: str, patterns: Sequence[str], choices: Sequence[Sequence[str]]
) -> Path | None:
    """What lies in the hub's cache, if it is whole: with one of the choices, not with all."""
    for choice in choices or [()]:
        with contextlib.suppress(Exception):  # any type, as above: it is not there
            wanted = [*patterns, *choice]
            folder = huggingface_hub.snapshot_download(
                name, allow_patterns=wanted, local_files_only=True
            )
            if all((Path(folder) / weights).is_file() for weights in choice[:1]):
                return Path(folder)
    return None


def reason(error: BaseException) -> str:
    """Why the hub gave or took nothing, and what mends it, in one line."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    responses = [getattr(link, "response", None) for link in chain]
    status = next((found.status_code for found in responses if found is not None), None)
    if any(isinstance(link, errors.LocalTokenNotFoundError) for link in chain):
        return f"nobody is logged in: {LOG_IN}"
    if any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        return "HF_HUB_OFFLINE forbids to ask for it, and it was not fetched before: unset that"
    if any(isinstance(link, errors.GatedRepoError) for link in chain):
        return f"its owner gives it on request: ask for it on its page, then {LOG_IN}"
    if any(isinstance(link, errors.RepositoryNotFoundError) for link in chain) or status == 404:
        return f"there is no such model, or it is private: check the name, and {LOG_IN}"
    if status == 401:
        return f"the token is not accepted: {LOG_IN} (that goes before a login)"
    if status == 403:
        page = f"{constants.ENDPOINT}/settings/tokens"
        return f"access is refused: take a token that allows it ({page}), and {LOG_IN}"
    away = any(
        isinstance(link, ConnectionError | TimeoutError) or type(link).__module__.startswith("http")
        for link in chain
    )
    if (away and status is None) or (status or 0) >= 500:
        said = f"it answered {status}" if status else "no connection"
        return (
            f"{constants.ENDPOINT} cannot be reached ({said}): try again later, or check the "
            "network and HF_ENDPOINT"
        )
    # what was tried, and what came of it
    lines = [" ".join(str(link).split()).rstrip(".") for link in (error, chain[-1])]
    return ": ".join(dict.fromkeys(lines))


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


def check_login(name: str) -> None:
    """Refuse, with a ValueError before the work, to publish where the login may not write."""
    if not re.fullmatch(OF_HUB, name):
        raise ValueError(f"{name!r} cannot be published to: wanted a hub name, owner/name")
    try:
        who = huggingface_hub.HfApi().whoami()
    except Exception as error:  # any type, as in `find`
        raise ValueError(f"{name} cannot be published: {reason(error)}") from error
    owners = [who["name"], *(group["name"] for group in who.get("orgs", ()))]
    if name.partition("/")[0].lower() not in [owner.lower() for owner in owners]:
        raise ValueError(
            f"{name} cannot be published: the login is {who['name']}, which may write to "
            f"{', '.join(f'{owner}/…' for owner in owners)}: take one of these, or {LOG_IN}"
        )
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(
            f"{name} cannot be published: the token may only read; make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens, and {LOG_IN}"
        )


def upload(folder: Path, name: str, *, private: bool = False) -> str:
    """Publish the files of a folder on the hub, in one commit, and return its address.

    The repository "owner/name" is made if need be; `private` is heeded then.

    Raises:
        ValueError: it cannot be published, and why; the hub has all files or none.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    operations = [
        huggingface_hub.CommitOperationAdd(path.relative_to(folder).as_posix(), path)
        for path in files
    ]
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, exist_ok=True, private=private or None)
        message = "Upload model with otseg_jax"
        return api.create_commit(name, operations, commit_message=message).commit_url
    except Exception as error:  # any type, as in `find`
        raise ValueError(f"{name} was not published: {reason(error)}") from error
