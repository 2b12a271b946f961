"""A pickle interpreter that cannot execute anything: containers, numbers, strings, named calls.

Python's own unpickler imports what a pickle names and takes memory for what it claims. This one
compares names with a list; a name that is not on it is reported, never looked up.
"""

import pickletools
from collections.abc import Callable, Collection
from typing import Any

ADMITTED = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "torch.jit._pickle.restore_type_tag",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
}

# pushed on the stack as they stand: torch.float32, and so on
DTYPES = {f"torch.{name}" for name in ("float64", "float32", "float16", "bfloat16", "int64")}


class _Name(str):
    """A global that the pickle names; it is compared, never imported."""


class Dtype(list):
    """What stands for a pickled numpy dtype: its code."""


class Machine:
    """The stack machine of the pickle protocol, as far as data needs it.

    Args:
        call: what calling an admitted global with its arguments gives.
        persistent: the object that a persistent reference stands for.
        known: names that may be mentioned besides `ADMITTED`.

    Attributes:
        refused: names that the pickle asked for in vain, with their places.
    """

    def __init__(
        self,
        call: Callable[[str, tuple[Any, ...]], Any],
        persistent: Callable[[Any], Any],
        *,
        known: Collection[str],
    ) -> None:
        self.call, self.persistent, self.known = call, persistent, known
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.refused: list[str] = []
        self.result: Any = None

    def run(self, code: bytes) -> Any:
        """Interpret a pickle.

        Raises:
            ValueError, TypeError, IndexError, KeyError, AttributeError: it is damaged or made to
                harm; whoever calls knows which file that was.
        """
        for opcode, argument, position in pickletools.genops(code):
            self._step(opcode.name, argument, position)
        return self.result

    def _step(self, name: str, argument: Any, position: int | None) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                self.result = stack.pop()
            case "MARK":
                self.marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"D": {}, "L": [], "T": ()}[name[6]])
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(
                    tuple(self._since_mark() if name == "TUPLE" else self._top(int(name[5])))
                )
            case "APPEND" | "APPENDS":
                items = self._since_mark() if name == "APPENDS" else self._top(1)
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._since_mark() if name == "SETITEMS" else self._top(2)
                self._dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                parts = argument.split(" ") if argument else self._top(2)
                stack.append(self._name(".".join(parts), position))
            case "REDUCE" | "NEWOBJ":
                function, arguments = self._top(2)
                stack.append(self._construct(function, arguments))
            case "BUILD":
                (state,) = self._top(1)
                self._build(stack[-1], state)
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case _ if argument is not None and isinstance(argument, int | float | str | bytes):
                # INT, LONG, FLOAT, STRING and their kin: the argument is the value
                if name.startswith(("PERSID", "INST", "EXT", "GET", "PUT")):
                    raise ValueError(f"opcode {name} at byte {position}")
                stack.append(argument)
            case _:
                raise ValueError(f"opcode {name} at byte {position}")

    def _name(self, name: str, position: int | None) -> _Name:
        known = name in ADMITTED or name in self.known or name in DTYPES
        if not known and not name.startswith(("__torch__.", "torch.jit._pickle.build_")):
            self.refused.append(f"{name} (byte {position})")
        return _Name(name)

    def _construct(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Name):
            raise ValueError(f"a {type(function).__name__} is called")
        if function.startswith("__torch__."):  # a scripted module: its attributes follow
            return {}
        if function not in ADMITTED and not function.startswith("torch.jit._pickle."):
            return {}  # refused already; a dict takes whatever follows
        return self.call(function, tuple(arguments))

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Dtype):
            if state[1] not in ("<", "|"):
                raise ValueError(f"a numpy number in byte order {state[1]!r}")
        elif isinstance(state, dict) and "_metadata" not in state:
            self._dict(target).update(state)  # torch adds _metadata to a state dict: no tensors

    def _dict(self, value: Any) -> dict:
        if not isinstance(value, dict):
            raise ValueError(f"items are set in a {type(value).__name__}")
        return value

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the pickle takes more from its stack than lies there")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items
