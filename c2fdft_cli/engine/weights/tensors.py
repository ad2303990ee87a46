"""Files of tensors as torch writes them: out whole or not at all, in without running anything."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from c2fdft_cli.engine.weights.untrusted import not_one, refuse_bomb, refuse_missing
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.files import atomic_path


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save`, whole or not at all; ResourceError when the disk is full or not writable."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:
            # torch finds its archive short when the write itself has failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_tensors(path: Path) -> dict[str, Any]:
    """`torch.load(weights_only=True)` of a file that nobody vouches for; else CheckpointError."""
    refuse_missing(path)
    refuse_bomb(path)
    try:
        with warnings.catch_warnings():
            # of torch, about old pickles: the loader is the safe one
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError("cannot read", where=path, hint=str(error)) from error
    except Exception as error:  # arbitrary bytes make the unpickler fail in every way there is
        raise not_one(path, "damaged, or nothing that torch.save wrote safely") from error
    if not isinstance(content, dict):
        raise not_one(path, f"it holds a {type(content).__name__}")
    return content
