"""Rows: commands, flags, fields and paths as people type them."""

import subprocess
import sys

from messages import Row, typed
from otseg_jax import paths

MAIN = "otseg_jax.main --config=configs/shapes.py --workdir={folder}/run"


def fields(flags, expected):
    """A row of flags that are refused before anything is read."""
    return typed(f"{MAIN} {flags}", expected)


def module(name, expected):
    """A row of `python -m name`, which Python answers before any of our functions runs."""

    def act(folder):
        command = [sys.executable, "-m", *name.split()]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if ended.returncode:
            sys.exit(ended.stderr.strip())

    return Row(f"python -m {name}", act, expected)


def file(name, text, expected):
    """A row of a configuration file of one's own."""

    def act(folder):
        (folder / name).write_text(text)
        typed(f"otseg_jax.main --config={folder}/{name} --workdir=run", "").act(folder)

    return Row(f"--config={name}, {text!r}", act, expected)


def place(name, expected):
    """A row of a path, through the function that every path goes through."""
    return Row(f"a path {name!r}", lambda folder: paths.local(name), expected)


ROWS = [
    module("otseg_jax.train --config=configs/shapes.py", r"train is no command.*otseg_jax\.main"),
    module("otseg_jax.training", r"training is no command; there are python -m otseg_jax\.main"),
    module("otseg_jax.evaluation.metrics", r"metrics is no command.*otseg_jax\.convert"),
    typed("otseg_jax.main --config=~nobody_here/a.py --workdir=x", r"a\.py: no such file here"),
    typed("otseg_jax", r"wanted a command: python -m otseg_jax\.main .*otseg_jax\.convert"),
    typed("otseg_jax --help", r"otseg_jax\.main +trains and evaluates", refused=False),
    typed("otseg_jax.main --help", r"--config=configs/shapes\.py --workdir", refused=False),
    typed("otseg_jax.convert --help", r"convert openai/clip-vit-base-patch16", refused=False),
    typed("otseg_jax.doctor --help", r"doctor --root=VOCdevkit --dataset=voc12", refused=False),
    typed("otseg_jax.doctor --root=data", r"wanted --root=DIR and --dataset=NAME together, got on"),
    typed("otseg_jax.doctor --dataset=voc12", r"wanted --root=DIR and --dataset=NAME together"),
    typed("otseg_jax.doctor --contact_sheet=a.png", r"contact_sheet is of a data set: name it"),
    typed("otseg_jax.doctor runs/shapes", r"unexpected arguments \['runs/shapes'\]; --help shows"),
    typed("otseg_jax.doctor --config=configs/voc12.py", r"name the data with --root and --dataset"),
    typed("otseg_jax.main", r"^error: wanted --config and --workdir; --help"),
    typed("otseg_jax.main configs/shapes.py --workdir=x", r"wanted --config, got configs/shapes"),
    typed("otseg_jax.convert", r"wanted SOURCE DEST, got neither; --help"),
    typed("otseg_jax.convert model", r"wanted SOURCE DEST, got \['model'\]"),
    typed("otseg_jax.main --config=shape.py --workdir=x", r"those of otseg_jax are .*shapes\.py"),
    typed("otseg_jax.main --config=configs/common.py --workdir=x", r"no attribute 'get_config'"),
    typed("otseg_jax.main --config=configs --workdir=x", r"no such file here; those of otseg_jax"),
    typed("otseg_jax.main --config=gs://b/a.py --workdir=x", r"--config=gs://b/a\.py: no such"),
    typed("otseg_jax.main --config=configs/shapes.py:zs --workdir=x", r"regime='zs': .*inductive"),
    file("mine.py", "def get_config(:", r"mine\.py cannot be used: SyntaxError"),
    file("mine.py", "import nothing_of_this_name", r"ModuleNotFoundError: No module .*mine\.py:1"),
    file("mine.py", "def get_config():\n    return {}", r"get_config returns dict, wanted"),
    fields("--multihost", r"--multihost: no other process was found \(.*: leave it out"),
    fields("--coordinator=here --processes=2", r"all three are needed, as in --coordinator=10"),
    fields("--process=0", r"--coordinator= --processes=0 --process=0: all three are needed"),
    fields(
        "--coordinator=localhost:1 --processes=2 --process=2",
        r"--process=2: all three are needed, .* and processes are counted from 0",
    ),
    fields("--steps=2", r"no flag --steps; did you mean --config\.train\.steps\?"),
    fields("--mode=predict", r"--mode=predict: value should be one of <train\|eval>"),
    fields("--config.train.lr=1", r"train\.lr; did you mean --config\.train\.learning_rate\?"),
    fields("--config.batch_size=4", r"mean --config\.eval\.batch_size or --config\.train\.ba"),
    fields("--config.colour=4", r"no field colour; configs/common\.py lists the fields"),
    fields("--config.train.steps=ten", r"--config\.train\.steps=ten: wanted a whole number"),
    fields("--config.train.learning_rate=fast", r"learning_rate=fast: wanted a number"),
    fields("--config.data.scale=96x96", r"data\.scale\.0='96x96': wanted"),
    fields(
        "--config.data.scale=96",
        r"data\.scale=\(96,\): wanted 2 values with commas between them, got 1",
    ),
    fields("--config.seed=-1", r"^error: config: seed=-1: wanted greater than or equal to 0"),
    fields("--config.seed=-1 --config.eval.stride=500", r"seed=-1.*eval\.stride=500 leaves gaps"),
    fields("--config.text.templates='a photo.'", r"templates\.0='a photo\.': wanted {} once"),
    fields("--config.data.root=http://host/voc", r"data\.root.*http:// is not read: fetch it"),
    fields("--config.init_from=gs://bucket/run", r"init_from.*pip install gcsfs"),
    fields("--config.data.root=~nobody_here/x", r"data\.root.*there is no such user here"),
    fields("--config.data.root=gs://bucket/data", r"data\.root.*bucket, and gcsfs is not inst"),
    fields("--config.data.root=gs:/bucket/data", r"gs:/bucket/data is an address, .* is not read"),
    fields("--config.compile_cache=gs://bucket/x", r"compile_cache.* a bucket, and no place for"),
    fields(
        "--workdir=gs://b/x", r"^error: gs://b/x is a bucket, and gcsfs is not installed: pip in"
    ),
    fields("--workdir=s3:/b/x", r"^error: s3:/b/x is an address, and s3:/ is not read"),
    typed("otseg_jax.convert gs://bucket/model {folder}/out", r"gs://bucket/model is a bucket"),
    typed("otseg_jax.convert shapes-clip s3://bucket/out", r"s3://bucket/out is a bucket"),
    place("gs:/bucket/run", r"gs:/bucket/run is a bucket"),
    place("C:\\photos", r"C:\\photos is a path of Windows"),
    place("file:///photos", r"file:// is not read"),
    place("", r"'' is no path"),
]
