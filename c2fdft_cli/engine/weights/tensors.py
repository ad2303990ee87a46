"""Files of tensors, torch's own and safetensors: written whole or not at all, read as untrusted."""

from __future__ import annotations

import importlib
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from c2fdft_cli.errors import CheckpointError, ResourceError
from c2fdft_cli.files import atomic_path
from c2fdft_cli.vocabulary import WeightSet

MAX_FILE_BYTES = 8 << 30
SUFFIX = ".safetensors"
META_KEY = "c2fdft"
WEIGHTS_KEY = "weights"
MAX_HEADER_BYTES = 32 << 20


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
    """`torch.load(weights_only=True)` of an untrusted file; CheckpointError unless it is a dict."""
    refuse_missing(path)
    _refuse_bomb(path)
    try:
        with warnings.catch_warnings():
            # torch warns about old pickles; this loader is the safe one
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {error}", where=path) from error
    except Exception as error:  # arbitrary bytes make the unpickler fail in every way there is
        raise not_a_checkpoint(
            path, "the file is damaged, or torch.save did not write it"
        ) from error
    if not isinstance(content, dict):
        raise not_a_checkpoint(path, f"the file holds a {type(content).__name__}")
    return content


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
    """Whether a file is safetensors, by its suffix or, under another name, its first bytes."""
    if path.suffix.lower() == SUFFIX:
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and _header_bytes(head) < path.stat().st_size


def save_safetensors(
    path: Path, state: Mapping[str, Tensor], meta: str | None, weights: WeightSet = "ema"
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
    """The content of a checkpoint: `params` or `params_ema`, and `meta`; the file is untrusted.

    Raises:
        ResourceError: safetensors is not installed.
        CheckpointError: damaged, or not safetensors.
    """
    require_export(["safetensors"], f"reading {SUFFIX}")
    from safetensors import safe_open

    try:
        with path.open("rb") as file:
            header = _header_bytes(file.read(8))
        if header > MAX_HEADER_BYTES:
            raise not_a_checkpoint(path, f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB")
        with safe_open(str(path), framework="pt", device="cpu") as content:
            about = content.metadata() or {}
            # cloned, because the file is mapped: writing to it would change the weights
            state = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"the file cannot be read: {error}", where=path) from error
    except CheckpointError:
        raise
    except Exception as error:  # the library's own, and whatever else arbitrary bytes provoke
        raise not_a_checkpoint(path, "the file is damaged, or not safetensors") from error
    key = "params" if about.get(WEIGHTS_KEY) == "raw" else "params_ema"
    return {key: state, **({"meta": about[META_KEY]} if META_KEY in about else {})}


def _header_bytes(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def not_a_checkpoint(path: Path, why: str) -> CheckpointError:
    """The error about a file that is no checkpoint; `why` is a sentence."""
    return CheckpointError(f"this is not a checkpoint of c2fdft: {why}", where=path)


def refuse_missing(path: Path) -> None:
    """CheckpointError unless the path is a file of at most `MAX_FILE_BYTES`."""
    if path.is_dir():
        inside = next((p for p in (path / "fine.pt", path / "coarse.pt") if p.is_file()), None)
        hint = "give a .pt or .pth file" if inside is None else f"give {inside}"
        raise CheckpointError("this is a folder, not a checkpoint", where=path, hint=hint)
    if not path.is_file():
        raise CheckpointError(
            "there is no such checkpoint", where=path, hint="give a .pt or .pth file"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"the file is larger than {MAX_FILE_BYTES >> 30} GiB", where=path)


def _refuse_bomb(path: Path) -> None:
    """CheckpointError for an archive that unpacks to far more than its own size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except zipfile.BadZipFile as error:
        raise not_a_checkpoint(path, "the archive is damaged") from error
    if unpacked > _max_unpacked_bytes(path):
        raise not_a_checkpoint(path, "the archive is compressed")


def full_precision(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state in float32; CheckpointError for tensors that only claim to be as large."""
    for name, tensor in state.items():
        strided = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not strided or not tensor.is_floating_point():
            raise not_a_checkpoint(path, f"{name} does not hold plain floating-point numbers")
    # an expanded or shared tensor of a few bytes would unpack to any size
    if sum(t.numel() * t.element_size() for t in state.values()) > _max_unpacked_bytes(path):
        raise not_a_checkpoint(path, "the tensors are larger than the file")
    return {name: tensor.float() for name, tensor in state.items()}


def _max_unpacked_bytes(path: Path) -> int:
    return 2 * path.stat().st_size + (1 << 20)
