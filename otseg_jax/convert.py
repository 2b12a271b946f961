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

SOURCE is a file, a folder or a hub name; what it is shows in its content. DEST must not be there.
A checkpoint of the original programs does not tell its classes, templates, normalisation, windows
and regime: --config names the configuration of its data set. `configs/common.py` lists the fields.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from otseg_jax import command, dossier, exporting, importing, model_dir
from otseg_jax.weights import hub

WRITERS = {
    "model": model_dir.write,
    "mmseg": exporting.to_mmseg,
    "hf": exporting.to_hugging_face,
    "stablehlo": exporting.to_stablehlo,
}

# a set of its own: `main` has flags of the same names
FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
flags.DEFINE_enum("format", "model", list(WRITERS), "What to write", flag_values=FLAGS)
flags.DEFINE_bool(
    "verify",
    False,
    "Print a dossier and write DEST.parity.md and .json: every tensor after the round trip and, "
    "where torch is installed, every layer against it",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "tokenizer", "", "Tokenizer to put inside: folder or hub name", flag_values=FLAGS
)
flags.DEFINE_string(
    "classes", "", "CSV file name,split, where the configuration has none", flag_values=FLAGS
)
flags.DEFINE_string("clip", "", "CLIP of a workdir, where it lies elsewhere now", flag_values=FLAGS)
flags.DEFINE_string(
    "checkpoint", "latest", "Of a workdir: latest, best or a step", flag_values=FLAGS
)
flags.DEFINE_integer(
    "image_size", 0, "Resize a CLIP's positions to this side, pixels", flag_values=FLAGS
)
flags.DEFINE_integer(
    "vision_heads", 0, "Attention heads; 0: one per 64 channels", flag_values=FLAGS
)
flags.DEFINE_integer("text_heads", 0, "Attention heads; 0: one per 64 channels", flag_values=FLAGS)
flags.DEFINE_enum(
    "activation",
    "",
    ["", "quick_gelu", "gelu"],
    'Where the file does not tell; "": quick_gelu',
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "upload", "", "Hub name to publish the model directory under", flag_values=FLAGS
)
config_flags.DEFINE_config_file(
    "config", None, "Configuration file: configs/voc12.py", flag_values=FLAGS
)


def convert(
    source: str,
    dest: str | Path,
    *,
    config: ml_collections.ConfigDict | None = None,
    options: importing.Options = importing.Options(),  # noqa: B008 (a named tuple is immutable)
    format: str = "model",
    verify: bool = False,
    upload: str = "",
) -> str:
    """Convert a source.

    Args:
        source: file, folder or hub name.
        dest: what to write; must not be there.
        config: as in `configs/common.py`, for checkpoints of the original programs.
        options: what else to know.
        format: "model", "mmseg", "hf" or "stablehlo".
        verify: write the parity dossier beside `dest`.
        upload: hub name "owner/name" to publish a model directory under.

    Returns:
        What was done, for people; with `verify` the dossier as Markdown.

    Raises:
        FileNotFoundError, ValueError: one message; nothing is left at `dest`.
    """
    dest = Path(dest)
    if upload and format not in ("model", "stablehlo"):
        raise ValueError(f"--upload publishes model directories, not --format={format}")
    model_dir.check_free(dest)  # before the work
    imported = importing.load(source, config=config, options=options)
    WRITERS[format](dest, imported.model)
    lines = [f"{source} ({imported.format}) → {dest} ({format})"]
    if verify:
        report = dossier.make(imported, dest, format=format, source=source)
        files = dossier.write(dest, report)
        lines = [dossier.to_markdown(report), *lines, f"written: {', '.join(map(str, files))}"]
    if upload:
        lines.append(f"published: {hub.upload(dest, upload)}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Run what the command line says."""
    try:
        rest = FLAGS(list(argv))[1:]
        config = FLAGS.config
        _ = config is None or config.seed  # a file that could not be read raises only when used
    except flags.Error as error:
        sys.exit(f"error: {error}; --help lists the flags")
    except (OSError, AttributeError) as error:
        sys.exit(f"error: --config cannot be read: {error}")
    if FLAGS.help or len(rest) != 2:
        print(__doc__, FLAGS.get_help(), sep="\n")
        sys.exit(0 if FLAGS.help else "error: wanted SOURCE DEST")
    options = importing.Options(
        **{name: getattr(FLAGS, name) for name in importing.Options._fields}
    )
    command.run(
        lambda: print(
            convert(
                *rest,
                config=config,
                options=options,
                format=FLAGS.format,
                verify=FLAGS.verify,
                upload=FLAGS.upload,
            )
        )
    )


if __name__ == "__main__":
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("otseg_jax").setLevel(logging.INFO)
    main(sys.argv)
