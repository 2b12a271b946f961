"""Many photos to a folder of results, with a page that shows all; a bad photo stops nothing."""

import html
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from otseg_jax import cli, paths
from otseg_jax.data.lists import some
from otseg_jax.predict import photos as photos_of
from otseg_jax.predict.segmentation import Segmentation, results

PAGE = "index.html"
LISTED = 8  # classes under a picture
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1.5rem }
figure { margin: 0 } img { width: 100%; border-radius: 4px } figcaption { overflow-wrap: anywhere }
small { color: #666 }
"""


@dataclass
class Done:
    """What became of many photos."""

    folder: Path
    seconds: float = 0.0
    figures: list[str] = field(default_factory=list)  # of the page
    refused: list[str] = field(default_factory=list)  # what was wrong with a photo

    @property
    def line(self) -> str:
        """All of it in one line."""
        count = len(self.figures)
        refused = f", {len(self.refused)} refused" if self.refused else ""
        speed = f"{count / max(self.seconds, 1e-9):.3g} images/s"
        return f"{self.folder / PAGE}: {count} photos{refused}, {speed}"


def segment(
    photos: Sequence[Path],
    folder: str | Path,
    segmenter: Callable[[Path], Segmentation],
    *,
    title: str,
) -> Done:
    """Segment photos one after the other, and write what was found.

    Args:
        folder: made where missing; results of the same names are written over, photos never.
        title: of the page.

    Raises:
        ValueError: a result would lie where a photo does.
        OSError: the folder cannot be written to.
    """
    done, started = Done(paths.local(folder)), time.perf_counter()
    stems = photos_of.stems(photos)
    written = {path.resolve() for stem in stems for path in results(done.folder, stem)}
    if lost := [str(photo) for photo in photos if photo.resolve() in written]:
        raise ValueError(
            f"results in {done.folder} would replace {some(lost)}: choose another --output"
        )
    pairs = zip(photos, stems, strict=True)
    try:
        with logging_redirect_tqdm([logging.getLogger()]):
            for photo, stem in tqdm(pairs, total=len(photos), unit="photo", leave=False):
                try:
                    found = segmenter(photo)
                except (ValueError, OSError) as error:
                    if not cli.is_ours(error):
                        raise
                    done.refused.append(str(error))
                    continue
                found.save(done.folder, stem)
                done.figures.append(_figure(photo, stem, found))
                done.seconds = time.perf_counter() - started
    finally:  # what is done is shown, also after Ctrl-C
        if done.figures or done.refused:
            _write_page(done, title)
    return done


def _figure(photo: Path, stem: str, found: Segmentation) -> str:
    shares = [f"{name} {100 * share:.0f} %" for name, share in found.ratios.items()]
    more = f" and {len(shares) - LISTED} more" if len(shares) > LISTED else ""
    said = html.escape(", ".join(shares[:LISTED]) + more)
    height, width = found.labels.shape
    overlay, mask, numbers = (quote(f"{stem}{end}") for end in ("_overlay.jpg", ".png", ".json"))
    return (
        f'<figure><a href="{overlay}"><img loading="lazy" src="{overlay}" alt="{said}"></a>'
        f"<figcaption><b>{html.escape(str(photo))}</b><br>{said}<br><small>{width} × {height}, "
        f'{found.seconds:.2f} s, <a href="{mask}">mask</a>, <a href="{numbers}">json</a></small>'
        "</figcaption></figure>"
    )


def _write_page(done: Done, title: str) -> None:
    refused = "".join(f"<li>{html.escape(problem)}</li>" for problem in done.refused)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<main>{''.join(done.figures)}</main>"
        + (f"<h2>Refused</h2><ul>{refused}</ul>" if refused else "")
        + "</html>\n"
    )
    with paths.writing(done.folder), paths.atomic(done.folder / PAGE) as part:
        part.write_text(page, encoding="utf-8")
