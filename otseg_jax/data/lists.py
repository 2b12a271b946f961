"""Read the text files that come with a data set, in what editors and shells make of them.

Notepad begins UTF-8 with a byte order mark, PowerShell's `>` writes UTF-16, and lists of images
hold names, paths or pairs "photo mask". What can be read in one way only is read; the rest is
refused with what a line should be.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of photos, in lower case."""


ONE_CLASS = (
    "This is a list of one class: in which photos it is (1) or is not (-1). Take a list "
    "of ImageSets/Segmentation, or keep the first word of each line"
)


_BETWEEN_FILES = re.compile(
    r"(?i)(?:(?<=\.jpg|\.png|\.bmp|\.tif)|(?<=\.jpeg|\.webp|\.tiff))[\s,;]+"
)


def read_text(path: Path) -> str:
    """Text in UTF-8, or in UTF-16 with its mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: something else than text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    raw = path.read_bytes()
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error}): save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path}: not text in UTF-8 but UTF-16 or binary: save it as UTF-8")
    return text


def read_names(path: Path, photos: Collection[str]) -> list[str]:
    """The images that a list names, each once.

    A line is a name, a path, or "photo mask" whose files have one name; blank lines and lines that
    begin with # are left out.

    Args:
        photos: names (without suffix) of the photos that are there.

    Raises:
        ValueError: no names, or lines that could mean several things.
    """
    known = {plain(name): name for name in photos}
    names, problems, one_class = list[str](), list[str](), False
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip(" \t\"',;\ufeff")  # the mark also comes from files put together
        found = _names(line, known)
        if found is None:
            problems.append(f"line {number} is {line!r}")
            one_class |= _is_of_one_class(line, known)
        else:
            names += found
    if problems:
        example = f", such as {min(photos)}" if photos else ""
        wanted = f"wanted the name of one photo per line, without suffix{example}"
        mend = f". {ONE_CLASS}" if one_class else ""
        raise ValueError(f"{path}: {some(problems)}; {wanted}{mend}")
    if not names:
        raise ValueError(f"{path} is empty: wanted one image name (without suffix) per line")
    return list(dict.fromkeys(names))


def plain(name: str) -> str:
    """A file name in the one form in which names that look alike are equal: "ö" has two."""
    return unicodedata.normalize("NFC", name)


def some(items: Sequence[object], *, most: int = 5, mark: str = ", ") -> str:
    """The first few of them in one line, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return mark.join([*map(str, items[:most]), *more])


def _names(line: str, known: dict[str, str]) -> list[str] | None:
    """What a line names, also where there is no such photo; None where that is in doubt."""
    if not line or (line.startswith("#") and plain(line) not in known):
        return []
    if whole := known.get(plain(line)):
        return [whole]
    words = re.split(r"[\s,;]+", line)
    # names with blanks in them are told apart by their suffixes
    for stems in ({*map(_stem, _BETWEEN_FILES.split(line))}, {*map(_stem, words)}):
        if len(stems) == 1 and (name := known.get(*stems)):
            return [name]
    if len({*map(_stem, words)}) == 1:
        return [_stem(words[0])]  # no such photo: told later, with all others that are missing
    names = [known.get(plain(word)) for word in words]
    return [name for name in names if name] if all(names) else None


def _stem(word: str) -> str:
    name = PurePosixPath(plain(word).replace("\\", "/").strip("\"'")).name
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in PHOTOS else name


def _is_of_one_class(line: str, known: dict[str, str]) -> bool:
    name, *rest = line.split()
    return rest in (["-1"], ["0"], ["1"]) and _stem(name) in known
