"""What was found in a photo: a label map with its names, to be looked at, counted and saved.

Labels are i32[H, W], indices into `names`; where a background was asked for, it is 0.
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import Image, ImageDraw, ImageFont

from otseg_jax import paths
from otseg_jax.data.classes import IGNORE
from otseg_jax.evaluation import figures

# of classes (None: all) in a size (H, W): f32[k, H, W]
Scores = Callable[[tuple[int, int], Sequence[int] | None], np.ndarray]

SHOWN = 1024  # pixels, the longest side of a picture in a notebook
LISTED = 20  # classes in a legend; the rest are counted
FONT = Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Segmentation:
    """The label map of a photo, and how it came about."""

    photo: UInt8[np.ndarray, "H W 3"]
    labels: Int32[np.ndarray, "H W"]
    names: tuple[str, ...]  # of several words for one class the first
    palette: tuple[tuple[int, int, int], ...]
    words: tuple[tuple[str, ...], ...]  # all words of each class
    background: bool  # whether class 0 is what nobody asked for
    seconds: float  # from the photo to the label map
    made_by: str  # method and backbone
    source: str  # path of the photo, "" of one in memory
    make_scores: Scores

    def scores(
        self, name: str | None = None, size: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "*classes H W"]:
        """Scores of all classes, or of one by its name or one of its words; computed now.

        Of a CLIP alone they are probabilities, by a softmax over all words that were asked for; of
        a trained model σ(logit), less the offset of names that were trained with labels.

        Args:
            size: (H, W) of the result; None: that of the photo.

        Raises:
            ValueError: no such class, or a size below 1.
        """
        size = size or (self.labels.shape[0], self.labels.shape[1])
        if min(size) < 1:
            raise ValueError(f"size={size}: wanted (height, width), at least 1")
        if name is None:
            return self.make_scores(size, None)
        asked = [k for k, words in enumerate(self.words) if name == self.names[k] or name in words]
        if not asked:
            raise ValueError(f"{name!r} is none of {', '.join(self.names[:LISTED])}")
        return self.make_scores(size, asked[:1])[0]

    @cached_property
    def ratios(self) -> dict[str, float]:
        """The share of the pixels of every class that has any, the largest first."""
        counts = np.bincount(self.labels.reshape(-1), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[k]: int(counts[k]) / self.labels.size for k in order if counts[k]}

    def overlay(self, *, alpha: float = 0.6, legend: bool = True) -> Image.Image:
        """The photo under the colours of its classes; a background keeps the photo.

        Raises:
            ValueError: alpha is outside [0, 1].
        """
        return self._overlay(self.photo, self.labels, alpha, legend)

    def _overlay(
        self, photo: np.ndarray, labels: np.ndarray, alpha: float, legend: bool
    ) -> Image.Image:
        shown = np.where(labels == 0, IGNORE, labels) if self.background else labels
        picture = Image.fromarray(figures.overlay(photo, shown, self.palette, alpha=alpha))
        return self._with_legend(picture) if legend else picture

    def _with_legend(self, picture: Image.Image) -> Image.Image:
        """The picture with the classes that are there below it, the largest first."""
        width = max(picture.width, 240)
        size = max(12, round(width / 50))
        font = ImageFont.truetype(FONT, size)
        ratios = list(self.ratios.items())
        entries = [(name, f"{name} {100 * share:.0f} %") for name, share in ratios[:LISTED]]
        more = [("", f"and {len(ratios) - LISTED} more")] if len(ratios) > LISTED else []
        places, x, y, line = [], size // 2, size // 2, size * 3 // 2
        for name, text in entries + more:
            text = text if len(text) <= 60 else f"{text[:40]} … {text[-12:]}"
            across = round(font.getlength(text)) + (3 * size if name else size)
            if x > size // 2 and x + across > width:
                x, y = size // 2, y + line
            places.append((name, text, x, y))
            x += across
        whole = Image.new("RGB", (width, picture.height + y + line + size // 2), "white")
        whole.paste(picture, (0, 0))
        draw = ImageDraw.Draw(whole)
        for name, text, left, top in places:
            top += picture.height
            if name:
                colour = self.palette[self.names.index(name)]
                draw.rectangle((left, top, left + size, top + size), colour, outline="grey")
                left += size * 3 // 2
            draw.text((left, top), text, "black", font=font)
        return whole

    def save(self, folder: str | Path, stem: str = "") -> tuple[Path, Path, Path]:
        """Write STEM.png (ids, as in `figures.label_png`), STEM_overlay.jpg and STEM.json.

        Args:
            stem: of the files; "": that of the photo's file, else "photo".

        Raises:
            ValueError, OSError: a folder that cannot be written to, or the photo would be lost.
        """
        place = paths.local(folder)
        found = results(place, stem or Path(self.source).stem or "photo")
        if self.source and Path(self.source).resolve() in [path.resolve() for path in found]:
            raise ValueError(f"{self.source} would be replaced: choose another folder or stem=")
        with paths.writing(place):
            figures.label_png(found[0], self.labels, self.palette)
            with paths.atomic(found[1]) as part, part.open("wb") as file:
                self.overlay().save(file, format="JPEG", quality=92)
            with paths.atomic(found[2]) as part:
                text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
                part.write_text(f"{text}\n", encoding="utf-8")
        return found

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays, as plain JSON."""
        height, width = self.labels.shape
        return {
            "photo": self.source,
            "size": [height, width],
            "names": list(self.names),
            "words": [list(words) for words in self.words],
            "background": self.background,
            "ratios": self.ratios,
            "palette": [list(colour) for colour in self.palette],
            "seconds": round(self.seconds, 4),
            "made_by": self.made_by,
        }

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one for each class that is there but the background.

        Raises:
            ImportError: that library is not installed.
        """
        import supervision

        ids = [k for k in np.unique(self.labels).tolist() if k or not self.background]
        masks = np.array([self.labels == k for k in ids]).reshape(-1, *self.labels.shape)
        return supervision.Detections(
            xyxy=supervision.mask_to_xyxy(masks),
            mask=masks,
            class_id=np.array(ids, int),
            data={"class_name": np.array([self.names[k] for k in ids])},
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The label map."""
        return np.array(self.labels, dtype, copy=copy)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        found = ", ".join(f"{n} {100 * share:.0f} %" for n, share in [*self.ratios.items()][:5])
        return f"Segmentation({height} × {width}, {found}; {self.made_by}, {self.seconds:.2f} s)"

    def _repr_png_(self) -> bytes:
        step = -(-max(self.labels.shape) // SHOWN)
        photo, labels = self.photo[::step, ::step], self.labels[::step, ::step]
        file = io.BytesIO()
        self._overlay(photo, labels, 0.6, legend=True).save(file, format="PNG")
        return file.getvalue()


def results(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    """The files of a photo's results: label map, overlay, numbers."""
    return folder / f"{stem}.png", folder / f"{stem}_overlay.jpg", folder / f"{stem}.json"
