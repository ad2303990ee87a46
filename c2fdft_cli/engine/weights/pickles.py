"""Reads untrusted pickles: tensors and plain values; everything else becomes an inert object.

A pickle is a program for a stack machine whose instructions import and call whatever they name.
The machine in this module has the stack, but imports and calls nothing: the name of a class or
function is kept as an `Opaque`, and the result of calling it is an `Opaque` too. The exceptions are
the few functions that make a tensor or a dictionary; their results are rebuilt here. `pickletools`
of the standard library decodes the instructions. Tensors are returned as descriptions; no storage
is read.

Source: the semantics of the instructions are those of CPython's `pickle.py`; the names of the
functions that make tensors are those of `torch._utils`.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

MAX_BYTES = 64 << 20
# A tensor takes about 25 instructions, and the largest official network has 1,200 tensors in its
# two sets.
MAX_INSTRUCTIONS = 500_000
# Python's hash of an integer is its remainder modulo 2**61 - 1.
MAX_KEY = 1 << 60
"""Larger integers could be chosen to collide in a dictionary, which would take quadratic time."""
# Bounds the products of the sizes that a file claims: at most 64 factors below 2**60.
MAX_DIMENSIONS = 64
# A call copies its arguments: half a million instructions could each copy a long tuple that is
# stored only once, in the memo.
MAX_ARGUMENTS = 16
# For the same reason: two long texts in the memo could be joined again and again.
MAX_NAME = 200

_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    # Its size is in bytes; the tensors that use it (`_rebuild_tensor_v3`) state their own dtype.
    "torch.storage.UntypedStorage": torch.uint8,
}
_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")
}


class UnusableError(ValueError):
    """A file of tensors cannot be used; the message is a sentence that explains why."""


@dataclass(frozen=True)
class Opaque:
    """An object that a pickle would import or make by a call; only its name is kept."""

    name: str


@dataclass(frozen=True)
class StoredTensor:
    """The description of a tensor that is stored in a file.

    storage: the key of the storage that the tensor is a view of; storage_bytes: its claimed size.
    offset, shape, stride: those of the view, in elements, as the file claims; not checked yet.
    """

    storage: str
    storage_bytes: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def nbytes(self) -> int:
        """Return the number of bytes that the tensor takes in a separate storage."""
        return self.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int

    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def read_pickle(data: bytes) -> Any:
    """Read a pickle: plain values, dictionaries, `StoredTensor` and `Opaque`.

    Sets become opaque. Entries of dictionaries are dropped unless their key is a text, an integer
    whose absolute value is below `MAX_KEY`, or None.

    Raises:
        UnusableError: the pickle exceeds `MAX_BYTES` or `MAX_INSTRUCTIONS`.
        Exception: arbitrary bytes can cause any error (IndexError, KeyError, ValueError, ...).
    """
    if len(data) > MAX_BYTES:
        raise UnusableError(f"its pickle is larger than {MAX_BYTES >> 20} MiB")
    machine, source = _Machine(), io.BytesIO(data)
    for _ in range(MAX_INSTRUCTIONS):
        opcode = _OPCODES[source.read(1)]  # a KeyError at the end of the data
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.step(opcode.name, opcode.arg.reader(source) if opcode.arg else None)
    raise UnusableError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")


class _Machine:
    """The stack machine; the method `op_...` executes the instruction of that name."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        # One list per mark, as in CPython's pickle.py, so the last mark need not be searched for.
        self._below: list[list[Any]] = []
        # A dictionary, not an array as in C's pickle: that is as long as the largest index.
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in _GETS:
            self.stack.append(self._memo[argument])
        elif name in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
        elif name not in _IGNORED:
            # An AttributeError for an instruction without a method: unknown ones are never skipped.
            getattr(self, f"op_{name.lower()}")(argument)

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError(count)
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def op_mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def op_pop(self, _: Any) -> None:
        # If the stack is empty, POP removes the mark.
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def op_pop_mark(self, _: Any) -> None:
        self._pop_mark()

    op_additems = op_pop_mark  # the set that they are added to is opaque

    def op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def op_tuple(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def op_list(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(items)

    def op_dict(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set(items)

    def op_append(self, _: Any) -> None:
        self._extend(self._pop(1))

    def op_appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        # pickle would call `append` of any object; here only lists are extended.
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def op_setitem(self, _: Any) -> None:
        self._set(self._pop(2))

    def op_setitems(self, _: Any) -> None:
        self._set(self._pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Tuples are not accepted as keys: their hash is computed again each time, and by
                # recursion in C, so a deeply nested tuple would crash the process (SIGSEGV).
                if _is_key(key):
                    target[key] = value

    def op_global(self, argument: str) -> None:
        self.stack.append(_named(argument))

    def op_stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        text = isinstance(module, str) and isinstance(name, str)
        full = f"{module:.{MAX_NAME}}.{name:.{MAX_NAME}}" if text else "unnamed"
        self.stack.append(Opaque(full))

    def op_ext1(self, argument: int) -> None:
        self.stack.append(Opaque(f"extension {argument}"))

    op_ext2 = op_ext4 = op_ext1

    def op_reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        self.stack.append(_call(function, arguments))

    op_newobj = op_reduce

    def op_newobj_ex(self, _: Any) -> None:
        function, arguments, _names = self._pop(3)
        self.stack.append(_call(function, arguments))

    def op_inst(self, argument: str) -> None:
        items = self._pop_mark()
        self.stack.append(_call(_named(argument), tuple(items)))

    def op_obj(self, _: Any) -> None:
        function, *arguments = self._pop_mark()
        self.stack.append(_call(function, tuple(arguments)))

    def op_frozenset(self, _: Any) -> None:
        self._pop_mark()
        self.stack.append(Opaque("builtins.frozenset"))

    def op_build(self, _: Any) -> None:
        # The state, such as a state dict's `_metadata`, is dropped.
        self._pop(1)

    def op_persid(self, argument: Any) -> None:
        self.stack.append(Opaque(f"persistent object {argument!r:.40}"))

    def op_binpersid(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop()))


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_CONSTANTS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    # numbers, text and bytes that are contained in the instruction itself
    if opcode.arg is not None
    and opcode.stack_before == []
    and opcode.stack_after not in ([], [pickletools.anyobject])
)
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("builtins.set"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_IGNORED = frozenset({"PROTO", "FRAME"})


def _named(argument: str) -> Opaque:
    # pickletools returns the two lines of the instruction, module and name, with a space between
    # them.
    return Opaque(argument.replace(" ", ".", 1))


def _call(function: Any, arguments: Any) -> Any:
    """Return the result of a call to one of `_REBUILDS`, and an `Opaque` for any other function."""
    name = function.name if isinstance(function, Opaque) else "unnamed"
    rebuild = _REBUILDS.get(name)
    if rebuild is None or not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
        return Opaque(name)
    return rebuild(*arguments)


def _dictionary(items: Any = None, *_: Any) -> Any:
    # `OrderedDict()` or `Counter({...})`. The dictionary is not copied: otherwise a pickle of a few
    # bytes could copy it many times.
    if items is None:
        return {}
    return items if isinstance(items, dict) else Opaque("collections.OrderedDict")


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *more: Any
) -> StoredTensor | Opaque:
    if not isinstance(storage, _Storage) or _is_lazy(more):
        return Opaque("torch.Tensor")
    return _view(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _: Any, hooks: Any, dtype: Any, *more: Any
) -> StoredTensor | Opaque:
    known = _DTYPES.get(dtype.name) if isinstance(dtype, Opaque) else None
    if known is None or not isinstance(storage, _Storage) or _is_lazy((hooks, *more)):
        return Opaque("torch.Tensor")
    return _view(storage, known, offset, shape, stride)


def _is_lazy(arguments: tuple[Any, ...]) -> bool:
    """Whether torch's metadata of a tensor say that its stored values lack a negation.

    torch negates and conjugates some views only when they are used, and stores them as they are:
    `torch.complex(a, b).conj().imag` as b, with the bit "neg".
    """
    about = (one for one in arguments if isinstance(one, dict))
    return any(one.get("neg") or one.get("conj") for one in about)


def _view(
    storage: _Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any
) -> StoredTensor:
    if not (are_counts((offset,)) and are_counts(shape) and are_counts(stride)) or (
        len(shape) != len(stride)
    ):
        raise UnusableError("a tensor in it has an impossible shape")
    return StoredTensor(storage.key, storage.nbytes(), dtype, offset, tuple(shape), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    # A tensor with attributes. The inner function must be one of `_TENSORS`, so nothing recurses.
    is_tensor = isinstance(function, Opaque) and function.name in _TENSORS
    return _call(function, arguments) if is_tensor else Opaque("torch.Tensor")


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
}
_REBUILDS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _first,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda *_: {},
}


def _storage(identity: Any) -> _Storage | Opaque:
    """Return the storage of a persistent id of `torch.save`.

    The id is `("storage", type, key, device, elements)`.
    """
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        return Opaque("persistent object")
    kind, key, _device, numel = identity[1:]
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Opaque) else None
    if dtype is None or not isinstance(key, str) or not are_counts((numel,)):
        return Opaque("storage")
    return _Storage(key, dtype, numel)


def are_counts(values: Any) -> bool:
    """Whether these are at most `MAX_DIMENSIONS` integers of at least 0, below `MAX_KEY`."""
    return (
        isinstance(values, tuple | list)
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < MAX_KEY for value in values)
    )


def _is_key(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str)
        or (isinstance(value, int) and -MAX_KEY < value < MAX_KEY)
    )
