"""Rows: the page, and what its visitors give it."""

import importlib.util
import socket
from unittest import mock

from experiments.hostile import picture
from messages import Row, typed
from otseg_jax.demo.answers import decode_photo, read_words


def command(line: str, expected: str, *, gradio: bool = True) -> Row:
    """The command where the page's extra is installed, or is not."""
    found, row = importlib.util.find_spec, typed(line, expected)

    def find(name, *rest):
        return (gradio or None) if name == "gradio" else found(name, *rest)

    def act(folder):
        with mock.patch("importlib.util.find_spec", find):
            row.act(folder)

    return row._replace(act=act, typed=line if gradio else f"{line} without Gradio")


def taken(folder):
    """The command on a port that another program serves on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        command(f"otseg_jax.demo --port={other.getsockname()[1]}", "").act(folder)


def photo(what: str, make, line: str) -> Row:
    """A file that is given to the page and refused."""
    return Row(what, lambda _: decode_photo(make()), line)


READABLE = "this file is no picture that can be read: give one of JPEG, PNG, WEBP, "
ROWS = [
    command("otseg_jax.demo", r"pip install 'otseg_jax\[demo\]'", gradio=False),
    command("otseg_jax.demo --modle=x", r"there is no flag --modle"),
    command("otseg_jax.demo --port=123456", r"--port"),
    command("otseg_jax.demo runs/shapes", r"unexpected arguments .*the model is set as --model="),
    command("otseg_jax.demo --model=nowhere", "nowhere"),
    command("otseg_jax.demo --host=192.0.2.1", r"--host=192\.0\.2\.1: .*; give --host=127"),
    command("otseg_jax.demo --host=nowhere.invalid", r"--host=nowhere\.invalid: .*; give --host="),
    Row(
        "otseg_jax.demo on a taken port",
        taken,
        r"--port=\d+: Address already in use; give another",
    ),
    photo("an empty file", lambda: b"", "the file is empty: give a photo"),
    photo("HTML as JPEG", lambda: b"<html><script>1</script></html>", READABLE),
    photo("a huge header", lambda: b"\xff\xd8\xff" + b"\0" * 100_000, READABLE),
    photo("EPS", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", READABLE),
    photo("a long file", lambda: b"\0" * 20_000_001, "20,000,001 bytes, more than the 20,000,000"),
    photo(
        "a truncated JPEG",
        lambda: picture("RGB", (500, 500), "JPEG")[:2000],
        "the photo cannot be used: .*truncated",
    ),
    photo(
        "a bomb",
        lambda: picture("1", (20_000, 20_000), "PNG"),
        "the photo has far more pixels, and this page takes 50,000,000: give a smaller copy",
    ),
    photo(
        "a large photo", lambda: picture("1", (9_000, 8_000), "PNG"), "the photo has 9,000 × 8,000"
    ),
    Row("101 words", lambda _: read_words("a," * 101), "101 words, and this page takes 100"),
    Row("a long word", lambda _: read_words("cat, " + "x" * 61), "'xxxxxxxxxxxxxxxxxxxx…' has 61"),
]
