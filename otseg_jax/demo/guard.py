"""What a client may send: a photo as uploaded bytes, and requests of a bounded size."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from otseg_jax.demo.answers import MOST_BYTES

MOST_WORDY = 1_000_000  # bytes of a request that holds no photo
MOST_BODY = MOST_BYTES + MOST_WORDY  # of an upload: a photo and what is around it


def take_bytes(photo: gr.Image) -> gr.Image:
    """Let a photo reach the page as the bytes that were uploaded, not decoded.

    A path that nobody uploaded is refused by Gradio; an address, which it would fetch, here. No
    function may return gr.update for it: a visitor would get a gr.Image without this.
    """
    move = photo.async_move_resource_to_block_cache

    async def keep(place: str | Path | None) -> str | None:
        if place is not None and not _uploaded(place):
            raise gr.Error("give the photo itself, not where it is", print_exception=False)
        return await move(place)

    def read(payload: Any) -> bytes | None:
        if payload is None:
            return None
        if not payload.path or not _uploaded(payload.path):
            raise gr.Error("give the photo as an upload", print_exception=False)
        try:
            with Path(payload.path).open("rb") as file:
                return file.read(MOST_BYTES + 1)
        except OSError:
            gone = "the upload is no longer kept: give the photo again"
            raise gr.Error(gone, print_exception=False) from None

    # on the instance: of a subclass, Gradio would write a stub file beside this one
    vars(photo).update(preprocess=read, async_move_resource_to_block_cache=keep)
    return photo


def _uploaded(path: str | Path) -> bool:
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    return folder in Path(path).resolve().parents


class BodyLimit:
    """ASGI middleware: a request of too many bytes gets status 413 and no more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = MOST_BODY if scope["path"].endswith("/upload") else MOST_WORDY
        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > most:
            await _refuse(send, most)
            return
        taken, answered = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            # a client that stated less, or nothing: for the application it has gone away
            return {"type": "http.disconnect"} if taken > most else message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if taken <= most:
                raise
        if taken > most and not answered:
            await _refuse(send, most)


async def _refuse(send: Send, most: int) -> None:
    body = f'{{"detail":"more than {most:,} bytes: give a smaller photo or fewer words"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
