"""What a click on the page does: from what Gradio sends to what it shows.

Everything a client sends is checked here or in `answers`: a browser's limits bind nobody.
"""

import html
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from otseg_jax import cli
from otseg_jax.demo import answers, pictures
from otseg_jax.demo.answers import Answers, Question

NO_CLICK = "the page did not understand that click: load it again"
LOGGER = logging.getLogger(__name__)


class View(NamedTuple):
    """What a visitor looks at."""

    key: str  # of the answer
    method: str
    hidden: frozenset[int] = frozenset()  # classes that are switched off
    at: tuple[int, int] | None = None  # the pixel that was clicked, (y, x)
    picked: tuple[int, int] = (-1, -1)  # word and prompt whose map is shown


def _told(sentence: str) -> gr.Error:
    # a visitor's mistake is no news for the log
    return gr.Error(html.escape(sentence, quote=False), print_exception=False)


def sentences(work: Callable[..., Any]) -> Callable[..., Any]:
    """What our own code refuses is told in its words; a fault of ours is logged."""

    @wraps(work)
    def wrapped(*args: Any) -> Any:
        try:
            return work(*args)
        except gr.Error:
            raise
        except (ValueError, OSError) as error:
            if cli.is_ours(error):
                raise _told(str(error)) from None
            LOGGER.exception("the page could not answer")
        except Exception:
            LOGGER.exception("the page could not answer")
        raise _told("a fault of this page; its log has the reason")

    return wrapped


@dataclass(frozen=True)
class Actions:
    """What is done about a model's answers."""

    answers: Answers
    folder: Path  # in which Gradio keeps files, and deletes them

    def segment(
        self,
        photo: bytes | None,
        words: str,
        mode: str,
        others: str,
        least: float,
        method: str,
        opacity: float,
    ) -> tuple[Any, ...]:
        """A new answer; nothing is clicked or switched off yet."""
        if photo is None:
            said = "Give a photo: drop one, take one, or choose a sample."
            return None, "", said, "", None, None
        background = {
            answers.EVERY: lambda: None,
            answers.OTHERS: lambda: answers.read_words(others),
            answers.LEAST: lambda: float(least),
        }[mode]()
        question = Question(photo, words, background, method)
        answer = self.answers.ask(question)
        view = View(question.key, method)
        said = (
            f"{answer.labels.shape[1]} × {answer.labels.shape[0]} pixels, {answer.made_by}, "
            f"{answer.seconds:.2f} s. Click a pixel to see its transport plan, a class to switch "
            "it off."
        )
        return *self._drawn(view, opacity), said, *self._plan(view), view

    def _drawn(self, view: View, opacity: float) -> tuple[Image.Image, str]:
        answer = self.answers.find(view.key)
        alpha = min(max(float(opacity), 0.0), 1.0)
        drawn = pictures.overlay(answer, hidden=view.hidden, opacity=alpha, at=view.at)
        return drawn, pictures.legend(answer, hidden=view.hidden)

    def redraw(self, view: View | None, opacity: float) -> Any:
        """The overlay with another opacity."""
        return gr.skip() if view is None else self._drawn(view, opacity)[0]

    def switch(self, view: View | None, opacity: float, event: gr.EventData) -> Any:
        """Switch a class off, or on again."""
        view, (number,) = _kept(view), _picked(event, 1)
        if not 0 <= number < len(self.answers.find(view.key).names):
            raise ValueError(NO_CLICK)
        view = view._replace(hidden=view.hidden ^ {number})
        return *self._drawn(view, opacity), view

    def click(self, view: View | None, opacity: float, event: gr.SelectData) -> Any:
        """The transport plan of the pixel that was clicked."""
        view = _kept(view)
        factor = pictures.enlargement(self.answers.find(view.key))
        x, y = (i // factor for i in _numbers(event.index, 2))
        view = view._replace(at=(y, x), picked=(-1, -1))
        bars, where = self._plan(view)
        return self._drawn(view, opacity)[0], bars, where, view

    def prompt(self, view: View | None, event: gr.EventData) -> Any:
        """The map of the prompt that was clicked."""
        word, prompt = _picked(event, 2)
        view = _kept(view)._replace(picked=(word, prompt))
        return *self._plan(view), view

    def _plan(self, view: View) -> tuple[str, Any]:
        """Bars of the prompts at the pixel, and a prompt's map."""
        if view.at is None:
            return _note("Click a pixel of the picture."), None
        answer = self.answers.find(view.key)
        try:
            plan = self.answers.plan(view.key, view.method, view.at)
        except ValueError as error:
            if not cli.is_ours(error):
                raise
            return _note(str(error)), None
        y, x = view.at
        name = answer.names[answer.labels[y, x]]
        words = pictures.listed(answer, plan, view.at)
        word, prompt = view.picked
        if word not in words or not 0 <= prompt < len(plan.templates):
            word, prompt = words[0], int(plan.shares[words[0]].argmax())
        shown, points = pictures.prompt_map(answer, plan, word, prompt, view.at)
        head = f"Pixel {x}, {y} is <b>{pictures.escape(name)}</b>. Who took its mass?"
        if not plan.weight:
            head += f" ({pictures.escape(view.method)}, does not look at these plans.)"
        bars = pictures.bars(answer, plan, words, (word, prompt))
        said = plan.templates[prompt].replace("{}", plan.words[word]).rstrip(".")
        foot = (
            f"Below: where <b>{pictures.escape(said)}</b> takes more than an equal "
            f"share of a pixel (red) and less (blue), at most {100 * points:.2f} points."
        )
        return _note(head, escaped=True) + bars + _note(foot, escaped=True), shown

    def files(self, view: View | None) -> Any:
        """The mask, the overlay and the numbers as files."""
        if view is None:
            raise ValueError("there is no answer yet: give a photo and press Segment")
        answer = self.answers.find(view.key)
        saved = answer.save(self.folder / view.key, stem="segmentation")
        return gr.update(value=[str(path) for path in saved], visible=True)


def _kept(view: View | None) -> View:
    """A visitor's view; there was one when what was clicked was shown."""
    if view is None:
        raise ValueError(answers.NOT_KEPT)
    return view


def _note(said: str, *, escaped: bool = False) -> str:
    return f'<p class="note">{said if escaped else pictures.escape(said)}</p>'


def _picked(event: gr.EventData, count: int) -> tuple[int, ...]:
    try:
        return _numbers(event.pick, count)
    except (AttributeError, TypeError):  # a client that sends something else, or nothing
        raise ValueError(NO_CLICK) from None


def _numbers(given: Any, count: int) -> tuple[int, ...]:
    """Whole numbers that a client sent, as a list or as text between commas."""
    parts = given.split(",") if isinstance(given, str) else given
    try:
        found = tuple(int(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) != count or any(abs(i) > 1 << 20 for i in found):
        raise ValueError(NO_CLICK)
    return found
