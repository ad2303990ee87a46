"""Results and arguments of the functions of `kernels.c`, as ctypes wants them."""

from __future__ import annotations

import ctypes

_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_void_p
_KINDS = {"i": _INT, "l": _LONG, "f": _FLOAT, "p": _POINTER}


def _arguments(kinds: str) -> list[type]:
    return [_KINDS[kind] for kind in kinds if kind != " "]


# p: pointer, i: int, l: ptrdiff_t, f: float; the first two of what runs in parallel are "pi"
SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "packed_floats": (_LONG, _arguments("ii")),
    "pack": (_INT, _arguments("pi iip ll pp")),
    "gather": (_INT, _arguments("pi iii iiii ppp fi pppp p")),
    "apply": (_INT, _arguments("pi iii pp ppp fi pp")),
}
