r"""Say what is wrong with an installation, a data set or a model, and which command mends it.

    python -m otseg_jax.doctor
    python -m otseg_jax.doctor --root=VOCdevkit --dataset=voc12 --contact_sheet=voc12.png
    python -m otseg_jax.doctor --root=my_data --dataset=folder --all --json
    python -m otseg_jax.doctor --model=runs/voc12
    python -m otseg_jax.doctor --model=openai/clip-vit-base-patch16

Versions and devices are always looked at: what fits together, what JAX sees and how fast that is.
--root and --dataset are those of a configuration (config.data): its lists, masks and photos are
read, a sample of them or --all. --model is what `otseg_jax.load` takes. Nothing is changed. The
status is 1 where an error was found.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from otseg_jax import cli
from otseg_jax.doctor import findings, parts, versions

FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
flags.DEFINE_string("root", "", "Folder of a data set", flag_values=FLAGS)
flags.DEFINE_string(
    "dataset",
    "",
    "Which one it is: voc12, coco_stuff, …, or folder for your own",
    flag_values=FLAGS,
)
flags.DEFINE_bool("all", False, "Read every mask and photo, no sample", flag_values=FLAGS)
flags.DEFINE_string("model", "", "Model directory, run or CLIP", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "Print one JSON object", flag_values=FLAGS)
flags.DEFINE_string(
    "contact_sheet", "", "PNG to write: some photos beside their masks", flag_values=FLAGS
)


def main(argv: Sequence[str]) -> None:
    """Run what the command line says."""
    rest, config = cli.parse(argv, FLAGS, usage=__doc__)
    if config is not None:
        sys.exit("error: --config is of a training: name the data with --root and --dataset")
    if rest:
        sys.exit(f"error: unexpected arguments {rest}; --help shows how")
    if bool(FLAGS.root) != bool(FLAGS.dataset):
        sys.exit("error: wanted --root=DIR and --dataset=NAME together, got one of them")
    if FLAGS.contact_sheet and not FLAGS.root:
        sys.exit("error: --contact_sheet is of a data set: name it with --root and --dataset")
    cli.quiet_libraries()
    cli.run(work)


def work() -> None:
    """Look at all that was asked for; SystemExit with 1 where an error was found."""
    packages, twice = versions.installed()
    found = {"versions": [*versions.check(packages), *twice]}
    data = (FLAGS.dataset, FLAGS.root, FLAGS.all, FLAGS.contact_sheet)
    wanted: list[tuple[Any, ...]] = [(parts.devices,)]
    wanted += [(parts.dataset, *data)] * bool(FLAGS.root)
    wanted += [(parts.model, FLAGS.model)] * bool(FLAGS.model)
    for look, *given in wanted:
        told = findings.count(found, "error") > 0
        found[look.__name__] = parts.apart(look, *given, told=told)
    print(findings.to_json(found) if FLAGS.json else findings.to_text(found))
    if findings.count(found, "error"):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv)
