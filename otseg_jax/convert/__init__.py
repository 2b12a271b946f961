"""Weights of any published format in, a model directory or another program's format out."""

from pathlib import Path

from otseg_jax import paths
from otseg_jax.checkpoints import pretrained
from otseg_jax.convert import read, verify, write
from otseg_jax.convert.hints import Hints
from otseg_jax.weights import hub

WRITERS = {
    "model": pretrained.write,
    "mmseg": write.to_mmseg,
    "hf": write.to_hugging_face,
    "stablehlo": write.to_stablehlo,
}


def convert(
    source: str,
    dest: str | Path,
    *,
    hints: Hints = Hints(),  # noqa: B008 (a named tuple is immutable)
    format: str = "model",
    check: bool = False,
    upload: str = "",
) -> str:
    """Convert a source, a file, folder or hub name; return what was done, for people.

    Args:
        dest: what to write; must not be there.
        format: one of `WRITERS`.
        check: write a parity report beside `dest`, and return it, too.
        upload: hub name "owner/name" to publish a model directory under.

    Raises:
        FileNotFoundError, ValueError: one message; nothing is left at `dest`.
    """
    dest = paths.local(dest)
    if upload and format not in ("model", "stablehlo"):
        raise ValueError(f"--upload publishes model directories, not --format={format}")
    paths.check_free(dest, file=format == "mmseg")  # before the work
    found = read.load(source, hints=hints)
    WRITERS[format](dest, found.model)
    lines = [f"{source} ({found.format}) → {dest} ({format})"]
    if check:
        parity = verify.measure(found, dest, format=format, source=source)
        files = verify.write(dest, parity)
        lines = [verify.to_markdown(parity), *lines, f"written: {', '.join(map(str, files))}"]
    if upload:
        lines.append(f"published: {hub.upload(dest, upload)}")
    return "\n".join(lines)
