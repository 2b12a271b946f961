"""What was evaluated, in words: command, weights, data, how photos are run, versions and date."""

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from otseg_jax import settings
from otseg_jax.build import Experiment
from otseg_jax.checkpoints.spec import Spec
from otseg_jax.models.training_free import TrainingFreeConfig

VERSIONS = ("otseg-jax", "jax", "jaxlib", "flax", "numpy")


class About(NamedTuple):
    """What the report says of an evaluation."""

    said: Mapping[str, str]
    settings: Mapping[str, Any]  # by dotted name


def of(experiment: Experiment, photos: int, *, where: str, trained: Spec | None) -> About:
    """All that is known when an evaluation ends.

    Args:
        photos: how many were evaluated.
        where: the weights are.
        trained: what they were trained as, where that is not this experiment.
    """
    options, spec, devices = experiment.settings, trained or experiment.spec, jax.devices()
    data, run = options.data, options.eval
    python, *rest = sys.orig_argv
    command = shlex.join([Path(python).name, *rest])
    versions = [f"{name} {metadata.version(name)}" for name in VERSIONS]
    said = {
        # a notebook's would be its kernel's
        "Command": command if "otseg_jax" in command else "called from Python",
        "Weights": where,
        "CLIP": f"{spec.clip_source}, fingerprint {spec.clip_fingerprint[:12]}",
        "Training": _training(spec),
        "Data": f"{data.dataset} {data.root}".strip() + f", validation split, {photos:,} photos",
        "Windows": _windows(experiment),
        "Scales": ", ".join(map("{:g}".format, run.scales)) + " and mirrored" * run.flip,
        "Devices": f"{len(devices)} × {devices[0].device_kind}, products in {options.dtype}",
        "Versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "Date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %z}",
    }
    return About(said, settings.leaves(options))


def _training(spec: Spec) -> str:
    if isinstance(spec.model, TrainingFreeConfig):
        return f"none: {spec.model.method} runs the CLIP as it is"
    hidden = f"{len(spec.unseen)} of {len(spec.classes)} classes unseen"
    return f"{spec.regime} on {spec.dataset}, {hidden}"


def _windows(experiment: Experiment) -> str:
    side, run = experiment.settings.data.crop, experiment.settings.eval
    size = f"photos within {run.scale[0]:g} × {run.scale[1]:g} pixels"
    return f"{side} × {side} pixels every {run.stride}, {size}" if side else f"{size}, as a whole"
