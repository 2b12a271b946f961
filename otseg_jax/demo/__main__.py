r"""A page for photos and words, with the transport plan of every pixel.

    python -m otseg_jax.demo
    python -m otseg_jax.demo --model=openai/clip-vit-base-patch16 --port=8000
    python -m otseg_jax.demo --model=ViT-B-16.pt --tokenizer=openai/clip-vit-base-patch16

It is served on this machine alone, unless --host says otherwise.
"""

import ctypes
import importlib.util
import socket
import sys
import tempfile
from pathlib import Path

from absl import flags

from otseg_jax import cli, compile_cache
from otseg_jax.convert.hints import HELP
from otseg_jax.demo.answers import SHIPPED, Answers
from otseg_jax.models.transformer import ACTIVATIONS

MMAP_THRESHOLD = -3  # of glibc's malloc.h
FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
MODEL = flags.DEFINE_string(
    "model",
    SHIPPED,
    "What `load` takes: a model directory, a workdir, a CLIP, a hub name",
    flag_values=FLAGS,
)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to serve on; 0.0.0.0: every one, for anybody", flag_values=FLAGS
)
PORT = flags.DEFINE_integer(
    "port",
    None,
    "Port to serve on; the first free one from 7860 on if not given",
    1,
    65535,
    flag_values=FLAGS,
)
OPTIONS = (
    flags.DEFINE_string("checkpoint", "latest", HELP["checkpoint"], flag_values=FLAGS),
    flags.DEFINE_string("tokenizer", "", HELP["tokenizer"], flag_values=FLAGS),
    flags.DEFINE_integer("vision_heads", 0, HELP["vision_heads"], 0, flag_values=FLAGS),
    flags.DEFINE_integer("text_heads", 0, HELP["text_heads"], 0, flag_values=FLAGS),
    flags.DEFINE_enum("activation", "", ["", *ACTIVATIONS], HELP["activation"], flag_values=FLAGS),
)


def main(argv: list[str]) -> None:
    """Serve the page until it is stopped."""
    rest, _ = cli.parse(argv, FLAGS, usage=__doc__ or "")
    if rest:
        sys.exit(f"error: unexpected arguments {rest}: the model is set as --model=…")
    if importlib.util.find_spec("gradio") is None:
        sys.exit("error: the page needs Gradio: pip install 'otseg_jax[demo]'")
    cli.quiet_libraries()
    cli.run(_serve)


def _serve() -> None:
    _check_address(HOST.value, PORT.value)
    compile_cache.keep(compile_cache.FOLDER)
    _give_memory_back()
    answers = Answers(MODEL.value, **{flag.name: flag.value for flag in OPTIONS})
    from otseg_jax.demo import page  # Gradio takes seconds: what is refused is refused before

    with tempfile.TemporaryDirectory(prefix="otseg_jax_demo_") as folder:
        page.serve(answers, Path(folder), host=HOST.value, port=PORT.value)


def _check_address(host: str, port: int | None) -> None:
    """Refuse an address that cannot be served on, before anything is loaded."""
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
        with socket.socket(family, socket.SOCK_STREAM) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            place.bind(address)
    except OSError as error:
        at = f"--host={host}" + (f" --port={port}" if port else "")
        mend = "another --port=, or none for the first free one" if port else "--host=127.0.0.1"
        raise OSError(f"{at}: {error.strerror}; give {mend}") from None


def _give_memory_back() -> None:
    """Let glibc return pictures to the system once they are freed, rather than keep their room.

    By itself it does so for fewer and fewer sizes, and a server of pictures seems to grow.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(MMAP_THRESHOLD, 1 << 18)


if __name__ == "__main__":
    main(sys.argv)
