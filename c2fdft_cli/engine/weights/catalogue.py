"""The weights that are installed with the program: files in one folder and a catalogue.

This module imports nothing heavy, so `c2fdft weights list` responds at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from c2fdft_cli.engine.weights.identify import unreadable
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.validation import STRICT, InvalidValuesError, NotBool, validate
from c2fdft_cli.vocabulary import PackagedTask

FORMAT_VERSION = 1
CATALOGUE = "catalogue.json"
MAX_FILE_BYTES = 12_000_000
"""The limit for one file of packaged weights; it keeps the installed program small."""

Real = Annotated[float, NotBool]
Count = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True)
class PublishedScore:
    """Mean scores on one set of images, before (`input_*`) and after restoring.

    protocol: a name in `metrics.protocols.PROTOCOLS`. PSNR is in dB, SSIM in [-1, 1].
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    set: str
    protocol: str
    images: Count
    input_psnr: Real
    input_ssim: Real
    psnr: Real
    ssim: Real


@dataclass(frozen=True)
class PackagedWeights:
    """The catalogue's entry for one file of packaged weights.

    file: the name of the file in the folder; `sha256` and `bytes` describe this file.
    network: the arguments of `core.network.DFT`.
    grid: the timesteps to sample at with these weights.
    trained_for: the hours and hardware of the training.
    seconds_per_megapixel: the time to restore a megapixel, on the machine that `timed_on` names.
    card: the path of the model card in the repository.
    formerly: earlier names of these weights.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")]
    task: PackagedTask
    file: str
    sha256: str
    bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES, strict=True)]
    parameters: Count
    network: dict[str, Any]
    grid: Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1)]
    trained_on: str
    schedule: str
    trained_for: str
    scores: list[PublishedScore]
    seconds_per_megapixel: Real
    timed_on: str
    licence: str
    good_for: str
    bad_at: str
    card: str
    formerly: list[str] = field(default_factory=list)

    @field_validator("file")
    @classmethod
    def _is_named_after_the_entry(cls, file: str, info: ValidationInfo) -> str:
        if "name" in info.data and file != f"{info.data['name']}.pt":
            raise ValueError(f"must be {info.data['name']}.pt")
        return file


def weights_folder() -> Path:
    """Return the folder of the packaged weights."""
    return Path(str(resources.files("c2fdft_cli") / "weights"))


def read_catalogue(folder: Path | None = None) -> dict[str, PackagedWeights]:
    """Return the entries by name, without opening any weights; {} if no weights are packaged.

    `folder` is None for the installed one.

    Raises:
        CheckpointError: the catalogue is damaged, or cannot be read.
    """
    path = (folder or weights_folder()) / CATALOGUE
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        return _parse(json.loads(text)) if text.strip() else {}
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def checked_file(entry: PackagedWeights) -> Path:
    """Return the file of packaged weights, after checking its size and SHA-256.

    Raises:
        CheckpointError: the file is missing, cannot be read, or does not match the catalogue.
    """
    path = weights_folder() / entry.file
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise _damaged(path, f"the file has {size} bytes, the catalogue says {entry.bytes}")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path, "the file is missing") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _damaged(path, "its SHA-256 is not that of the catalogue")
    return path


def is_packaged(path: Path) -> bool:
    """Whether a file is in the folder of the packaged weights, which no command may write to."""
    return path.resolve().parent == weights_folder().resolve()


def make_entry(name: str, values: Mapping[str, Any]) -> PackagedWeights:
    """Make an entry from plain JSON values; the message of a ValueError lists all problems."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a dictionary, got {type(values).__name__}")
    try:
        return validate(PackagedWeights, {**values, "name": name})
    except InvalidValuesError as error:
        raise ValueError(f"{name}: {error}") from error


def _parse(content: Any) -> dict[str, PackagedWeights]:
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"the catalogue must have format version {FORMAT_VERSION}")
    weights = content.get("weights")
    if not isinstance(weights, dict):
        raise ValueError("the catalogue has no list of weights")
    return {name: make_entry(name, values) for name, values in weights.items()}


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"this installation of c2fdft is damaged: {why}",
        where=path,
        hint="reinstall it: pip install --force-reinstall --no-deps c2fdft",
    )
