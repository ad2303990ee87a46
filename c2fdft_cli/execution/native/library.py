"""The compiled kernels of this machine: built once into the user's cache folder, then loaded.

Where they cannot be built or loaded, nothing is said and torch's own operators do the work;
`c2fdft doctor` tells which route runs and why.
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
from pathlib import Path

import torch

from c2fdft_cli.execution.kernels import is_traced
from c2fdft_cli.vocabulary import check_choice

SWITCH = "C2FDFT_NATIVE"
"""Environment variable: "off" leaves the compiled kernels out."""

COMPILERS = ("cc", "gcc", "clang")

_SOURCE = Path(__file__).with_name("kernels.c")
# Not -ffast-math: it assumes that no value is NaN or infinite, and an image that is not finite
# would no longer be found out. -fopenmp-simd reads the pragmas and links no OpenMP of its own.
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp-simd"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_BUILD_SECONDS = 60

_KINDS = {"i": ctypes.c_int, "l": ctypes.c_ssize_t, "f": ctypes.c_float, "p": ctypes.c_void_p}
# Results and arguments of the functions of `kernels.c`: p is a pointer, i an int, l a ptrdiff_t,
# f a float. The first two arguments of what runs in parallel are "pi".
_SIGNATURES = {
    "packed_floats": ("l", "ii"),
    "pack": ("i", "pi iip ll pp"),
    "gather": ("i", "pi iii iiii ppp fi pppp p"),
    "apply": ("i", "pi iii pp ppp fi pp"),
}


class Kernels:
    """The functions of `kernels.c`, on as many threads as torch uses.

    Raises:
        OSError: the library cannot be loaded, or torch's threads are not reached.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._parallel = _torch_threads()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype = _KINDS[result]
            function.argtypes = [_KINDS[kind] for kind in arguments.replace(" ", "")]

    def call(self, name: str, *arguments: object) -> None:
        """Run a kernel in parallel.

        Raises:
            MemoryError: no memory for its buffers.
        """
        if getattr(self._library, name)(self._parallel, torch.get_num_threads(), *arguments):
            raise MemoryError(f"no memory for the buffers of {name}")

    def plain(self, name: str, *arguments: object) -> int:
        """Run a function that works on one thread."""
        return getattr(self._library, name)(*arguments)  # type: ignore[no-any-return]


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """The kernels, built if need be; None where torch's own operators do the work."""
    if device.type != "cpu" or dtype != torch.float32 or is_traced():
        return None
    return kernels_or_reason()[0]


@functools.cache
def kernels_or_reason() -> tuple[Kernels | None, str]:
    """The kernels of this machine, and in words where they lie or why there are none.

    Raises:
        UsageError: the environment variable has another value.
    """
    if check_choice(SWITCH, os.environ.get(SWITCH, "auto"), ("auto", "off")) == "off":
        return None, f"{SWITCH} is off"
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None, f"no C compiler ({', '.join(COMPILERS)})"
    try:
        if sys.platform == "darwin" and compiler.startswith("/usr/bin/"):
            # Without the command line tools these are stubs, which open a dialog when they run.
            _run("xcode-select", "-p")
        # The name holds all that the code depends on, so a library that is there needs no other
        # check.
        path = _private_folder() / f"kernels-{_fingerprint(compiler)}.so"
        if not path.exists():
            _build(compiler, path)
        return Kernels(path), str(path)
    except subprocess.SubprocessError:
        return None, f"{compiler} cannot build them"
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        return None, str(error)


def _torch_threads() -> ctypes._FuncPointer:
    """GOMP_parallel of the OpenMP runtime that torch itself has loaded: one pool for both.

    A second runtime's idle threads would spin on the cores that the first one's work on.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            try:  # a symbol is looked for in what the library is linked with, too
                return ctypes.CDLL(str(folder / name)).GOMP_parallel
            except AttributeError as error:
                raise OSError("torch's OpenMP has no GOMP_parallel") from error
    raise OSError("torch's libraries are not where they usually are")


def _private_folder() -> Path:
    """The user's cache folder for compiled kernels; nobody else may write there.

    Raises:
        OSError: it cannot be made, or others can write to it.
    """
    caches = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or caches) / "c2fdft"
    # What lies here is loaded as code. `mkdir` accepts a folder that is there, whoever made it, so
    # its owner and mode are looked at afterwards; by `lstat`, as a link could point elsewhere
    # later.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
    if not private or found.st_uid != os.getuid():
        raise OSError(f"{folder} is not a folder that its owner alone can write to")
    return folder


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the compiler and the processor."""
    version = _run(compiler, "--version")
    parts = (_SOURCE.read_bytes(), version, " ".join(_FLAGS).encode(), _processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _processor() -> str:
    """What `-march=native` looks at: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    names = ("model name", "cpu family", "model", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in names}))


def _build(compiler: str, path: Path) -> None:
    """Compile into `path`, whole or not at all.

    Raises:
        subprocess.SubprocessError: the compiler failed.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        _run(compiler, *_FLAGS, "-o", str(built), str(_SOURCE))
        # In one step: processes that start together each build their own, and none loads half a
        # file.
        built.replace(path)


def _run(*command: str) -> bytes:
    """What the compiler writes on standard output."""
    done = subprocess.run(  # noqa: S603 - the system's compiler on our own source
        command, capture_output=True, check=True, timeout=_BUILD_SECONDS
    )
    return done.stdout
