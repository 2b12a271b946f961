r"""Train or evaluate from the command line; every field of the configuration is a flag.

    python -m otseg_jax.main --config=configs/shapes.py --workdir=runs/shapes
    python -m otseg_jax.main --config=configs/shapes.py --workdir=runs/shapes \
        --config.log=tensorboard,wandb
    python -m otseg_jax.main --config=configs/voc12.py --config.data.root=VOCdevkit/VOC2012 \
        --config.clip.source=openai/clip-vit-base-patch16 --workdir=runs/voc12
    python -m otseg_jax.main --config=configs/voc12.py:transductive \
        --config.data.root=VOCdevkit/VOC2012 --config.init_from=runs/voc12 --workdir=runs/voc12_t
    python -m otseg_jax.main --config=configs/voc12.py --config.data.root=VOCdevkit/VOC2012 \
        --mode=eval --workdir=runs/voc12
    python -m otseg_jax.main --config=configs/training_free/voc20.py:naclip --mode=eval \
        --config.data.root=VOCdevkit/VOC2012 --workdir=runs/voc20_naclip
    python -m otseg_jax.main --config=configs/shapes.py --mode=eval --workdir=runs/shapes \
        --config.eval.scales=1,1.25,1.5 --config.eval.flip=True

--config is a file of `configs`, or one of your own, with a regime after a colon, in
`configs/training_free` with a method; --config.NAME sets a field, and `configs/common.py` lists
them. A run goes on where it was if its command is given again.
"""

import sys

import jax
from absl import flags

from otseg_jax import build, cli, compile_cache, processes
from otseg_jax.evaluation import report
from otseg_jax.training import loop

FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of checkpoints, logs, tables and pictures, here or in a bucket: gs://…, s3://…",
    flag_values=FLAGS,
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and evaluate, or evaluate only", flag_values=FLAGS
)
MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "Join the other processes of this run: TPU pods, SLURM, Open MPI and Kubernetes",
    flag_values=FLAGS,
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where nothing tells it", flag_values=FLAGS
)
PROCESSES = flags.DEFINE_integer("processes", 0, "Of this run, with it", flag_values=FLAGS)
PROCESS = flags.DEFINE_integer("process", -1, "Which this is, from 0", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Run what the command line says."""
    rest, config = cli.parse(argv, FLAGS, required=["config", "workdir"], usage=__doc__)
    if rest:
        sys.exit(f"error: unexpected arguments {rest}: fields are set as --config.NAME=…")
    cli.quiet_libraries()
    run = {"train": loop.train, "eval": report.evaluate}[MODE.value]

    def work() -> None:
        named = COORDINATOR.value, PROCESSES.value, PROCESS.value
        if MULTIHOST.value or named != ("", 0, -1):
            processes.start(*named)
            if jax.process_index():
                cli.say_nothing()
        options = build.settings_of(config)
        compile_cache.keep(options.compile_cache)
        run(options, str(WORKDIR.value))

    with processes.ending_together():
        cli.run(work)


if __name__ == "__main__":
    main(sys.argv)
