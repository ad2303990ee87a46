"""What a file of weights must be before anything in it is used."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from c2fdft_cli.errors import CheckpointError

MAX_FILE_BYTES = 8 << 30


def not_one(path: Path, why: str) -> CheckpointError:
    """The error about a file that is no checkpoint."""
    return CheckpointError("not a checkpoint of this program", where=path, hint=why)


def refuse_missing(path: Path) -> None:
    """CheckpointError unless the path is a file of a size that can be."""
    if path.is_dir():
        inside = next((p for p in (path / "fine.pt", path / "coarse.pt") if p.is_file()), None)
        hint = "give a .pt or .pth file" if inside is None else f"give {inside}"
        raise CheckpointError("a folder, not a checkpoint", where=path, hint=hint)
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=path, hint="give a .pt or .pth file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"over {MAX_FILE_BYTES >> 30} GiB", where=path)


def refuse_bomb(path: Path) -> None:
    """Refuse an archive that unfolds to far more than it is."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(item.file_size for item in archive.infolist())
    except zipfile.BadZipFile as error:
        raise not_one(path, "a damaged archive") from error
    if unfolded > _most_unfolded(path):
        raise not_one(path, "a compressed archive")


def full_precision(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state in float32; CheckpointError for tensors that only claim to be as large."""
    for name, tensor in state.items():
        strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not strided or not tensor.is_floating_point():
            raise not_one(path, f"{name} holds no plain floating-point numbers")
    # an expanded or shared tensor of a few bytes would unfold to any size
    if sum(t.numel() * t.element_size() for t in state.values()) > _most_unfolded(path):
        raise not_one(path, "its tensors are larger than the file")
    return {name: tensor.float() for name, tensor in state.items()}


def _most_unfolded(path: Path) -> int:
    return 2 * path.stat().st_size + (1 << 20)
