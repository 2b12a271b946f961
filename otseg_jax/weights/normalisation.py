"""What the photos of a CLIP's own training were normalised with, where a file beside it tells."""

import json
from pathlib import Path
from typing import Any, TypeAlias

Channels: TypeAlias = tuple[float, float, float]
Normalisation: TypeAlias = tuple[Channels, Channels]  # mean and std per channel, 0..255

# file, the group in it (transformers 5 puts its processors into one), the names of mean and std
_FORMATS = (
    ("preprocessor_config.json", "", "image_mean", "image_std"),
    ("processor_config.json", "image_processor", "image_mean", "image_std"),
    ("open_clip_config.json", "preprocess_cfg", "mean", "std"),
)
FILES = tuple(name for name, *_ in _FORMATS)


def read(folder: Path) -> Normalisation | None:
    """Mean and standard deviation that a folder of weights tells; None: it does not.

    Raises:
        ValueError: it tells something else than three numbers each.
    """
    for name, group, *keys in _FORMATS:
        path = folder / name
        if not path.is_file():
            continue
        try:
            told: Any = json.loads(path.read_text(encoding="utf-8"))
            told = told.get(group, {}) if group else told
            mean, std = (told.get(key) for key in keys)
            if mean is not None and std is not None:
                return _channels(mean), _channels(std)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} does not tell the mean and the standard deviation of photos, three "
                f"numbers in 0..1 each ({error!r}): mend or remove that file"
            ) from error
    return None


def _channels(values: list[float]) -> Channels:
    red, green, blue = (255 * float(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"{values} is outside of 0..1")
    return red, green, blue


def write(folder: Path, told: Normalisation, *, image_size: int) -> None:
    """Write what `read` reads, as transformers' image processor of a CLIP does."""
    mean, std = ([value / 255 for value in part] for part in told)
    content = {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": mean,
        "image_std": std,
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
    }
    (folder / FILES[0]).write_text(json.dumps(content, indent=2) + "\n")
