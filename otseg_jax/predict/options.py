"""What can be chosen about a segmenter, checked before anything is read."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import pydantic

from otseg_jax.fields import Scales, Switch, problems_of
from otseg_jax.models import linear


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """At which scales a photo is looked at, and whether mirrored, too; as `configs/common.py`."""

    scales: Scales
    flip: Switch


_ADAPTER = pydantic.TypeAdapter(Augmentation)


def check_options(
    dtype: Any, batch_size: Any, seen_offset: Any, scales: Any, flip: Any
) -> Augmentation:
    """Refuse options of `load` with one ValueError of all problems."""
    problems, found = [], None
    try:
        fits = linear.storage(dtype) in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
    except TypeError:
        fits = False
    if not fits:
        problems.append(f"dtype={dtype!r}: choose float32, tensorfloat32 or bfloat16")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        problems.append(f"batch_size={batch_size!r}: wanted a whole number, at least 1")
    number = isinstance(seen_offset, int | float) and not isinstance(seen_offset, bool)
    if seen_offset is not None and not (number and 0 <= seen_offset <= 1):
        problems.append(f"seen_offset={seen_offset!r}: wanted a number in [0, 1], or None")
    try:
        found = _ADAPTER.validate_python({"scales": scales, "flip": flip})
    except pydantic.ValidationError as error:
        problems += problems_of(error)
    if problems or found is None:
        raise ValueError("; ".join(problems))
    return found
