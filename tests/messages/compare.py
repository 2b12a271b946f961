"""Rows: two evaluations to compare."""

from messages import Row, typed

COMPARE = "otseg_jax.compare"


def without(folder):
    """A run that was evaluated before confusions were kept."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text("{}")
    typed(f"{COMPARE} {{folder}}/one {{folder}}/two", "").act(folder)


def damaged(folder):
    """A file that is something else."""
    for name in ("one", "two"):
        (folder / f"{name}.npz").write_text("photo,truth")
    typed(f"{COMPARE} {{folder}}/one.npz {{folder}}/two.npz", "").act(folder)


ROWS = [
    typed(f"{COMPARE} --help", r"python -m otseg_jax\.compare runs/base runs/mine", refused=False),
    typed(COMPARE, r"wanted two workdirs to compare, got 0"),
    typed(f"{COMPARE} runs/a runs/b runs/c", r"wanted two workdirs to compare, got 3"),
    typed(f"{COMPARE} {{folder}}/a {{folder}}/b", r"/a is no file, .*evaluate that run again"),
    typed(f"{COMPARE} a b --draws=5", r"--draws=5: 5 is not an integer in the range \[100, "),
    typed(f"{COMPARE} a b --resamples=500", r"there is no flag --resamples; --help lists"),
    typed(f"{COMPARE} a b --config=configs/shapes.py", r"name two evaluated workdirs"),
    Row("compare workdirs without confusions", without, r"/one holds no confusions\.npz, .*again:"),
    Row("compare files of something else", damaged, r"one\.npz is not a whole confusions\.npz \("),
]
