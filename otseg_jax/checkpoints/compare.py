"""What keeps trained weights from being used, or a run from going on, under another description."""

import logging

from otseg_jax import settings
from otseg_jax.checkpoints.restore import Trained
from otseg_jax.checkpoints.spec import STATED, Record, Spec
from otseg_jax.data.lists import some
from otseg_jax.settings import Settings

LOGGER = logging.getLogger(__name__)

# Settings that do not change what is learned: a run may be resumed with other values. Of the files
# CLIP and of `text.embeddings` the content counts: their fingerprints are compared instead.
FREE = (
    "compile_cache",
    "log",
    "profile",
    "mesh.",
    "eval.",
    "clip.source",
    *(f"clip.{name}" for name in STATED),
    "text.embeddings",
    "text.cache",
    "init_",
    "model.remat",
    "data.root",
    "data.threads",
    "data.buffer",
    "train.accumulate",  # the gradient is the same
    "train.log_every",
    "train.eval_every",
    "train.eval_images",
    "train.checkpoint_every",
)


def differences(saved: Spec, here: Spec, was: Settings | None, now: Settings) -> list[str]:
    """What keeps weights of one description from being used under another.

    On another data set the class names are others, and their embeddings no concern here. `was` and
    `now` are the settings there and here; None: a model directory, which tells all itself.
    """
    problems, same_clip = list[str](), saved.clip_fingerprint == here.clip_fingerprint
    if not same_clip:
        other = _restated(was, now, *STATED[:3])
        if saved.clip_source != here.clip_source:
            other.insert(
                0, f"--config.clip.source was {saved.clip_source} and is {here.clip_source}"
            )
        changed = f"what lies at --config.clip.source={here.clip_source} has changed since"
        problems.append(f"its CLIP is not this one: {', '.join(other) or changed}")
    theirs, ours = saved.tokenizer_fingerprint, here.tokenizer_fingerprint
    if theirs and ours and theirs != ours:
        other = _restated(was, now, "tokenizer")
        changed = f"it was that of {saved.clip_source}, and is that of {here.clip_source}"
        problems.append(f"its tokenizer is not this one: {', '.join(other) or changed}")
    # folders of one's own have one name and may be different data sets
    same_data = saved.classes == here.classes or saved.dataset == here.dataset != "folder"
    if same_data and saved.unseen != here.unseen:
        problems.append(f"its unseen classes were {list(saved.unseen)} and are {list(here.unseen)}")
    if same_data and saved.vocabulary_hash != here.vocabulary_hash:
        if saved.classes != here.classes:
            problems.append(f"its classes were {some(saved.classes)} and are {some(here.classes)}")
        if saved.templates != here.templates:
            problems.append(
                f"--config.text.templates were {some(saved.templates)} and are "
                f"{some(here.templates)}"
            )
        if same_clip and saved.text_fingerprint != here.text_fingerprint:
            problems.append(
                "its text embeddings are not these: they came from another "
                '--config.text.embeddings, or from the text tower where that is ""'
            )
    return problems


def check_same_model(found: Trained, here: Record) -> None:
    """Refuse, with all differences, weights trained with another CLIP or text embeddings."""
    if problems := differences(found.spec, here.spec, found.settings, here.settings):
        raise ValueError(
            f"{found.where} does not fit: {'; '.join(problems)}. Give what it was trained with"
        )


def check_same_run(saved: Record, here: Record, *, done: int, where: str) -> None:
    """Refuse, with all differences but those of `FREE`, a run that other settings began.

    Args:
        done: steps of it; another length from there on is announced.
    """
    theirs, ours = settings.leaves(saved.settings), settings.leaves(here.settings)
    problems = [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name) and not name.startswith((*FREE, "train.steps"))
    ]
    before, after = saved.spec.classes, here.spec.classes
    if before != after and here.spec.dataset == "folder":
        problems.append(f"the classes were {some(before)} and are {some(after)}")
    planned, steps = saved.settings.train.steps, here.settings.train.steps
    if steps < done:
        problems.append(f"train.steps={steps}, and {done} are done")
    unfit = differences(saved.spec, here.spec, saved.settings, here.settings)
    if problems := problems + unfit:
        other = not unfit and saved.spec.model == here.spec.model
        raise ValueError(
            f"{where} holds a run of another configuration: {'; '.join(problems)}. Repeat its "
            "flags to resume it, or "
            + (
                f"start a run from its weights: --config.init_from={where} --workdir=NEW"
                if other
                else "choose another --workdir"
            )
        )
    if steps != planned:
        LOGGER.warning(
            "train.steps was %d and is %d: the learning rate follows the new length from step %d "
            "on, which is not what one run of %d steps gives",
            planned,
            steps,
            done,
            steps,
        )


def _restated(was: Settings | None, now: Settings, *names: str) -> list[str]:
    pairs = [(name, getattr(was.clip, name), getattr(now.clip, name)) for name in names if was]
    return [f"--config.clip.{name} was {a!r} and is {b!r}" for name, a, b in pairs if a != b]
