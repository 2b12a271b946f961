"""Write a checkpoint that `torch.load` reads, without torch: the reverse of `torch_file`.

The archive is the zip format of torch 1.6 and later: a pickle of protocol 2 and one uncompressed
entry per tensor. It loads with `weights_only=True`.
"""

import os
import struct
import zipfile
from typing import Any

import numpy as np

from otseg_jax.weights.torch_file import STORAGES

_NAMES = {dtype: name for name, dtype in STORAGES.items()}
_ROOT = "archive/"


def write(path: str | os.PathLike[str], value: Any) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and numpy arrays; arrays become tensors.

    The file is written in place: a caller who needs it whole or not at all renames it afterwards.

    Raises:
        ValueError: a value of another type, or an array of a dtype that torch has no storage for.
    """
    pickle = _Pickle()
    pickle.add(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        # ZipInfo's date is the earliest that zip has, so that equal content gives equal files
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}data.pkl"), bytes(pickle.code + b"."))  # STOP
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}byteorder"), b"little")
        for i, array in enumerate(pickle.arrays):
            with archive.open(zipfile.ZipInfo(f"{_ROOT}data/{i}"), "w", force_zip64=True) as file:
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        archive.writestr(zipfile.ZipInfo(f"{_ROOT}version"), b"3\n")


class _Pickle:
    """Emits opcodes: Python's own pickler would have to import torch to name its functions."""

    def __init__(self) -> None:
        self.code = bytearray(b"\x80\x02")  # PROTO 2; opcodes as in `pickletools`
        self.arrays: list[np.ndarray] = []

    def add(self, *values: Any) -> None:
        for value in values:
            match value:
                case None:
                    self.code += b"N"  # NONE
                case bool():
                    self.code += b"\x88" if value else b"\x89"  # NEWTRUE, NEWFALSE
                case int():
                    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
                    self.code += b"\x8a" + struct.pack("<B", len(data)) + data  # LONG1
                case float():
                    self.code += b"G" + struct.pack(">d", value)  # BINFLOAT
                case str():
                    data = value.encode()
                    self.code += b"X" + struct.pack("<I", len(data)) + data  # BINUNICODE
                case np.ndarray():
                    self._add_tensor(value)
                case dict():
                    self.code += b"}("  # EMPTY_DICT, MARK
                    for pair in value.items():
                        self.add(*pair)
                    self.code += b"u"  # SETITEMS
                case list():
                    self.code += b"]("  # EMPTY_LIST, MARK
                    self.add(*value)
                    self.code += b"e"  # APPENDS
                case tuple():
                    self.code += b"("  # MARK
                    self.add(*value)
                    self.code += b"t"  # TUPLE
                case _:
                    raise ValueError(f"a {type(value).__name__} has no place in a torch checkpoint")

    def _add_tensor(self, array: np.ndarray) -> None:
        if array.dtype not in _NAMES:
            raise ValueError(f"torch has no storage for {array.dtype}")
        # _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks); storage is the
        # persistent id ("storage", class, key, device, size), which `torch.load` looks up itself.
        strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
        self.code += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.add("storage")
        self.code += b"c" + _NAMES[array.dtype].replace(".", "\n").encode() + b"\n"
        self.add(str(len(self.arrays)), "cpu", int(array.size))
        self.code += b"tQ"
        self.add(0, tuple(array.shape), strides, False)
        self.code += b"ccollections\nOrderedDict\n)RtR"
        self.arrays.append(array)
