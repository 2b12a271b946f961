"""Weights of any published format in, a model directory or another program's format out."""

from pathlib import Path

from otseg_jax import paths
from otseg_jax.checkpoints import pretrained
from otseg_jax.convert import card, read, verify, write
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
    license: str = "",
    private: bool = False,
) -> str:
    """Convert a source, a file, folder or hub name; return what was done, for people.

    Args:
        dest: what to write; must not be there.
        format: one of `WRITERS`.
        check: write a parity report beside `dest`, and return it, too.
        upload: hub name "owner/name" to publish a model directory under, with a card.
        license: of what is published, as the hub calls it; "": the card says nothing of it.
        private: make the repository of that name so that others do not see it.

    Raises:
        FileNotFoundError, ValueError: one message; nothing is left at `dest`.
    """
    dest = paths.local(dest)
    if upload and format not in ("model", "stablehlo"):
        raise ValueError(f"--upload publishes model directories, not --format={format}")
    if (license or private) and not upload:
        raise ValueError("--license and --private are of what --upload=OWNER/NAME publishes")
    paths.check_free(dest, file=format == "mmseg")  # before the work, and so is the next
    if upload:
        license = card.check(upload, license)
    found = read.load(source, hints=hints)
    WRITERS[format](dest, card.public(found.model) if upload else found.model)
    lines = [f"{source} ({found.format}) → {dest} ({format})"]
    if check:
        parity = verify.measure(found, dest, format=format, source=source)
        files = verify.write(dest, parity)
        lines = [verify.to_markdown(parity), *lines, f"written: {', '.join(map(str, files))}"]
    if upload:
        card.write(dest, found.model, upload, license=license)
        lines.append(f"published: {_upload(dest, upload, private)}")
    return "\n".join(lines)


def _upload(dest: Path, name: str, private: bool) -> str:
    try:
        return hub.upload(dest, name, private=private)
    except ValueError as error:
        raise ValueError(
            f"{error}. {dest} is written: `hf upload {name} {dest}` sends it"
        ) from error
