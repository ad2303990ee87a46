"""Writes torch and safetensors files atomically, and reads the dictionaries of `state.pt`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2fdft_cli.engine.weights.identify import SAVE_AGAIN, not_a_checkpoint
from c2fdft_cli.engine.weights.pickles import Opaque
from c2fdft_cli.engine.weights.stored import open_stored, tensors_in
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.files.writing import atomic_path
from c2fdft_cli.vocabulary import WeightSet

SUFFIX = ".safetensors"
META_KEY = "c2fdft"
WEIGHTS_KEY = "weights"
OUR_KEYS = frozenset({"format", WEIGHTS_KEY, META_KEY})
"""The keys of the metadata that `save_safetensors` writes."""


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write a dictionary with `torch.save`, atomically.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    # To an open file, not to a path: torch writes to a path in C++, whose error does not report
    # that the disk is full.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            # torch reports that its archive is too short if the write itself has failed.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_tensors(path: Path) -> dict[str, Any]:
    """Read the whole dictionary that `save_tensors` wrote; the file is untrusted.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, or holds Python objects.
    """
    with open_stored(path) as file:
        if not isinstance(file.content, dict):
            raise not_a_checkpoint(path, f"the file holds a {type(file.content).__name__}")
        opaque = {item.name for item in tensors_in(file.content) if isinstance(item, Opaque)}
        if opaque:
            shown = ", ".join(f"{name:.80}" for name in sorted(opaque)[:3])
            raise not_a_checkpoint(path, f"it contains Python objects ({shown})", SAVE_AGAIN)
        content: dict[str, Any] = file.load(file.content)
        return content


def require_export(modules: Iterable[str], purpose: str) -> None:
    """Raise ResourceError, which names the extra, unless all of the modules can be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ResourceError(
                f"{purpose} needs {module}", hint="pip install 'c2fdft[export]'"
            ) from error


def save_safetensors(
    path: Path, state: Mapping[str, Tensor], meta: str, weights: WeightSet
) -> None:
    """Write tensors that share no memory to a safetensors file, atomically.

    `meta` is the metadata as JSON text, as in a checkpoint; `weights` states which set of weights
    the tensors are.

    Raises:
        ResourceError: safetensors is not installed, or the path cannot be written.
    """
    require_export(["safetensors.torch"], f"writing {SUFFIX}")
    from safetensors.torch import save

    about = {"format": "pt", WEIGHTS_KEY: weights, META_KEY: meta}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(state), metadata=about))
