"""Rows: a CLIP alone, evaluated and misunderstood."""

from messages import Row, typed

ALONE = "otseg_jax.main --mode=eval --config=configs/training_free/shapes.py"
MANY = ",".join(f"{1 + i / 100}" for i in range(100))


def shapes(flags, expected, *, argument=""):
    """A row of an evaluation on the built-in shapes that is refused."""
    return typed(f"{ALONE}{argument} --workdir={{folder}}/run {flags}", expected)


def _run_in_the_workdir(folder):
    (folder / "run" / "checkpoints").mkdir(parents=True)
    shapes("", "").act(folder)


ROWS = [
    typed(
        "otseg_jax.main --config=configs/training_free/shapes.py --workdir={folder}/run",
        r"error: model\.method='naclip' runs a CLIP as it is.* Evaluate it with --mode=eval",
    ),
    typed(
        "otseg_jax.main --mode=eval --config=configs/training_free/voc.py --workdir=x",
        r"no such file here; those of otseg_jax are .*, configs/training_free/voc20\.py",
    ),
    shapes("", r"method 'nacl': choose one of naclip, maskclip,", argument=":nacl"),
    shapes("", r"'sc_clip' looks into block 9 before the last.*has 4 blocks", argument=":sc_clip"),
    shapes(
        "--config.text.words='plain red disk=red circle|disc'",
        r"text\.words: 'plain red disk' is no class: did you mean 'plain red disc'\?",
    ),
    shapes("--config.text.words=couch", r"text\.words\.0='couch': wanted CLASS=WORD"),
    shapes("--config.model.sigma=0", r"model\.sigma=0\.0: wanted a number above 0"),
    shapes("--config.model.epsilon=0.1", r"--config has no field model\.epsilon"),
    shapes("--config.init_from=runs/voc", r"init_from=runs/voc: a CLIP alone has no trained"),
    shapes(
        "--config.data.crop=0", r"image_size=0 \(data\.crop\): wanted an integer of at least 32"
    ),
    shapes("--config.eval.threshold=1.5", r"eval\.threshold=1\.5: wanted less than or equal to 1"),
    shapes("--config.eval.scales=0", r"eval\.scales\.0=0: wanted greater than or equal to 0\.1"),
    shapes("--config.eval.scales=1,40", r"eval\.scales\.1=40: wanted less than or equal to 4"),
    shapes("--config.eval.scales=a", r"eval\.scales\.0='a': wanted a valid number"),
    shapes("--config.eval.scales=", r"eval\.scales\.0='': wanted a valid number"),
    shapes("--config.eval.scales=()", r"eval\.scales=\(\): wanted 1 to 16 factors"),
    shapes("--config.eval.scales=1,1.0", r"wanted 1 to 16 factors, no two the same"),
    shapes(f"--config.eval.scales={MANY}", r"wanted 1 to 16 factors, no two the same"),
    shapes("--config.eval.flip=maybe", r"flip.*maybe"),
    Row("a CLIP alone in the workdir of a run", _run_in_the_workdir, r"choose another --workdir"),
    typed(
        "otseg_jax.main --mode=eval --config=configs/training_free/cityscapes.py "
        "--config.data.root={folder} --workdir={folder}/run",
        r"looked for leftImg8bit/val/ and gtFine/val/ in .*/cityscapes; name the folder",
    ),
]
