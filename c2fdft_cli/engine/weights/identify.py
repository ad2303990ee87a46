"""Recognises, by their first bytes, files that were given as weights but are something else."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.files.failures import read_error

HEAD_BYTES = 1024
WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_TEXT_SUFFIXES = (".yaml", ".yml", ".json", ".csv", ".txt", ".log", ".md", ".py")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"

SAVE_AGAIN = "its owner can save the tensors alone: torch.save(model.state_dict(), 'weights.pth')"
CONVERT = "save it anew: torch.save(torch.load('old.pth', weights_only=True), 'weights.pth')"
GET_AGAIN = "download or copy it again"
OTHER = "give a .pt, .pth, .ckpt or .safetensors file"
IMAGE = f"{OTHER}, not an image"
UNPACK = "unpack it and give the weights in it"

_KINDS = (
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"BZh", "a bzip2 archive", UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"PK\x05\x06", "an empty zip archive", GET_AGAIN),
    (b"\x89HDF\r\n", "an HDF5 file", OTHER),
    (b"\x89PNG", "a PNG image", IMAGE),
    (b"\xff\xd8\xff", "a JPEG image", IMAGE),
    (b"\x93NUMPY", "a NumPy array", OTHER),
    (b"GGUF", "a GGUF file", OTHER),
    (b"%PDF", "a PDF document", OTHER),
)
"""Kinds of files that are not weights: their first bytes, what to call them, and a hint."""


class UnreadableError(CheckpointError):
    """The system does not read a file; what the file holds is unknown, and may be intact."""


def refuse_other_files(path: Path, head: bytes) -> None:
    """Raise CheckpointError if the first `HEAD_BYTES` bytes are those of another kind of file."""
    if not head:
        raise CheckpointError("the file is empty", where=path, hint=GET_AGAIN)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise CheckpointError(
            f"this is a Git LFS pointer, not the checkpoint{of} that it stands for",
            where=path,
            hint="run `git lfs pull` in its repository, or download the file from its web page",
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise not_a_checkpoint(
            path,
            "it is a web page (HTML), which a server sent instead of the file",
            "open the address in a browser and use the link of its download button",
        )
    if start.startswith(b"<?xml"):
        hint = "it may be an error message from a server: read it, then download the file again"
        raise not_a_checkpoint(path, "it is an XML document", hint)
    for begins, what, hint in _KINDS:
        if head.startswith(begins):
            raise not_a_checkpoint(path, f"it is {what}", hint)
    # The protobuf of a ModelProto begins with the format version and the name of the writer.
    if re.match(rb"\x08[\x01-\x1f]\x12[\x01-\x1f][A-Za-z]", head):
        hint = "give the checkpoint that it was made from; docs/convert.md explains how to run ONNX"
        raise not_a_checkpoint(path, "it is an ONNX file", hint)
    if head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        raise not_a_checkpoint(path, "it is a tar archive", UNPACK)


def unknown_file(path: Path, head: bytes) -> CheckpointError:
    """Make the error for a file whose kind cannot be recognised by its first bytes."""
    hint = OTHER if path.suffix.lower() in _TEXT_SUFFIXES else GET_AGAIN
    if re.fullmatch(rb"[\x20-\x7e\s]+", head[:60]):
        quoted = " ".join(head[:60].decode("ascii").split())
        return not_a_checkpoint(path, f"it is a text file that begins with {quoted!r}", hint)
    if not any(head):
        return not_a_checkpoint(path, "it begins with zeros: the download broke off", GET_AGAIN)
    return not_a_checkpoint(
        path, "the file is damaged, or is neither a torch nor a safetensors file", hint
    )


def other_archive(path: Path, names: list[str]) -> CheckpointError:
    """Make the error for a zip archive without the record that `torch.save` writes."""
    if any(name.endswith("/constants.pkl") for name in names):
        return not_a_checkpoint(
            path,
            "it is a TorchScript program",
            "its owner can save the tensors alone: "
            "torch.save(torch.jit.load('model.pt').state_dict(), 'weights.pth')",
        )
    inside = [name for name in names if name.endswith(WEIGHTS_SUFFIXES)]
    shown = ", ".join(f"{name:.60}" for name in (inside or names)[:3])
    more = ", ..." if len(inside or names) > 3 else ""
    hint = UNPACK if inside else OTHER
    return not_a_checkpoint(path, f"it is a zip archive of other files ({shown}{more})", hint)


def cut_short(path: Path) -> CheckpointError:
    """Make the error for a file that is shorter than its header states."""
    size = path.stat().st_size
    return not_a_checkpoint(
        path, f"it is truncated: its contents need more than its {size:,} bytes", GET_AGAIN
    )


def not_a_checkpoint(path: Path, why: str, hint: str | None = None) -> CheckpointError:
    """Make the error for a file that is not a checkpoint; `why` is a sentence."""
    return CheckpointError(f"this is not a checkpoint of c2fdft: {why}", where=path, hint=hint)


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """Make the error for a file that the system does not read."""
    known = read_error(error, path)
    return UnreadableError(known.what, where=path, hint=known.hint)
