r"""Train or evaluate from the command line; every field of the configuration is a flag.

    python -m otseg_jax.main --config=configs/shapes.py --workdir=runs/shapes
    python -m otseg_jax.main --config=configs/voc12.py --config.data.root=VOCdevkit/VOC2012 \
        --config.clip.source=openai/clip-vit-base-patch16 --workdir=runs/voc12
    python -m otseg_jax.main --config=configs/voc12.py:transductive \
        --config.data.root=VOCdevkit/VOC2012 --config.init_from=runs/voc12 --workdir=runs/voc12_t
    python -m otseg_jax.main --config=configs/voc12.py --config.data.root=VOCdevkit/VOC2012 \
        --mode=eval --workdir=runs/voc12

`configs/common.py` lists the fields. A run goes on where it was if its command is given again.
"""

import logging
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from otseg_jax import command, evaluate, train

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with a regime after a colon: configs/voc12.py:supervised"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, logs, tables and pictures")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train and evaluate, or evaluate only")
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Call jax.distributed.initialize() first: TPU pods and SLURM"
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Run what the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: fields are set as --config.NAME=…")
    if MULTIHOST.value:
        jax.distributed.initialize()
    work = {"train": train.train_and_evaluate, "eval": evaluate.evaluate_checkpoint}[MODE.value]
    command.run(lambda: work(CONFIG.value, flags.FLAGS.workdir))


def parse(argv: list[str]) -> list[str]:
    """Parse flags; a field or file that does not exist gets one line, not a traceback."""
    try:
        rest = app.parse_flags_with_usage(argv)
        _ = CONFIG.value.seed  # a file that could not be read raises only when it is used
    except AttributeError as error:
        reason = str(error).strip("'\"").replace("\\n", ". ").replace("\\'", "'")
        sys.exit(f"error: --config has no such field: {reason}")
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: run from the folder that holds `configs`")
    except OSError as error:
        sys.exit(f"error: --config cannot be read: {error}")
    return rest


def run() -> None:
    """Parse the flags and do the work."""
    # Orbax tells of every file at INFO; ours is worth hearing
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("otseg_jax").setLevel(logging.INFO)
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
