"""A photo or a mask as it is stored: in a file of its own, or inside another."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Stored:
    """A file that lies inside another: what messages call it, and its bytes."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


File = Path | Stored


def stored(file: File) -> Stored:
    """A file with its bytes; a FileNotFoundError if it is not there."""
    try:
        return file if isinstance(file, Stored) else Stored(str(file), file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
