"""Read what `torch.save` and `torch.jit.save` write, without torch and without executing anything.

Both are zip archives: a pickle that describes the objects, and one stored (uncompressed) entry per
tensor storage. The pickle is interpreted here, by a machine that knows containers, numbers, strings
and tensors; a name that it does not know is reported, never looked up. Tensors come back as numpy
arrays of the stored dtype (bfloat16 as ml_dtypes'), other objects as plain dicts and lists. Every
size is compared with the file's before memory is taken for it.
"""

import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from otseg_jax.weights.pickles import Dtype, Machine

LARGEST_PICKLE = 64 << 20  # bytes; that of a ViT-L/14 training run has about one million

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}


def read(path: str | Path) -> Any:
    """Read a file that torch wrote in its zip format, a TorchScript archive included.

    Args:
        path: .pt, .pth or .bin file.

    Returns:
        The pickled object: dicts (an `OrderedDict` or a scripted module is one too), lists, tuples,
        numbers, strings, and numpy arrays for tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged file, or one that asks for more than tensors and
            containers; everything it asked for is named.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} {_not_a_zip(path)} ({error})") from error
    except (EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, fetch it again: {error}") from error


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


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        self.refused: list[str] = []
        self.storages: dict[str, np.ndarray] = {}
        size = path.stat().st_size
        if sum(entry.compress_size for entry in self.entries.values()) > size:
            raise ValueError(f"{path} is damaged or made to harm: its entries overlap")

    def read(self) -> Any:
        pickles = [n for n in self.entries if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(
                f"{self.path} is a zip archive without torch's data.pkl; it holds "
                f"{', '.join(list(self.entries)[:5]) or 'nothing'}"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        order = f"{self.root}byteorder"
        if order in self.entries and self._bytes(order, 16) != b"little":
            raise ValueError(f"{self.path} was written on a big-endian machine: not read")
        return self._run(self._bytes(pickles[0], LARGEST_PICKLE))

    def _bytes(self, name: str, most: int) -> bytes:
        entry = self.entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{self.path}: {name} is compressed, as torch never writes it")
        if entry.file_size > most:
            raise ValueError(f"{self.path}: {name} is {entry.file_size} bytes, at most {most}")
        return self.archive.read(entry)  # checks the CRC

    def _run(self, code: bytes) -> Any:
        """Interpret a pickle; refused names are collected, so that all are told at once."""
        machine = Machine(self._call, self._persistent, known=STORAGES)
        try:
            result = machine.run(code)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            if not self.refused:
                raise ValueError(f"{self.path} is damaged or of another kind: {error}") from error
        self.refused += machine.refused
        if self.refused:
            names = ", ".join(dict.fromkeys(self.refused))
            raise ValueError(
                f"{self.path} is refused and nothing of it was executed: it asks for {names}, and "
                "only tensors, containers, numbers and strings are admitted"
            )
        return result

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What calling an admitted global gives."""
        match name:
            case "collections.OrderedDict":
                return dict(*arguments)
            case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
                return self._tensor(*arguments[:4])
            case "torch._utils._rebuild_parameter":
                return arguments[0]
            case "torch.Size":
                return tuple(arguments[0])
            case "torch.device":
                return ":".join(map(str, arguments))
            case "torch.jit._pickle.restore_type_tag":
                return arguments[0]
            case "numpy.dtype":
                return Dtype([arguments[0]])
            case "numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar":
                return _number(*arguments)
            case "_codecs.encode":  # how protocol 2 writes the bytes of a numpy number
                return arguments[0].encode("latin1")
        if name.startswith("torch.jit._pickle.build_"):  # …intlist, tensorlist
            return list(arguments[0])
        self.refused.append(name)
        return None

    def _persistent(self, reference: Any) -> Any:
        """A storage, read when a tensor first needs it."""
        kind, storage, key, _, count = reference
        if kind != "storage" or storage not in STORAGES:
            self.refused.append(f"a storage of {storage}")
            return None
        if key not in self.storages:
            name, dtype = f"{self.root}data/{key}", STORAGES[storage]
            if name not in self.entries:
                raise ValueError(f"{name} is not in the archive")
            if self.entries[name].file_size != count * dtype.itemsize:
                raise ValueError(
                    f"{name} is {self.entries[name].file_size} bytes, its tensors want "
                    f"{count} × {dtype.itemsize}"
                )
            data = self._bytes(name, self.entries[name].compress_size)
            self.storages[key] = np.frombuffer(data, dtype)
        return self.storages[key]

    def _tensor(self, storage: Any, offset: int, shape: Any, strides: Any) -> np.ndarray | None:
        if storage is None:  # of a kind that was refused
            return None
        sizes = [int(n) for n in shape]
        steps = [int(n) for n in strides]
        count = 1
        for size in sizes:
            count *= size
        last = offset + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
        if (
            min([offset, *sizes, *steps]) < 0
            or count > max(storage.size, 1)
            or not (last < storage.size or count == 0)
        ):
            raise ValueError(
                f"a tensor of shape {sizes}, strides {steps}, offset {offset} does not lie in its "
                f"storage of {storage.size} numbers"
            )
        pitch = storage.dtype.itemsize
        return np.lib.stride_tricks.as_strided(
            storage[offset:], sizes, [step * pitch for step in steps], writeable=False
        )


def _number(dtype: Any, data: bytes) -> float | int:
    code = dtype[0]
    if code not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
        raise ValueError(f"a numpy number of dtype {code!r}")
    return np.frombuffer(data, np.dtype("<" + code), 1)[0].item()
