"""Commands that mend a data set, each in one line of a shell.

Files are found by `find`, which takes any number of them in any folders.
"""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from otseg_jax.data import lists
from otseg_jax.data.folders import Folder

MOST = 100  # files that one command names


def revalue(masks: Sequence[Path], expression: str) -> str:
    """Give every value v of the masks in these folders another, an expression of v."""
    return _each(masks, f"Image.open(p).point(lambda v: {expression}).save(p)")


def one_channel(masks: Sequence[Path]) -> str:
    """Keep the first channel of the masks in these folders."""
    return _each(masks, "Image.open(p).getchannel(0).save(p)")


def from_colours(masks: Sequence[Path], palette: bytes) -> str:
    """Make values of the colours of the masks in these folders; three bytes for each value."""
    drawn = f"q = Image.new('P', (1, 1)); q.putpalette(bytes.fromhex('{palette.hex()}'))"
    code = "Image.open(p).convert('RGB').quantize(palette=q, dither=0).save(p)"
    return _each(masks, code, before=f"{drawn}; ")


def resize(pairs: Sequence[tuple[Path, Path]]) -> str:
    """Bring masks to the size of their photos, without new values."""
    size = "ImageOps.exif_transpose(Image.open(p)).size"
    return _pairs(pairs, f"Image.open(m).resize({size}, 0).save(m)")


def turn(pairs: Sequence[tuple[Path, Path]]) -> str:
    """Turn masks as the EXIF data of their photos say."""
    how = "{5: 5, 6: 4, 7: 6, 8: 2}[Image.open(p).getexif()[274]]"
    return _pairs(pairs, f"Image.open(m).transpose({how}).save(m)")


def rename(masks: Sequence[Path], old: str, new: str) -> str:
    """Rename the files in these folders whose names end in `old`, so that they end in `new`."""
    code = (
        "import sys; from pathlib import Path; "
        f"[Path(p).rename(p.removesuffix('{old}') + '{new}') for p in sys.argv[1:]]"
    )
    return f'{_find(masks, old)} -exec python -c "{code}" {{}} +'


def move(old: Path, new: Path) -> str:
    """Give a folder another place."""
    return f"mkdir -p {_quoted(new.parent)} && mv {_quoted(old)} {_quoted(new)}"


def leave_out(split: Folder, pairs: Sequence[tuple[Path, Path]]) -> str:
    """Take photos and their masks out of a split: off its lists, or into folders beside it."""
    pairs = pairs[:MOST]
    if split.home.name == "JPEGImages":
        listed = (split.home.parent / "ImageSets").glob("Segmentation*/*.txt")
        return take_off(sorted(listed), [photo.stem for photo, _ in pairs])
    photo, mask = pairs[0]
    inside = len(photo.parent.relative_to(split.home).parts)  # folders of photos and of masks agree
    photos, masks = zip(*pairs, strict=True)
    return f"{put_away(photos, split.home)} && {put_away(masks, mask.parents[inside])}"


def put_away(files: Sequence[Path], home: Path) -> str:
    """Move files of a folder into one beside it."""
    away, parts = home.with_name(f"{home.name}_left_out"), []
    for folder in dict.fromkeys(file.parent for file in files[:MOST]):
        dest = _quoted(away / folder.relative_to(home))
        own = " ".join(_quoted(file) for file in files[:MOST] if file.parent == folder)
        parts.append(f"mkdir -p {dest} && mv {own} {dest}")
    return " && ".join(parts)


def take_off(listed: Iterable[Path], names: Sequence[str]) -> str:
    """Take the lines of some names off lists."""
    words = " ".join(f"-e {shlex.quote(name)}" for name in names)
    where = " ".join(map(_quoted, listed))
    return f'for f in {where}; do grep -vwF {words} "$f" > "$f.new"; mv "$f.new" "$f"; done'


def background(listing: Path) -> str:
    """Let the value 0 stand for the background, and the classes for the values after it."""
    lines = lists.read_text(listing).splitlines()
    number, header = next((i, line) for i, line in enumerate(lines, 1) if "name" in line.lower())
    mark = max(",;\t", key=header.count)
    cells = ["background", "ignore", *["000000"] * (header.count(mark) > 1)]
    return f"sed -i '{number}a {mark.join(cells)}' {_quoted(listing)}"


def _each(masks: Sequence[Path], do: str, *, before: str = "") -> str:
    code = f"import sys; from PIL import Image; {before}[{do} for p in sys.argv[1:]]"
    return f'{_find(masks, masks[0].suffix)} -exec python -c "{code}" {{}} +'


def _find(files: Iterable[Path], ending: str) -> str:
    """Look into the folders that files are in; those inside another of them come with it."""
    folders = {file.parent for file in files}
    tops = sorted(folder for folder in folders if folders.isdisjoint(folder.parents))
    return f"find {' '.join(map(_quoted, tops))} -name {shlex.quote(f'*{ending}')}"


def _pairs(pairs: Sequence[tuple[Path, Path]], do: str) -> str:
    code = "import sys; from PIL import Image, ImageOps; files = iter(sys.argv[1:]); "
    listed = " ".join(_quoted(path) for pair in pairs[:MOST] for path in pair)
    return f'python -c "{code}[{do} for p, m in zip(files, files)]" {listed}'


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
