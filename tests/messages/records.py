"""Rows: records to prepare, and roots that hold some."""

import own_data
import small

from messages import Row, typed
from otseg_jax import build
from otseg_jax.data.records import PLAN
from otseg_jax.prepare import prepare

PREPARE = "otseg_jax.prepare"
TO = "--root={folder} --output={folder}/records"


def _open(folder, dataset="folder", split="val", **fields):
    fields = {"data.dataset": dataset, "data.root": str(folder), **fields}
    build.open_split(small.settings(**fields), split)


def _prepared(typed, line, change=None, *, dataset="folder", split="train", command="", **fields):
    """What comes of a root with records of a training split."""

    def act(folder):
        own_data.write(folder)
        prepare("folder", folder, str(folder / "records"), ["train"])
        if change:
            change(folder / "records" / "folder" / "1.0.0")
        if command:
            _typed(folder, command)
        _open(folder / "records", dataset, split, **fields)

    return Row(typed, act, line)


def _typed(folder, line):
    typed(f"{PREPARE} {line}", "").act(folder)


def _into(typed, line, change, command=f"folder {TO} --splits=train"):
    """What comes of a command after a change to the folder."""

    def act(folder):
        own_data.write(folder)
        change(folder)
        _typed(folder, command)

    return Row(typed, act, line)


def _stopped(place):
    (place / PLAN).write_text('{"command": "python -m otseg_jax.prepare folder --root=a"}')


def _holding(folder):
    """Somebody's notes where records are to lie."""
    place = folder / "records" / "folder" / "1.0.0"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")


ROWS = [
    typed(f"{PREPARE} --help", r"prepare voc12 --root=VOCdevkit/VOC2012 --outp", refused=False),
    typed(PREPARE, r"wanted --root and --output; --help shows how"),
    typed(f"{PREPARE} voc12 --root=data", r"wanted --output, got voc12 without the name of a flag"),
    typed(f"{PREPARE} {TO}", r"wanted one data set, got none; --help shows how"),
    typed(f"{PREPARE} voc12 ade20k {TO}", r"wanted one data set, got voc12 ade20k; --help"),
    typed(f"{PREPARE} voc2012 {TO}", r"no data set 'voc2012': wanted ade20k, citysc"),
    typed(f"{PREPARE} shapes {TO}", r"shapes is drawn, never read: there is nothing to prepare"),
    typed(f"{PREPARE} voc12 {TO} --config=configs/shapes.py", r"--config is of a training: name a"),
    typed(f"{PREPARE} voc12 {TO} --out=x", r"there is no flag --out; --help lists the flags"),
    typed(f"{PREPARE} voc12 --root={{folder}}/no --output=out", r"/no is not a folder: .*root mus"),
    typed(f"{PREPARE} voc12 --root=gs://bucket --output=out", r"gs://bucket is a bucket, and gcsf"),
    typed(f"{PREPARE} voc12 {TO}", r"looked for JPEGImages/ in .*VOC2012; name the folder that"),
    typed(f"{PREPARE} ade20k {TO} --splits=test", r"split 'test': wanted 'train' or 'val'"),
    typed(f"{PREPARE} ade20k {TO} --splits=", r"--splits is empty: wanted train, val or train,val"),
    typed(f"{PREPARE} voc12 {TO} --threads=0", r"--threads=0: 0 is not an integer in the range"),
    typed(f"{PREPARE} tfds:pets {TO}", r"root=.* holds no data set of TFDS, no pets: name the fol"),
    _into(
        "prepare with no validation split",
        r"images/val/ and .*; --splits=train leaves that out",
        lambda folder: None,
        f"folder {TO}",
    ),
    _into(
        "prepare into a folder of something else",
        r"1\.0\.0 holds notes\.txt, and no record",
        _holding,
    ),
    _into(
        "prepare into a file",
        r"--output=.*records cannot be written: .*records is a file; ch",
        lambda folder: (folder / "records").write_text(""),
    ),
    _into(
        "prepare into a bucket without its package",
        r"is a bucket, and gcsfs is not install",
        lambda folder: None,
        "folder --root={folder} --output=gs://bucket --splits=train",
    ),
    _prepared(
        "a root that prepare was stopped in",
        r"1\.0\.0 is half-written: run prepare again to go on: python -m otseg_jax",
        _stopped,
    ),
    _prepared(
        "a root of records of another data set",
        r"holds records of folder, none of voc12: python -m otseg_jax\.prepare voc12 --root=",
        dataset="voc12",
    ),
    _prepared(
        "records without the split",
        r"no split 'val', only train: .*--splits=train,val adds",
        split="val",
    ),
    _prepared(
        "a shard that was not copied",
        r"1 of 1 shards are missing or not whole, folder-tra",
        lambda place: next(place.glob("folder-train*")).unlink(),
    ),
    _prepared(
        "data.dataset=tfds:",
        r"data\.dataset='tfds:': wanted ade20k, .*or tfds:NAME",
        dataset="tfds:",
    ),
]
