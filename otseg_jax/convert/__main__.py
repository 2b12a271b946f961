r"""Convert weights: any published checkpoint in, a model directory or another program's format out.

    python -m otseg_jax.convert openai/clip-vit-base-patch16 clip_b16
    python -m otseg_jax.convert ViT-B-16.pt clip_b16 --tokenizer=openai/clip-vit-base-patch16
    python -m otseg_jax.convert voc12.pth voc12 --config=configs/voc12.py:inductive --verify
    python -m otseg_jax.convert zegclip.pth zegclip --config=configs/voc12.py \
        --config.model.decoder=cross_attention
    python -m otseg_jax.convert runs/voc12 voc12                    # a workdir of otseg_jax.main
    python -m otseg_jax.convert voc12 voc12.pth --format=mmseg      # for the original program
    python -m otseg_jax.convert voc12 voc12_clip --format=hf        # its CLIP, for transformers
    python -m otseg_jax.convert voc12 voc12_hlo --format=stablehlo  # jax.export, classes an input
    python -m otseg_jax.convert runs/voc12 voc12 --upload=USER/voc12 --license=apache-2.0  # the hub

SOURCE is a file, a folder or a hub name; what it is shows in its content. DEST must not be there.
A checkpoint of the original programs does not tell its classes, templates, normalisation, windows
and regime: --config names the configuration of its data set. `configs/common.py` lists the fields.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from otseg_jax import build, cli
from otseg_jax.convert import WRITERS, convert
from otseg_jax.convert.hints import HELP, Hints
from otseg_jax.models.transformer import ACTIVATIONS

# a set of its own: `main` has flags of the same names
FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
flags.DEFINE_enum("format", "model", list(WRITERS), "What to write", flag_values=FLAGS)
flags.DEFINE_bool(
    "verify",
    False,
    "Print a parity report and write DEST.parity.md and .json: every tensor after the round trip "
    "and, where torch is installed, every layer against it",
    flag_values=FLAGS,
)
for name, text in HELP.items():
    default = Hints._field_defaults[name]
    if name == "activation":
        flags.DEFINE_enum(name, default, ["", *ACTIVATIONS], text, flag_values=FLAGS)
    elif isinstance(default, int):
        flags.DEFINE_integer(name, default, text, lower_bound=0, flag_values=FLAGS)
    else:
        flags.DEFINE_string(name, default, text, flag_values=FLAGS)
flags.DEFINE_string(
    "upload",
    "",
    "Hub name, OWNER/NAME, to publish the model directory under, with a card: figures of its run, "
    "how to load it",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "license", "", "Of what --upload publishes, as the hub calls it: apache-2.0", flag_values=FLAGS
)
flags.DEFINE_bool("private", False, "Others do not see what --upload makes", flag_values=FLAGS)


def main(argv: Sequence[str]) -> None:
    """Run what the command line says."""
    rest, config = cli.parse(argv, FLAGS, usage=__doc__)
    if len(rest) != 2:
        sys.exit(f"error: wanted SOURCE DEST, got {rest or 'neither'}; --help shows how")
    cli.quiet_libraries()

    def work() -> None:
        settings = None if config is None else build.settings_of(config)
        given: dict[str, Any] = {name: FLAGS[name].value for name in HELP}
        how = {"format": FLAGS.format, "check": FLAGS.verify, "upload": FLAGS.upload}
        how |= {"license": FLAGS.license, "private": FLAGS.private}
        print(convert(*rest, hints=Hints(settings, **given), **how))

    cli.run(work)


if __name__ == "__main__":
    main(sys.argv)
