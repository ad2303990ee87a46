"""Weights as `.safetensors`: one set of tensors, and this program's meta in the file's header."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from c2fdft_cli.engine.weights.untrusted import not_one
from c2fdft_cli.errors import CheckpointError, ResourceError
from c2fdft_cli.files import atomic_path

SUFFIX = ".safetensors"
META_KEY = "c2fdft"
WEIGHTS_KEY = "weights"
MAX_HEADER_BYTES = 32 << 20


def require_export(modules: Iterable[str], purpose: str) -> None:
    """ResourceError naming the extra, unless every one of the modules can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ResourceError(
                f"{purpose} needs {module}", hint="pip install 'c2fdft[export]'"
            ) from error


def is_safetensors(path: Path) -> bool:
    """Whether a file is of this form, by its suffix or, under another name, by its first bytes."""
    if path.suffix.lower() == SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and _header_bytes(head) < path.stat().st_size


def save_safetensors(
    path: Path, state: Mapping[str, Tensor], meta: str | None, weights: str = "ema"
) -> None:
    """Write tensors atomically.

    Args:
        path: where to.
        state: tensors that share no memory.
        meta: JSON text, as in a checkpoint, or None.
        weights: "ema" or "raw": what the tensors are.

    Raises:
        ResourceError: safetensors is not installed, or the path cannot be written.
    """
    require_export(["safetensors.torch"], f"writing {SUFFIX}")
    from safetensors.torch import save

    about = {"format": "pt", WEIGHTS_KEY: weights}
    if meta is not None:
        about[META_KEY] = meta
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(state), metadata=about))


def load_safetensors(path: Path) -> dict[str, Any]:
    """The content as a checkpoint's: `params` or `params_ema`, and `meta`; nothing is trusted.

    Raises:
        ResourceError: safetensors is not installed.
        CheckpointError: damaged, or not of this form.
    """
    require_export(["safetensors"], f"reading {SUFFIX}")
    from safetensors import safe_open

    try:
        with path.open("rb") as file:
            header = _header_bytes(file.read(8))
        if header > MAX_HEADER_BYTES:
            raise not_one(path, f"its header is over {MAX_HEADER_BYTES >> 20} MiB")
        with safe_open(str(path), framework="pt", device="cpu") as content:
            about = content.metadata() or {}
            # cloned, because the file is mapped: writing to it would change the weights
            state = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError("cannot read", where=path, hint=str(error)) from error
    except CheckpointError:
        raise
    except Exception as error:  # the library's own, and whatever else arbitrary bytes provoke
        raise not_one(path, "damaged, or not safetensors") from error
    key = "params" if about.get(WEIGHTS_KEY) == "raw" else "params_ema"
    return {key: state, **({"meta": about[META_KEY]} if META_KEY in about else {})}


def _header_bytes(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")
