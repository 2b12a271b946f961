"""Read what `torch.save` and `torch.jit.save` write, without torch and without executing anything.

Both are zip archives: a pickle that describes the objects, and one stored (uncompressed) entry per
tensor storage. Python's unpickler runs the pickle, but a name is looked up in a closed table and
nowhere else, and opcodes that would reach past it are taken out before. Tensors come back as numpy
arrays of the stored dtype (bfloat16 as ml_dtypes'), an `OrderedDict` and a scripted module as
dicts. Every size is compared with the file's before memory is taken for it.

Training programs save objects of their own beside the weights. What is only an object with a state,
or is of a known harmless class, becomes an empty stand-in and is named in one line; a file that
asks for a function to be called, or for parts of torch, is refused.
"""

import io
import logging
import math
import pickle
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from otseg_jax import paths

LOGGER = logging.getLogger(__name__)

LARGEST_PICKLE = 64 << 20  # bytes; that of a ViT-L/14 training run has about one million

STORAGES = {
    f"torch.{name}Storage": np.dtype(kind)
    for name, kind in [
        *[("Double", "f8"), ("Float", "f4"), ("Half", "f2"), ("BFloat16", ml_dtypes.bfloat16)],
        *[("Long", "i8"), ("Int", "i4"), ("Short", "i2"), ("Char", "i1"), ("Byte", "u1")],
        ("Bool", "?"),
    ]
}

# what torch writes, and Python from protocol 1 on, less sets, buffers and stack tricks
_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG[14]|BINFLOAT|BIN(UNICODE|BYTES)8|"
    "(SHORT_)?BIN(STRING|UNICODE|BYTES)|EMPTY_(TUPLE|LIST|DICT)|TUPLE[123]?|APPENDS?|SETITEMS?|"
    "(LONG_)?BIN(PUT|GET)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|NEWOBJ|BUILD|BINPERSID"
)

# Classes whose objects a pickle makes by a call, and of which nothing is lost beside weights.
_CALLED = re.compile(
    r"numpy\.(_?core\.)?(multiarray\._reconstruct|numeric\._frombuffer|ndarray)|"
    r"numpy\.random\._pickle\.\w+|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path|"
    r"collections\.(defaultdict|deque|Counter)|datetime\.\w+|decimal\.Decimal|uuid\.UUID|"
    r"(builtins|__builtin__)\.(set|frozenset|complex|slice|range|bytearray)|"
    r"copyreg\._reconstructor|copy_reg\._reconstructor"
)

# Opcode → its length, and what runs instead. A false frame would show the unpickler other opcodes
# than it shows `genops`; BUILD would set attributes or call __setstate__, also of our functions and
# of arrays, and goes to `persistent_load` as (object, state); NEWOBJ goes there as (class,
# arguments, None).
_REPLACED = {
    "FRAME": (9, b""),
    "NEWOBJ": (1, pickle.NONE + pickle.TUPLE3 + pickle.BINPERSID),
    "BUILD": (1, pickle.TUPLE2 + pickle.BINPERSID),
}


def read(path: str | Path) -> Any:
    """Read a file that torch wrote in its zip format, a TorchScript archive included.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged file, or one that asks for more than tensors and
            containers where weights are, or for calls; everything it asked for is named.
    """
    path, refused, skipped, result = paths.local(path), list[str](), dict[str, int](), None
    try:
        with zipfile.ZipFile(path) as archive:
            result = _Reader(archive, path.stat().st_size, refused, skipped).load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} {_not_a_zip(path)} ({error})") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly any type
        if not refused:
            raise ValueError(f"{path} is damaged or of another kind: {error}") from error
    if refused:
        raise ValueError(
            f"{path} is refused and nothing of it was executed: it asks for "
            f"{', '.join([*refused, *(f'{n} (byte {at})' for n, at in skipped.items())])}, "
            "and only tensors, containers, numbers and strings are admitted; whoever made it can "
            "save its weights alone: torch.save(model.state_dict(), 'weights.pt')"
        )
    if isinstance(result, _Skipped):
        raise ValueError(
            f"{path} is one object of {', '.join(skipped)}, of which nothing was executed, and no "
            "weights by name: where its program is installed, write these alone: "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    if skipped:
        LOGGER.info(
            "%s: nothing was executed of the objects beside the weights, which are left out: %s",
            path,
            ", ".join(skipped),
        )
    return result


def _not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK"):
        return "is damaged or cut short, fetch it again"
    if start.startswith((b"\x80\x02\x8a\x0a", b"\x80\x03\x8a\x0a", b"ustar")):
        return (
            "is in torch's format from before version 1.6, which is not read. Where torch is "
            "installed, write it anew: python -c \"import torch; f = '...'; "
            "torch.save(torch.load(f, map_location='cpu', weights_only=True), f + '.new')\""
        )
    return "is not a file of torch.save or torch.jit.save"


class _Reader(pickle.Unpickler):
    """Python's unpickler on what is harmless in an archive's pickle.

    Other names come with their place to `skipped`, and into `refused` if they are more than that.
    """

    def __init__(
        self, archive: zipfile.ZipFile, size: int, refused: list[str], skipped: dict[str, int]
    ) -> None:
        self.archive, self.refused, self.places = archive, refused, deque[int]()
        self.skipped = skipped
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        self.storages: dict[str, bytes] = {}
        if sum(entry.compress_size for entry in self.entries.values()) > size:
            raise ValueError("its entries overlap")
        pickles = [n for n in self.entries if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            names = ", ".join(list(self.entries)[:5]) or "nothing"
            raise ValueError(f"a zip archive without torch's data.pkl; it holds {names}")
        self.root = pickles[0].removesuffix("data.pkl")
        if f"{self.root}byteorder" in self.entries and self._bytes("byteorder") != b"little":
            raise ValueError("written on a big-endian machine, which is not read")
        if self.entries[pickles[0]].file_size > LARGEST_PICKLE:
            raise ValueError(f"{pickles[0]} is larger than {LARGEST_PICKLE} bytes")
        code = self._harmless(self._bytes("data.pkl"))
        super().__init__(io.BytesIO(code), encoding="latin1")

    def _bytes(self, name: str, size: int | None = None) -> bytes:
        entry = self.entries.get(name := self.root + name)
        if entry is None:
            raise ValueError(f"{name} is not in the archive")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{name} is compressed, as torch never writes it")
        if size not in (None, entry.file_size):
            raise ValueError(f"{name} is {entry.file_size} bytes, its tensors want {size}")
        return self.archive.read(entry)  # checks the CRC

    def _harmless(self, code: bytes) -> bytes:
        kept, done = bytearray(), 0
        steps: Iterable[tuple[Any, Any, Any]] = pickletools.genops(code)
        for opcode, argument, place in steps:
            name = opcode.name
            # a memo index asks for a table of that length, and picklers count up from 0
            if not _OPCODES.fullmatch(name) or (name.endswith("BINPUT") and argument > place):
                self.refused.append(f"opcode {name} (byte {place})")
                code = code[:place] + pickle.STOP  # so that the names before it are told too
                break
            if name.endswith("GLOBAL"):
                self.places.append(place)
            if name in _REPLACED:
                length, instead = _REPLACED[name]
                kept += code[done:place] + instead
                done = place + length
        return bytes(kept + code[done:])

    def find_class(self, module: str, name: str, /) -> Any:
        name, place = f"{module}.{name}", self.places.popleft()  # every name comes here, in order
        if name in _NAMES or name.startswith("__torch__."):
            return _NAMES.get(name, dict)  # of a scripted module; its attributes follow
        if name.startswith(("torch.", "torch_")):  # may hold tensors, so that some would be missing
            self.refused.append(f"{name} (byte {place})")
            return _Skipped()
        self.skipped.setdefault(name, place)
        return _Skipped() if _CALLED.fullmatch(name) else _Unknown(name, place, self)

    def persistent_load(self, reference: Any) -> Any:
        match reference:
            case (_Unknown(), tuple(), None):
                return _Skipped()
            case (made, tuple() as arguments, None) if callable(made):
                return made(*arguments)
            # the next three stand for BUILD
            case (dict() as target, dict() as state) if "_metadata" not in state:
                target.update(state)  # torch adds _metadata to a state dict: no tensors
                return target
            case (dict() | _Skipped() as target, _):
                return target
            case (str() as target, (_, "<" | "|", *_)):  # a numpy dtype, its byte order
                return target
            case ("storage", _Skipped() as skipped, *_):
                return skipped
            case ("storage", np.dtype() as dtype, str(key), _, int(count)):
                if key not in self.storages:
                    self.storages[key] = self._bytes(f"data/{key}", count * dtype.itemsize)
                return np.frombuffer(self.storages[key], dtype)
        raise ValueError("a state or a reference of a kind that torch does not write")


class _Skipped:
    """Stands for what is not read, and takes what a pickle does to it."""

    def __call__(self, *_: Any) -> "_Skipped":
        return self

    __setitem__ = append = extend = __call__


class _Unknown(_Skipped):
    """Stands for a name that may be a class; if the pickle calls it, the file is refused."""

    def __init__(self, name: str, place: int, reader: _Reader) -> None:
        self.name, self.place, self.reader = name, place, reader

    def __call__(self, *_: Any) -> _Skipped:
        self.reader.skipped.pop(self.name, None)
        self.reader.refused.append(f"{self.name} (byte {self.place})")
        return _Skipped()


def _number(dtype: Any, data: Any) -> float | int | None:
    if dtype not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
        return None  # a string or a date
    return np.frombuffer(data, np.dtype("<" + dtype), 1)[0].item()


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Any:
    if isinstance(storage, _Skipped):
        return storage
    # Python's integers do not overflow; those of a tensor would
    offset, sizes, steps = int(offset), [int(n) for n in shape], [int(n) for n in strides]
    count, size, pitch = math.prod(sizes), storage.size, storage.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    if min([offset, *sizes, *steps]) < 0 or count > max(size, 1) or (count and last >= size):
        raise ValueError(
            f"a tensor of shape {sizes}, strides {steps}, offset {offset} does not lie in its "
            f"storage of {size} numbers"
        )
    # not as_strided: `storage` may be a tensor with strides, and numpy sees that here
    start = offset * pitch if count else 0
    return np.ndarray(sizes, storage.dtype, storage, start, [step * pitch for step in steps])


_NAMES: dict[str, Any] = {
    **STORAGES,
    **{f"torch.{n}": f"torch.{n}" for n in ("float64", "float32", "float16", "bfloat16", "int64")},
    **{f"torch.{n}": f"torch.{n}" for n in ("int32", "int16", "int8", "uint8", "bool")},
    "collections.OrderedDict": dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch.Size": tuple,
    "torch.device": lambda kind, *index: ":".join([kind, *(str(int(n)) for n in index)]),
    **{f"numpy.{core}.multiarray.scalar": _number for core in ("core", "_core")},
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # bytes, in protocol 2
    **dict.fromkeys(
        ["numpy.dtype", "torch._utils._rebuild_parameter", "torch.jit._pickle.restore_type_tag"]
        + [f"torch.jit._pickle.build_{n}list" for n in ("int", "double", "bool", "tensor")],
        lambda value, *_: value,
    ),
}
