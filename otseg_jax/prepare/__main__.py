r"""Write a data set as records: few large files, which network disks and buckets read faster.

    python -m otseg_jax.prepare voc12 --root=VOCdevkit/VOC2012 --output=records
    python -m otseg_jax.prepare folder --root=my_data --output=records
    python -m otseg_jax.prepare ade20k --root=ADEChallengeData2016 --output=records --splits=val
    python -m otseg_jax.prepare coco_stuff --root=coco_stuff164k --output=gs://bucket/records

Then --config.data.root=records trains and evaluates on the same examples in the same order as the
files give, and tfds.data_source("voc12", split="train", data_dir="records") reads them elsewhere.
Photos stay as they are, byte for byte; masks become PNGs of class ids, of 16 bits with more than
255 classes, in which the largest value is no class.

The same command goes on where it was stopped. At the end every record is compared with its files.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from otseg_jax import cli
from otseg_jax.prepare import prepare

FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
flags.DEFINE_string("root", None, "Folder of the data set", flag_values=FLAGS)
flags.DEFINE_string(
    "output",
    None,
    "Folder or bucket (gs://…) for the records, in OUTPUT/NAME/1.0.0; data sets may share it",
    flag_values=FLAGS,
)
flags.DEFINE_list("splits", "train,val", "Which to write, with a comma", flag_values=FLAGS)
flags.DEFINE_bool("augmented", True, "VOC: train has the images of aug.txt", flag_values=FLAGS)
flags.DEFINE_bool("raw_ids", False, "COCO: convert raw ids", flag_values=FLAGS)
flags.DEFINE_integer(
    "threads",
    os.cpu_count() or 1,
    "That read and write",
    lower_bound=1,
    upper_bound=256,
    flag_values=FLAGS,
)


def main(argv: Sequence[str]) -> None:
    """Run what the command line says."""
    rest, config = cli.parse(argv, FLAGS, required=("root", "output"), usage=__doc__)
    if config is not None:
        sys.exit("error: --config is of a training: name a data set, such as voc12")
    if len(rest) != 1:
        sys.exit(f"error: wanted one data set, got {' '.join(rest) or 'none'}; --help shows how")
    cli.quiet_libraries()

    def work() -> None:
        options = {"augmented": FLAGS.augmented, "raw_ids": FLAGS.raw_ids, "threads": FLAGS.threads}
        print(prepare(rest[0], FLAGS.root, FLAGS.output, FLAGS.splits, **options))

    cli.run(work)


if __name__ == "__main__":
    main(sys.argv)
