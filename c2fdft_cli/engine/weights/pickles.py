"""Pickles of strangers: tensors and plain values are read, everything else becomes inert.

A pickle is a program for a stack machine whose instructions import and call whatever they name.
This machine has the stack, and no instruction that imports or calls: the name of a class or
function is kept as an `Opaque`, and calling one gives an `Opaque` again, except for the few that
make a tensor or a dictionary, which are rebuilt here. `pickletools` of the standard library
decodes the instructions. Tensors come out as descriptions; no storage is read.

Source: the instructions' semantics are those of CPython's `pickle.py`; the names that make
tensors are those of `torch._utils`.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, cast

import torch

MAX_BYTES = 64 << 20
# a tensor takes about 25, and the largest official network has 1,200 tensors in its two sets
MAX_INSTRUCTIONS = 500_000
# Python's hash of an integer is its remainder of division by 2**61 - 1.
MAX_KEY = 1 << 60
"""Larger integers can be chosen to collide in a dictionary, which takes time squared."""
# Bounds the products of claimed sizes: 64 factors below 2**60.
MAX_DIMENSIONS = 64
# A call copies its arguments: a long tuple, written once and kept in the memo, could be copied by
# each of half a million instructions.
MAX_ARGUMENTS = 16
# For the same reason: two long texts out of the memo could be joined again and again.
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
    # counts bytes; the tensors that use it, of version 3, name their type themselves
    "torch.storage.UntypedStorage": torch.uint8,
}
_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")
}


class UnusableError(ValueError):
    """A file of tensors that cannot be used; the text is a sentence that says why."""


@dataclass(frozen=True)
class Opaque:
    """What a pickle wanted to import, or to make by a call: only its name is kept."""

    name: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file.

    storage: the key of the bytes that it is a view of; storage_bytes: how many the file claims.
    offset, shape, stride: of the view, in elements; as the file claims, checked by nobody yet.
    """

    storage: str
    storage_bytes: int
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def nbytes(self) -> int:
        """How many bytes it takes once it is a tensor of its own."""
        return self.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int
    start: int

    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def read_pickle(file: IO[bytes], storages: dict[str, int] | None = None) -> Any:
    """The next pickle of a file: plain values, dictionaries, `StoredTensor` and `Opaque`.

    Sets become opaque, entries of dictionaries are dropped unless their key is text, an integer
    below `MAX_KEY`, or nothing.

    Args:
        file: read up to the end of the pickle.
        storages: takes the bytes that each storage claims to have, by its key.

    Raises:
        UnusableError: longer than `MAX_BYTES` or `MAX_INSTRUCTIONS`, or no pickle.
        Exception: whatever arbitrary bytes provoke (IndexError, KeyError, ValueError, ...).
    """
    machine = _Machine({} if storages is None else storages)
    bounded = cast("IO[bytes]", _Bounded(file))
    for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if count >= MAX_INSTRUCTIONS:
            raise UnusableError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
        machine.step(opcode.name, argument)
    raise UnusableError("its pickle has no end")


class _Bounded:
    """A file that ends with an error after `MAX_BYTES`, so that no length in it is believed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = MAX_BYTES

    def read(self, size: int) -> bytes:
        # A file allocates what it is asked for before it looks how much is there: 9 bytes of pickle
        # could claim any length. One more than is left, to tell too much from the end of the file.
        return self._count(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._count(self._file.readline(self._left + 1))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise UnusableError(f"its pickle is larger than {MAX_BYTES >> 20} MiB")
        return data


class _Machine:
    """The stack machine; one method for each kind of instruction."""

    def __init__(self, storages: dict[str, int]) -> None:
        self.stack: list[Any] = []
        self._storages = storages
        # One list a mark, as in CPython's pickle.py: nothing is searched for the last mark.
        self._below: list[list[Any]] = []
        # A dictionary: the memo of pickle in C is an array, as long as the largest index written.
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
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
            _OTHERS[name](self, argument)

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError(count)
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        # of an empty stack, it takes the mark below
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def pop_mark(self, _: Any) -> None:
        self._pop_mark()

    def dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def make_tuple(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def make_list(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append(items)

    def make_dict(self, _: Any) -> None:
        items = self._pop_mark()
        self.stack.append({})
        self._set(items)

    def append(self, _: Any) -> None:
        self._extend(self._pop(1))

    def appends(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        # no other object has its `append` called, as pickle would do
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        self._set(self._pop(2))

    def set_items(self, _: Any) -> None:
        self._set(self._pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # The hash of a tuple is computed anew each time, and by recursion in C: nested deep
                # enough, one that is used as a key ends the process (SIGSEGV).
                if _is_key(key):
                    target[key] = value

    def name(self, argument: str) -> None:
        # pickletools gives the two lines of the instruction, module and name, with a blank between
        self.stack.append(Opaque(argument.replace(" ", ".", 1)))

    def stack_name(self, _: Any) -> None:
        module, name = self._pop(2)
        text = isinstance(module, str) and isinstance(name, str)
        full = f"{module:.{MAX_NAME}}.{name:.{MAX_NAME}}" if text else "unnamed"
        self.stack.append(Opaque(full))

    def extension(self, argument: int) -> None:
        self.stack.append(Opaque(f"extension {argument}"))

    def call(self, _: Any) -> None:
        function, arguments = self._pop(2)
        self.stack.append(_call(function, arguments))

    def call_with_names(self, _: Any) -> None:
        function, arguments, _names = self._pop(3)
        self.stack.append(_call(function, arguments))

    def call_marked(self, argument: Any) -> None:
        # INST names what to call, OBJ has it behind the mark
        items = self._pop_mark()
        if argument is None:
            self.stack.append(_call(items[0], tuple(items[1:])))
        else:
            self.stack.append(_call(Opaque(argument.replace(" ", ".", 1)), tuple(items)))

    def frozen_set(self, _: Any) -> None:
        self._pop_mark()
        self.stack.append(Opaque("builtins.frozenset"))

    def drop_state(self, _: Any) -> None:
        # BUILD: the attributes of an object, such as a state dict's `_metadata`
        self._pop(1)

    def persistent(self, argument: Any) -> None:
        self.stack.append(Opaque(f"persistent object {argument!r:.40}"))

    def persistent_on_stack(self, _: Any) -> None:
        storage = _storage(self.stack.pop())
        if isinstance(storage, _Storage):
            self._storages[storage.key] = storage.nbytes()
        self.stack.append(storage)


# An instruction that stands in none of these tables is a KeyError in `step`: nothing is passed over
# because it is not known.
_CONSTANTS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    # numbers, text and bytes that stand in the instruction itself
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
_OTHERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.dup,
    "TUPLE": _Machine.make_tuple,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.pop_mark,
    "FROZENSET": _Machine.frozen_set,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "INST": _Machine.call_marked,
    "OBJ": _Machine.call_marked,
    "BUILD": _Machine.drop_state,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent_on_stack,
}


def _call(function: Any, arguments: Any) -> Any:
    """What a call makes, of the few that are known here; an `Opaque` for every other."""
    name = function.name if isinstance(function, Opaque) else "unnamed"
    rebuild = _REBUILDS.get(name)
    if rebuild is None or not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
        return Opaque(name)
    return rebuild(*arguments)


def _dictionary(items: Any = None, *_: Any) -> Any:
    # `OrderedDict()` or `Counter({...})`; never copied, or a few bytes could copy it often
    if items is None:
        return {}
    return items if isinstance(items, dict) else Opaque("collections.OrderedDict")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor | Opaque:
    if not isinstance(storage, _Storage):
        return Opaque("torch.Tensor")
    return _view(storage, storage.dtype, offset, shape, stride)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor | Opaque:
    known = _DTYPES.get(dtype.name) if isinstance(dtype, Opaque) else None
    if known is None or not isinstance(storage, _Storage):
        return Opaque("torch.Tensor")
    return _view(storage, known, offset, shape, stride)


def _view(
    storage: _Storage, dtype: torch.dtype, offset: Any, shape: Any, stride: Any
) -> StoredTensor:
    if not (are_counts((offset,)) and are_counts(shape) and are_counts(stride)) or (
        len(shape) != len(stride)
    ):
        raise UnusableError("a tensor in it has an impossible shape")
    offset += storage.start
    return StoredTensor(storage.key, storage.nbytes(), dtype, offset, tuple(shape), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _from_type(function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    # a tensor with attributes; what it is made by cannot be this again, so nothing recurses
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
    """The storage that a persistent id of `torch.save` stands for.

    `("storage", type, key, device, elements)`, and in old files `(key, offset, elements)` of a
    view as a sixth.
    """
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        return Opaque("persistent object")
    kind, key, _device, numel, *view = identity[1:]
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Opaque) else None
    start = view[0][1] if view and view[0] is not None else 0
    if dtype is None or not isinstance(key, str) or not are_counts((numel, start)):
        return Opaque("storage")
    return _Storage(key, dtype, numel, start)


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
