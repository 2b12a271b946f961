"""The page itself, of Gradio: what stands where, and how it is served.

A model's `Answers` → gr.Blocks → `serve` on one address, until it is stopped
"""

import html
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from otseg_jax.data import templates
from otseg_jax.data.shapes import Shapes
from otseg_jax.demo.actions import Actions, sentences
from otseg_jax.demo.answers import EVERY, LEAST, MOST_BYTES, MOST_WORDS, OTHERS, SIDE, Answers
from otseg_jax.demo.guard import BodyLimit, take_bytes

STYLE = Path(__file__).with_suffix(".css")
AT_ONCE = 4  # clicks that are answered at once; the model works on one question after the other
THREADS = 8  # that draw and wait: each keeps memory of its own
QUEUE = 60  # clicks that wait; who comes later is told so
FORGET = 15 * 60  # seconds that the files of a visitor are kept
SAMPLES = (1, 3, 5, 12)  # pictures of the built-in world
FONTS = ("system-ui", "sans-serif")  # of the visitor's system: nothing is fetched from elsewhere
PLAN = (
    "Every word is a transport problem of its own: every pixel gives away the same mass, and every "
    "prompt of the word must take as much as the others."
)
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
PICK = """
element.addEventListener('click', (event) => {
  const chosen = event.target.closest('[data-pick]');
  if (chosen) trigger('click', {pick: chosen.dataset.pick});
});
"""


@dataclass(frozen=True)
class _Asked:
    """The fields of a question."""

    photo: gr.Image
    words: gr.Textbox
    mode: gr.Radio
    others: gr.Textbox
    least: gr.Slider
    method: gr.Dropdown
    go: gr.Button

    @property
    def fields(self) -> list[Any]:
        return [self.photo, self.words, self.mode, self.others, self.least, self.method]


@dataclass(frozen=True)
class _Shown:
    """What an answer fills."""

    overlay: gr.Image
    legend: gr.HTML
    said: gr.Markdown
    bars: gr.HTML
    where: gr.Image

    @property
    def fields(self) -> list[Any]:
        return [self.overlay, self.legend, self.said, self.bars, self.where]


def build(answers: Answers, folder: Path) -> gr.Blocks:
    """The page of a model; `folder` is where Gradio keeps files."""
    samples = _draw_samples(folder) if answers.shipped else []
    with gr.Blocks(
        title="otseg_jax", analytics_enabled=False, fill_width=True, delete_cache=(60, FORGET)
    ) as page:
        gr.HTML(_head(answers), elem_id="head")
        view = gr.State(None, time_to_live=FORGET)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                asked = _question(answers, samples)
            with gr.Column(scale=6, min_width=340):
                gr.HTML("<h2>What was found where</h2>")
                overlay = _picture("The photo under the colours of its classes", "overlay")
                legend = gr.HTML("", js_on_load=PICK, elem_id="legend")
                opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity", elem_id="opacity")
                said = gr.Markdown("", elem_id="said")
                save = gr.Button("Download mask, overlay, numbers", size="sm", elem_id="save")
                files = gr.Files(label="Files", visible=False, interactive=False, elem_id="files")
            with gr.Column(scale=5, min_width=340):
                gr.HTML(f"<h2>The transport plan of a pixel</h2><p>{PLAN}</p>")
                bars = gr.HTML("", js_on_load=PICK, elem_id="bars")
                where = _picture("Where a prompt takes its mass from", "where", 340)
        shown = _Shown(overlay, legend, said, bars, where)
        ask = _wire(Actions(answers, folder), asked, shown, view, opacity, save, files)
        if samples:
            page.load(**ask, api_visibility="private")
    return page


def _head(answers: Answers) -> str:
    limits = (
        "It knows toy pictures only: <code>--model=</code> with a CLIP or a model of yours takes "
        "photos. "
        if answers.shipped
        else ""
    )
    return (
        "<h1>A photo and some words</h1>"
        f"<p>{html.escape(repr(answers.first))}. {limits}Photos are made at most {SIDE:,} pixels "
        "long here; <code>python -m otseg_jax.predict</code> keeps their size.</p>"
    )


def _picture(label: str, name: str, height: int | None = None) -> gr.Image:
    return gr.Image(
        label=label,
        show_label=False,
        height=height,
        interactive=False,
        buttons=["fullscreen"],
        elem_id=name,
        alt_text=label,
    )


def _question(answers: Answers, samples: Sequence[str]) -> _Asked:
    """The fields of a question, filled with the first sample."""
    photo = gr.Image(
        value=samples[0] if samples else None,
        sources=["upload", "webcam", "clipboard"],
        label="Photo",
        height=260,
        buttons=[],
        elem_id="photo",
    )
    take_bytes(photo)
    if samples:
        shelf = gr.Dataset(
            components=[photo],
            samples=[[sample] for sample in samples],
            type="index",
            label="Samples",
            elem_id="samples",
        )
        # not gr.Examples, which puts another gr.Image in the photo's place, without `take_bytes`
        shelf.click(sentences(samples.__getitem__), shelf, photo, **QUIET)
    own = f"; none: the {len(answers.words):,} of the model" if answers.words else ""
    fits = len(answers.words) <= MOST_WORDS and "," not in "".join(answers.words)
    words = gr.Textbox(
        ", ".join(answers.words) if fits else "",
        label="Words",
        info=f"Between commas, several for one class as sofa|couch{own}",
        placeholder="cat, sofa|couch, grass",
        lines=4,
        max_lines=8,
        elem_id="words",
    )
    mode = gr.Radio(
        [EVERY, OTHERS, LEAST],
        value=LEAST if answers.shipped else EVERY,
        label="Background",
        elem_id="mode",
    )
    others = gr.Textbox(
        ", ".join(templates.BACKGROUND),
        label="Things that nobody asked for, shown as background",
        visible=False,
        elem_id="others",
    )
    least = gr.Slider(
        0,
        1,
        answers.threshold,
        step=0.01,
        label="Least score",
        visible=answers.shipped,
        elem_id="least",
    )
    names = list(answers.methods)
    method = gr.Dropdown(names, value=names[0], label="Method", elem_id="method")
    go = gr.Button("Segment", variant="primary", elem_id="go")
    return _Asked(photo, words, mode, others, least, method, go)


def _wire(
    actions: Actions,
    asked: _Asked,
    shown: _Shown,
    view: gr.State,
    opacity: gr.Slider,
    save: gr.Button,
    files: gr.Files,
) -> dict[str, Any]:
    """What a click does; returns what asking is, for whatever else asks."""
    ask: dict[str, Any] = {
        "fn": sentences(actions.segment),
        "inputs": [*asked.fields, opacity],
        "outputs": [*shown.fields, view],
        "trigger_mode": "always_last",
        "concurrency_id": "ask",
        "concurrency_limit": AT_ONCE,
    }
    asked.go.click(**ask, api_name="segment")
    for event in (asked.words.submit, asked.photo.change, asked.method.input):
        event(**ask, api_visibility="private")
    asked.mode.change(
        lambda mode: (gr.update(visible=mode == OTHERS), gr.update(visible=mode == LEAST)),
        asked.mode,
        [asked.others, asked.least],
        **QUIET,
    )
    asked.mode.input(**ask, api_visibility="private")
    asked.least.release(**ask, api_visibility="private")
    redraw: dict[str, Any] = {"trigger_mode": "always_last", **QUIET}
    opacity.change(sentences(actions.redraw), [view, opacity], shown.overlay, **redraw)
    shown.legend.click(
        sentences(actions.switch), [view, opacity], [shown.overlay, shown.legend, view], **QUIET
    )
    shown.overlay.select(
        sentences(actions.click),
        [view, opacity],
        [shown.overlay, shown.bars, shown.where, view],
        **QUIET,
    )
    shown.bars.click(sentences(actions.prompt), view, [shown.bars, shown.where, view], **QUIET)
    save.click(sentences(actions.files), view, files, **QUIET)
    return ask


def _theme() -> gr.Theme:
    plain = gr.themes.Soft(font=FONTS, font_mono=("ui-monospace", "monospace"))
    return plain.set(
        block_title_background_fill="none",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_label_text_color="*body_text_color",
    )


def _draw_samples(folder: Path) -> list[str]:
    """Pictures of the built-in world, as files."""
    place = folder / "samples"
    place.mkdir(parents=True, exist_ok=True)
    world, found = Shapes("val", size=20, image_size=384), []
    for number in SAMPLES:
        path = place / f"shapes_{number}.png"
        Image.fromarray(world[number]["image"]).save(path)
        found.append(str(path))
    return found


def serve(answers: Answers, folder: Path, *, host: str, port: int | None) -> None:
    """Serve the page until the process is stopped; files lie in `folder` meanwhile.

    Args:
        port: None: the first free one from 7860 on.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # as Gradio documents
    page = build(answers, folder)
    page.queue(max_size=QUEUE, default_concurrency_limit=AT_ONCE, api_open=False)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        max_threads=THREADS,
        max_file_size=MOST_BYTES,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        state_session_capacity=200,
        app_kwargs={"middleware": [Middleware(BodyLimit)]},
        theme=_theme(),
        css_paths=STYLE,
    )
    print(f"{address} shows the page; Ctrl-C stops it", flush=True)
    threading.Event().wait()  # Gradio's own would take a signal for itself
