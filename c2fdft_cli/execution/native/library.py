"""The compiled kernels of this machine: built once into the user's cache folder, then loaded.

If they cannot be built or loaded, torch's own operators do the work, without a message.
`c2fdft doctor` reports which of the two run, and why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.kernels import is_traced
from c2fdft_cli.files.folders import private_cache_folder
from c2fdft_cli.files.writing import atomic_path
from c2fdft_cli.vocabulary import check_choice

SWITCH = "C2FDFT_NATIVE"
"""Environment variable: "off" disables the compiled kernels."""

COMPILERS = ("cc", "gcc", "clang")

NO_BF16 = "no AVX-512 BF16"
AMX = "torch's products run on AMX"

_FOLDER = Path(__file__).parent
# Not -ffast-math: it assumes that no value is NaN or infinite, so an image with such values would
# no longer be detected. -fopenmp-simd reads the pragmas but links no OpenMP runtime.
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp-simd"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_BUILD_SECONDS = 60

_DEFINED = {torch.float32: (), torch.bfloat16: ("-DHALF",)}
"""What is defined for the compiler in each precision."""

_KINDS = {"i": ctypes.c_int, "l": ctypes.c_ssize_t, "f": ctypes.c_float, "p": ctypes.c_void_p}
# Results and arguments of the functions: p is a pointer, i an int, l a ptrdiff_t, f a float. The
# first two arguments of a function that runs in parallel are "pi".
_SIGNATURES = {
    "packed_floats": ("l", "ii"),
    "pack": ("i", "pi iiip lll pp"),
    "gather": ("i", "pi iii iiii ppp fi pppp p"),
    "apply": ("i", "pi iii pp ppp fi pp"),
}
_TRAINING_SIGNATURES = {
    "linear": ("i", "pi iiii pl ppp"),
    "mix": ("i", "pi iii ppp pp"),  # `attend` calls it; the tests alone call it from Python
    "attend_floats": ("l", "iiii"),
    "attend": ("i", "pi pppp"),
    "attend_back": ("i", "pi p ppppp"),
    "feed_forward_floats": ("l", "iiii"),
    "feed_forward": ("i", "pi pppp"),
    "feed_forward_back": ("i", "pi p ppppp"),
}


class Kernels:
    """The compiled functions in one precision, on as many threads as torch uses.

    Raises:
        OSError: the library cannot be loaded or lacks a function, or torch's threads cannot be
            used.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._library = ctypes.CDLL(str(path))
        self._parallel = _of_torch("GOMP_parallel")
        self._gemm: ctypes._FuncPointer | None = None
        training = _TRAINING_SIGNATURES if dtype == torch.float32 else {}
        for name, (result, arguments) in {**_SIGNATURES, **training}.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise OSError(f"{path} has no function {name}") from error
            function.restype = _KINDS[result]
            function.argtypes = [_KINDS[kind] for kind in arguments.replace(" ", "")]
        with suppress(OSError):
            self._gemm = _of_torch("sgemm_")

    @property
    def can_train(self) -> bool:
        """Whether there are the functions of `training`, and the BLAS that they call."""
        return self.dtype == torch.float32 and self._gemm is not None

    def call(self, name: str, *arguments: object) -> None:
        """Run a kernel in parallel.

        Raises:
            MemoryError: there is no memory for its buffers.
        """
        if getattr(self._library, name)(self._parallel, torch.get_num_threads(), *arguments):
            raise MemoryError(f"no memory for the buffers of {name}")

    def call_backward(self, name: str, *arguments: object) -> None:
        """Run a backward pass, which also uses torch's BLAS.

        Raises:
            MemoryError: there is no memory for its buffers.
            RuntimeError: `can_train` is false.
        """
        if self._gemm is None:  # a call through a null pointer would end the process
            raise RuntimeError("torch's libraries have no sgemm_, which training needs")
        self.call(name, self._gemm, *arguments)

    def floats(self, name: str, *sizes: int) -> int:
        """Return the number of floats that a buffer needs, from the function of this name."""
        return int(getattr(self._library, name)(*sizes))

    def pack(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Pack a linear layer's weight `[out, in]` as panels of its transpose, each after its bias.

        Args:
            weight: float32, with any strides; `[n, out, in]` for several layers.
            bias: `[out]` float32, the same for all; None for zeros.
        """
        out, width = weight.shape[-2:]
        matrices = weight.view(-1, out, width)
        panels = weight.new_empty(*weight.shape[:-2], self.floats("packed_floats", width, out))
        # Named, not passed as a temporary: its memory must last until the call returns.
        bias = None if bias is None else bias.contiguous()
        size, of_out, of_in = matrices.stride()
        self.call(
            *("pack", len(matrices), width, out, weight.data_ptr(), of_in, of_out, size),
            *(None if bias is None else bias.data_ptr(), panels.data_ptr()),
        )
        return panels


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the kernels, built if necessary; None if torch's own operators do the work."""
    if device.type != "cpu" or dtype not in _DEFINED or is_traced() or _are_intercepted():
        return None
    return kernels_or_reason(dtype)[0]


def _are_intercepted() -> bool:
    """Whether a mode sees all operators, as for fake tensors and for counting; not the kernels."""
    return _get_current_dispatch_mode() is not None


@functools.cache
def kernels_or_reason(dtype: torch.dtype) -> tuple[Kernels | None, str]:
    """Return this machine's kernels and their path, or None and the reason why there are none.

    dtype: float32, or bfloat16, which they have on processors with AVX-512 BF16 but without AMX:
        with it torch's own products should be faster (not measured).

    Raises:
        UsageError: the environment variable has an unknown value.
    """
    if check_choice(SWITCH, os.environ.get(SWITCH, "auto"), ("auto", "off")) == "off":
        return None, f"{SWITCH} is off"
    if dtype == torch.bfloat16 and (reason := _no_bf16()):
        return None, reason
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None, f"no C compiler ({', '.join(COMPILERS)})"
    try:
        if sys.platform == "darwin" and compiler.startswith("/usr/bin/"):
            # Without the command line tools these are stubs that open a dialog when they run.
            _run("xcode-select", "-p")
        path = _find_or_build(compiler, dtype)
        return Kernels(path, dtype), str(path)
    except subprocess.SubprocessError:
        return None, f"{compiler} cannot build them"
    except (OSError, RuntimeError, ResourceError) as error:  # RuntimeError: no home folder
        return None, str(error)


def _no_bf16() -> str | None:
    """Return why this processor does not use the kernels for bfloat16, or None."""
    if not torch.cpu._is_avx512_bf16_supported():
        return NO_BF16
    return AMX if torch.cpu._is_amx_tile_supported() else None


def _of_torch(name: str) -> ctypes._FuncPointer:
    """Return a C function of the libraries that torch has loaded.

    GOMP_parallel of its OpenMP runtime, to share its threads: the idle threads of a second runtime
    would spin on the cores that those of the first one use. sgemm_ of its BLAS.
    """
    folder = Path(torch.__file__).parent / "lib"
    for library in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / library).exists():
            try:  # the symbol is also looked up in the libraries that this one is linked with
                function: ctypes._FuncPointer = getattr(ctypes.CDLL(str(folder / library)), name)
                return function
            except AttributeError as error:
                raise OSError(f"torch's libraries have no {name}") from error
    raise OSError("torch's libraries are not in their usual place")


def _fingerprint(compiler: str, defined: Sequence[str]) -> str:
    """Return a hash of all sources, the compiler, its flags and the processor."""
    sources = [path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]"))]
    flags = " ".join((*_FLAGS, *defined)).encode()
    parts = (*sources, _run(compiler, "--version"), flags, _processor().encode())
    return _hash(b"\0".join(parts))


def _processor() -> str:
    """Return what `-march=native` depends on, because several machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    names = ("model name", "cpu family", "model", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in names}))


def _find_or_build(compiler: str, dtype: torch.dtype) -> Path:
    """Return the path of a library for this machine.

    Its name contains a hash of everything that the code depends on, and one of its content. So a
    damaged library is not loaded (if truncated, it would end the process by SIGBUS), and building
    it again replaces it.

    Raises:
        OSError, ResourceError: it cannot be stored.
        RuntimeError: the user has no home folder.
        subprocess.SubprocessError: the compiler failed.
    """
    folder, begin = private_cache_folder(), f"kernels-{_fingerprint(compiler, _DEFINED[dtype])}-"
    found = next(filter(_is_intact, folder.glob(f"{begin}*.so")), None)
    if found is not None:
        return found
    # Not in the cache, where the folder would stay for ever if the process were killed.
    with tempfile.TemporaryDirectory() as build:
        built = Path(build) / "kernels.so"
        _run(compiler, *_FLAGS, *_DEFINED[dtype], str(_FOLDER / "kernels.c"), "-o", str(built))
        content = built.read_bytes()
    path = folder / f"{begin}{_hash(content)}.so"
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
        temporary.chmod(0o600)  # the umask may let others write to it
    return path


def _is_intact(path: Path) -> bool:
    """Whether a library is what the compiler made, and only this user can write to it."""
    try:
        found = path.lstat()
        private = stat.S_ISREG(found.st_mode)
        if sys.platform != "win32":  # which has neither owners nor these bits
            private = private and found.st_uid == os.getuid() and not found.st_mode & 0o022
        return private and path.stem.endswith(f"-{_hash(path.read_bytes())}")
    except OSError:
        return False


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _run(*command: str) -> bytes:
    """Run a command and return its standard output."""
    done = subprocess.run(  # noqa: S603 - the system's compiler on our own source
        command, capture_output=True, check=True, timeout=_BUILD_SECONDS
    )
    return done.stdout
