"""The weights that are installed with the program: files in one folder, and what is known of them.

Nothing heavy is imported here, so `c2fdft weights list` answers at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from c2fdft_cli.errors import CheckpointError

FORMAT_VERSION = 1
CATALOGUE = "catalogue.json"
TASKS = ("derain", "denoise", "deblur")
MAX_FILE_BYTES = 12_000_000
MAX_CATALOGUE_BYTES = 1_000_000
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
Filled = TypeVar("Filled")


@dataclass(frozen=True)
class Score:
    """What the weights reach on one set: means over its images, the untouched inputs beside.

    protocol: of `core.metrics.PROTOCOLS`; PSNR in dB, SSIM within -1 to 1.
    """

    set: str
    protocol: str
    images: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Entry:
    """One set of packaged weights.

    file: its name in the folder; `sha256` and `bytes` are of this file.
    network: the arguments of `core.dft.DFT`.
    grid: the sampler's times that go with the weights; its length is the number of calls.
    seconds_per_megapixel: of restoring, on the machine that `timed_on` names.
    card: the model card's path in the repository.
    """

    name: str
    task: str
    file: str
    sha256: str
    bytes: int
    parameters: int
    network: dict[str, Any]
    grid: list[int]
    trained_on: str
    schedule: str
    scores: list[Score]
    seconds_per_megapixel: float
    timed_on: str
    licence: str
    good_for: str
    bad_at: str
    card: str


def weights_folder() -> Path:
    """The folder of the packaged weights."""
    return Path(str(resources.files("c2fdft_cli") / "weights"))


def read_catalogue(folder: Path | None = None) -> dict[str, Entry]:
    """What the catalogue says, by name; {} where no weights are packaged. No file is opened.

    Args:
        folder: with `catalogue.json`; None for the installed one.

    Raises:
        CheckpointError: a catalogue that is damaged.
    """
    path = (folder or weights_folder()) / CATALOGUE
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_CATALOGUE_BYTES:
            raise ValueError(f"over {MAX_CATALOGUE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        return _parse(json.loads(text)) if text.strip() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def write_catalogue(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write the catalogue of a folder, the tasks in the order of `TASKS`."""
    from c2fdft_cli.files import atomic_write_text

    ordered = sorted(entries.values(), key=lambda entry: (TASKS.index(entry.task), entry.name))
    content = {
        "format_version": FORMAT_VERSION,
        "weights": {entry.name: _without_name(entry) for entry in ordered},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(folder / CATALOGUE, text + "\n")


def checked_file(entry: Entry, folder: Path | None = None) -> Path:
    """The file of packaged weights, found to be the one that the catalogue means.

    Raises:
        CheckpointError: it is missing, or its size or SHA-256 is another.
    """
    path = (folder or weights_folder()) / entry.file
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    size = path.stat().st_size
    if size != entry.bytes:
        raise _damaged(path, f"{size} bytes, the catalogue says {entry.bytes}")
    if sha256_of(path) != entry.sha256:
        raise _damaged(path, "its SHA-256 is not the catalogue's")
    return path


def is_packaged(path: Path) -> bool:
    """Whether a file lies in the folder of the packaged weights, which nothing may write to."""
    return path.resolve().parent == weights_folder().resolve()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def make_entry(name: str, values: Mapping[str, Any]) -> Entry:
    """An entry out of plain values, as JSON holds them; ValueError says what does not fit."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{name}: not an object")
    plain = {**values, "name": name}
    scores = plain.get("scores")
    if isinstance(scores, list):
        plain["scores"] = [_filled(Score, score, f"{name}: scores") for score in scores]
    entry = _filled(Entry, plain, name)
    if not _NAME.fullmatch(name) or entry.file != f"{name}.pt":
        raise ValueError(f"{name}: its file is {entry.file!r}, not a name with .pt behind it")
    if entry.task not in TASKS:
        raise ValueError(f"{name}: task is {entry.task!r}, not one of {', '.join(TASKS)}")
    if not entry.grid or not all(isinstance(t, int) for t in entry.grid):
        raise ValueError(f"{name}: grid is {entry.grid}")
    if not 0 < entry.bytes <= MAX_FILE_BYTES:
        raise ValueError(f"{name}: {entry.bytes} bytes, at most {MAX_FILE_BYTES} are packaged")
    return entry


def _parse(content: Any) -> dict[str, Entry]:
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"not a catalogue of format version {FORMAT_VERSION}")
    weights = content.get("weights")
    if not isinstance(weights, dict):
        raise ValueError("it lists no weights")
    return {name: make_entry(name, values) for name, values in weights.items()}


def _filled(cls: type[Filled], values: Any, where: str) -> Filled:
    """A dataclass out of a mapping with exactly its keys, each of its type."""
    types = get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: not an object")
    if odd := sorted(map(str, values.keys() ^ types.keys())):
        raise ValueError(f"{where}: missing or unknown: {', '.join(odd)}")
    for key, kind in types.items():
        value, wanted = values[key], get_origin(kind) or kind
        accepted = (int, float) if wanted is float else wanted
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise ValueError(f"{where}: {key} is {value!r}")
        if wanted is float and not math.isfinite(value):
            raise ValueError(f"{where}: {key} is {value!r}")
    return cls(**values)


def _without_name(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    return {field.name: values[field.name] for field in fields(entry) if field.name != "name"}


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "this installation of c2fdft is damaged",
        where=path,
        hint=f"{why}; reinstall it: pip install --force-reinstall --no-deps c2fdft",
    )
