"""Whether a checkpoint and a configuration belong together, and what the one takes from the other.

Descriptions are the JSON that goes into every checkpoint (`Experiment.meta`).
"""

import logging
from collections.abc import Mapping
from typing import Any

import ml_collections

LOGGER = logging.getLogger(__name__)

# Fields that do not change what is learned: a run may be resumed with other values. Of the files
# `clip.source` and `text.embeddings` the content counts: their fingerprints are compared instead.
FREE = (
    *("mesh.", "eval.", "clip.source", "text.embeddings", "text.cache", "init_", "model.remat"),
    *("data.root", "data.threads", "data.buffer"),
    *("train.log_every", "train.eval_every", "train.eval_images", "train.checkpoint_every"),
)


def check_same_run(saved: Mapping[str, Any], meta: Mapping[str, Any], *, where: str) -> None:
    """Refuse to go on with a run that another configuration began.

    Args:
        saved: description in the run's checkpoint.
        meta: description of this experiment.
        where: the workdir, for the message.

    Raises:
        ValueError: every field that differs, except those of `FREE`.
    """
    theirs, ours = _leaves(saved["config"]), _leaves(meta["config"])
    problems = [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name) and not name.startswith(FREE)
    ]
    problems += [
        f"the {name} were {saved[name]!r} and are {meta[name]!r}"
        for name in ("classes", "unseen")
        if saved[name] != meta[name]
    ]
    if problems:
        raise ValueError(
            f"{where} holds a run of another configuration: {'; '.join(problems)}. Repeat its "
            "flags to resume it, or choose another --workdir"
        )
    check_same_model(saved, meta, where=where)


def check_same_model(saved: Mapping[str, Any], meta: Mapping[str, Any], *, where: str) -> None:
    """Refuse a checkpoint that was trained with another CLIP or other text embeddings.

    On another data set the class names are others, and their embeddings no concern here.

    Args:
        saved: description in the checkpoint.
        meta: description of this experiment.
        where: the checkpoint, for the message.

    Raises:
        ValueError: what differs.
    """
    problems = []
    if saved["clip_fingerprint"] != meta["clip_fingerprint"]:
        problems.append(
            "its CLIP weights are not those of --config.clip.source="
            f"{meta['config']['clip']['source']} (it was trained with "
            f"{saved['config']['clip']['source']}, seed {saved['config']['seed']})"
        )
    theirs, ours = saved["config"]["data"].get("dataset"), meta["config"]["data"]["dataset"]
    # folders of one's own have one name and may be different data sets
    same_data = saved["classes"] == meta["classes"] or theirs == ours != "folder"
    if same_data and saved["unseen"] != meta["unseen"]:
        problems.append(f"its unseen classes were {saved['unseen']} and are {meta['unseen']}")
    if same_data and saved["vocabulary_hash"] != meta["vocabulary_hash"]:
        problems.append(
            "its text embeddings are not these: the vocabulary hash is "
            f"{saved['vocabulary_hash'][:12]} there and {meta['vocabulary_hash'][:12]} here; check "
            "the class list, --config.text.templates, --config.text.embeddings and "
            "--config.clip.source"
        )
    if problems:
        raise ValueError(f"{where} does not fit: {'; '.join(problems)}")


def adopt(config: ml_collections.ConfigDict, saved: Mapping[str, Any]) -> None:
    """Take over, in place, what decides how trained weights are to be run.

    Args:
        config: of an evaluation; its own `model`, `regime`, `data.crop`, `data.mean` and `data.std`
            give way, and every change is announced.
        saved: description in the checkpoint.
    """
    theirs, ours = _leaves(saved["config"]), _leaves(config.to_dict())
    for name, value in theirs.items():
        if not name.startswith(("model.", "regime", "data.crop", "data.mean", "data.std")):
            continue
        value = tuple(value) if isinstance(value, list) else value
        if ours.get(name) != value:
            LOGGER.info("%s=%s, as the checkpoint was trained with", name, value)
            config.update_from_flattened_dict({name: value})


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
