"""Weights & Biases: one run there for a run here, however often it is interrupted."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from otseg_jax import paths

LOGGER = logging.getLogger(__name__)

RUN_ID = "wandb_id"  # file of a workdir
PROJECT = "otseg_jax"  # unless WANDB_PROJECT names one
PATIENCE = 600.0  # seconds that the end of a run waits for what is not sent yet


def check_login() -> None:
    """Refuse, with a ValueError, to begin where nobody is logged in and the log is to be sent."""
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "--config.log=wandb: nobody is logged in: `wandb login`, or set WANDB_API_KEY, or "
            "WANDB_MODE=offline to keep the log here"
        )


class WandbWriter:
    """Sends to wandb.ai, or keeps in `wandb/` of the workdir, as WANDB_MODE says or the net allows.

    Args:
        settings: of the run, by dotted name.
    """

    def __init__(self, workdir: Path, settings: Mapping[str, Any]) -> None:
        remembered = workdir / RUN_ID
        how: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": os.environ.get("WANDB_NAME", workdir.name),
            "dir": str(workdir),
            "id": remembered.read_text().strip() if remembered.is_file() else None,
            "resume": "allow",
            "config": dict(settings),
            "reinit": "create_new",
            # what is printed stays as it is
            "settings": wandb.Settings(console="off", finish_timeout=PATIENCE),
        }
        try:
            self._run = wandb.init(**how)
        except (wandb.Error, OSError) as error:
            told = " ".join(str(error).split())
            said = "the log of wandb is kept here (%s); wandb sync %s/wandb/offline-run-* sends it"
            LOGGER.warning(said, told, workdir)
            self._run = wandb.init(**how, mode="offline")
        with paths.atomic(remembered) as part:
            part.write_text(self._run.id + "\n")

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write figures."""
        self._run.log(dict(numbers), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Write a picture, a PNG."""
        self._run.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Write what is not written yet."""
        self._run.finish()
