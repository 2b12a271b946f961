"""Types of the fields of a configuration: each checks type, length, order and range.

The upper bounds are far above what anybody has used: they catch a slip of the hand before memory
does. A switch is no number, and a number is no text.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, Field

from otseg_jax import paths

TAG = "as "  # what the name of a class begins with, where a group may be of several
MOST_SCALES = 16  # of one photo


def _place(name: str) -> str:
    if name:
        paths.resolve(name)
    return name


def _local(name: str) -> str:
    if name:
        paths.local(name)
    return name


def _template(text: str) -> str:
    if text.count("{}") != 1 or set(text.replace("{}", "")) & set("{}"):
        raise ValueError("wanted {} once, where the name of a class goes")
    return text


def _words(entry: str) -> str:
    name, equals, words = entry.partition("=")
    if not (name.strip() and equals and all(word.strip() for word in words.split("|"))):
        raise ValueError("wanted CLASS=WORD, or CLASS=WORD|WORD for several words")
    return entry


def _some(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(texts) > 1000:
        raise ValueError(f"wanted at most 1000 of them, got {len(texts)}")
    return texts


def _long_first(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] < scale[1]:
        raise ValueError("wanted (long, short), the long side first")
    return scale


def _low_first(ratio: tuple[float, float]) -> tuple[float, float]:
    if ratio[0] > ratio[1]:
        raise ValueError("wanted (low, high), the low end first")
    return ratio


def _different(scales: tuple[float, ...]) -> tuple[float, ...]:
    if not 1 <= len(scales) <= MOST_SCALES or len({*scales}) < len(scales):
        raise ValueError(f"wanted 1 to {MOST_SCALES} factors, no two the same")
    return scales


def _checkpoint(wanted: str) -> str:
    if wanted not in ("latest", "best", "half") and not wanted.isdecimal():
        raise ValueError("wanted latest, best, half (of the schedule) or a step")
    return wanted


def _devices(count: int) -> int:
    if count < 1 and count != -1:
        raise ValueError("wanted -1 (all that are left), or at least 1")
    return count


def within(low: int | float, high: int | float) -> Any:
    """From low to high, both included."""
    return Field(ge=low, le=high, strict=True, allow_inf_nan=False)


MANY = 10**9  # steps or images; more is a slip, and overflows int32 soon
Count = Annotated[int, Field(ge=0, le=MANY, strict=True)]
Positive = Annotated[int, Field(ge=1, le=MANY, strict=True)]
Few = Annotated[int, Field(ge=1, le=4096, strict=True)]  # devices, threads, layers
Width = Annotated[int, Field(ge=1, le=2**16, strict=True)]  # channels
Devices = Annotated[int, Field(le=4096, strict=True), AfterValidator(_devices)]
Pixels = Annotated[int, Field(ge=1, le=8192, strict=True)]
Window = Annotated[int, Field(ge=0, le=8192, strict=True)]  # pixels, or all of them
Switch = Annotated[bool, Field(strict=True)]
Rate = Annotated[float, within(0, 10)]  # of learning; more diverges, whatever is trained
Weight = Annotated[float, within(0, 1e6)]
Fraction = Annotated[float, within(0, 1)]
Side = Annotated[float, within(1, 65536)]
Channel = Annotated[float, within(0, 255)]
Sides = Annotated[tuple[Side, Side], AfterValidator(_long_first)]
Factor = Annotated[float, within(0.01, 100)]
Factors = Annotated[tuple[Factor, Factor], AfterValidator(_low_first)]
Scales = Annotated[tuple[Annotated[float, within(0.1, 4)], ...], AfterValidator(_different)]
Spread = Annotated[float, within(0.001, 255)]
Channels = tuple[Channel, Channel, Channel]
Place = Annotated[str, AfterValidator(_place)]
LocalPlace = Annotated[str, AfterValidator(_local)]
Template = Annotated[str, AfterValidator(_template)]
Templates = Annotated[tuple[Template, ...], AfterValidator(_some)]
Words = tuple[Annotated[str, AfterValidator(_words)], ...]
CheckpointName = Annotated[str, AfterValidator(_checkpoint)]


def problems_of(error: pydantic.ValidationError) -> list[str]:
    """What pydantic found, one line a field: "train.steps=0: wanted …"."""
    found = dict[str, str]()
    for problem in error.errors():
        name, given = name_of(problem), f"={problem['input']!r}: "
        key = line = f"{name}{given}"
        if problem["type"] == "value_error":  # our own words, of a field or of several
            several = isinstance(problem["input"], Mapping)
            line = f"{'' if several else line}{problem['ctx']['error']}"
        elif problem["type"] == "missing" and isinstance(problem["loc"][-1], int):
            # the last that is missing tells how many there should be
            key = name.rpartition(".")[0]
            line = f"{key}{given}{_count(problem['loc'][-1] + 1, len(problem['input']))}"
        elif problem["type"] == "missing":
            line = f"{name} is missing"
        elif problem["type"] == "too_long":
            line += _count(problem["ctx"]["max_length"], problem["ctx"]["actual_length"])
        elif problem["type"] == "unexpected_keyword_argument":
            line += "there is no such field"
        else:
            wanted = re.sub(r"^\w+ should (be|have) | after validation.*", "", problem["msg"])
            line += f"wanted {wanted}"
        found[key] = line
    return [*found.values()]


def _count(wanted: int, got: int) -> str:
    return f"wanted {wanted} values with commas between them, got {got}"


def name_of(problem: Mapping[str, Any]) -> str:
    """The dotted name of the field, without the class that its group was taken for."""
    return ".".join(str(part) for part in problem["loc"] if not str(part).startswith(TAG))
