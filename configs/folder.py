r"""Your own data: photos, label maps and a class list in one folder.

    python -m otseg_jax.main --config=configs/folder.py --config.data.root=my_data \
        --workdir=runs/my_data

my_data holds images/{train,val}/*.jpg (or another format of photos), labels/{train,val}/*.png with
class ids 0..K-1 and 255 where nothing is labelled, and classes.csv: the header `name,split`, then
one line per class in the order of the ids, split being `seen` or `unseen`, or `ignore` for an id
that stands for no class: the classes after it move up. Photos and masks have the same names and may
lie in folders of the same names. With a third column `colour` (six hexadecimal digits) label maps
may be colour pictures too. With more than 255 classes the label maps are 16-bit grey PNGs, and
65535 is where nothing is labelled.

Photos are normalised with ImageNet's mean and standard deviation, as OTSeg's published models were;
where the files of the CLIP tell its own, a line gives the flags for them.
"""

from configs import common


def get_config(regime: str = "inductive"):
    """Configuration of one regime: inductive, transductive or supervised."""
    config = common.defaults(regime, steps=20_000)
    config.data.dataset = "folder"
    return config.lock()
