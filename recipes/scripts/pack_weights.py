"""Add weights to the folder that is installed with the program.

    python recipes/scripts/pack_weights.py CKPT --name NAME --facts FACTS.json --into FOLDER

docs/models/README.md describes the facts, and what else belongs to packaged weights.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from c2fdft_cli.cli.app import report
from c2fdft_cli.engine.weights.catalogue import (
    CATALOGUE,
    FORMAT_VERSION,
    MAX_FILE_BYTES,
    PackagedWeights,
    make_entry,
    read_catalogue,
    weights_folder,
)
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.engine.weights.tensors import load_tensors
from c2fdft_cli.errors import C2fdftError, CheckpointError, DataError, UsageError
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.files.paths import same_files
from c2fdft_cli.files.reading import read_text
from c2fdft_cli.files.writing import atomic_write_bytes, atomic_write_text
from c2fdft_cli.vocabulary import PACKAGED_TASKS
from c2fdft_cli.words import binary_size

DERIVED = ("name", "file", "sha256", "bytes", "parameters", "network", "grid")
"""The fields of `PackagedWeights` that come from the file; the maintainer states the others."""
log = logging.getLogger("pack_weights")


def add_entry(
    name: str,
    checkpoint: Path,
    facts: Path,
    folder: Path | None = None,
    *,
    overwrite: bool = False,
) -> PackagedWeights:
    """Add weights to the folder, and an entry for them to its catalogue.

    What names the training data is removed from `meta`, because it means nothing elsewhere.

    Args:
        name: the name that `--weights` will accept.
        checkpoint: a file written by `c2fdft convert --half bf16 --ema-only`.
        facts: a JSON file with the keys of `PackagedWeights` except `DERIVED`.
        folder: the folder; None for the installed one.
        overwrite: replace weights of this name.

    Raises:
        UsageError: facts are missing, unknown or not JSON, or the name is invalid or in use, or
            the checkpoint would be replaced.
        CheckpointError: the file is not a checkpoint, holds more than params_ema and meta, has no
            timesteps, or is too large.
    """
    target = folder or weights_folder()
    stated = _read_facts(facts)
    loaded, data = _packed(checkpoint)
    values = {**stated, **_derived(name, loaded, data)}
    try:
        entry = make_entry(name, values)
    except ValueError as error:
        raise UsageError(f"these weights cannot be packaged: {error}", where=facts) from error
    entries = read_catalogue(target)
    if name in entries and not overwrite:
        what = f"packaged weights {name!r} already exist"
        raise UsageError(what, where=target, hint="choose another --name, or use --overwrite")
    if same_files([target / entry.file], [checkpoint]):
        hint = "give a copy in another folder"
        raise UsageError("packaging would replace the checkpoint", where=checkpoint, hint=hint)
    ensure_folder(target)
    # The file is written first, so that the catalogue never names a file that does not exist.
    atomic_write_bytes(target / entry.file, data)
    _write_catalogue(target, {**entries, name: entry})
    return entry


def _write_catalogue(folder: Path, entries: Mapping[str, PackagedWeights]) -> None:
    """Write the catalogue of a folder, sorted by task (in the order of `PACKAGED_TASKS`)."""
    ordered = sorted(
        entries.values(), key=lambda entry: (PACKAGED_TASKS.index(entry.task), entry.name)
    )
    content = {
        "format_version": FORMAT_VERSION,
        "weights": {values.pop("name"): values for values in map(asdict, ordered)},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(folder / CATALOGUE, text + "\n")


def _packed(path: Path) -> tuple[Checkpoint, bytes]:
    """Return the checkpoint to package and the bytes of the file to ship."""
    content = load_tensors(path)
    if "meta" not in content or "params" in content or "params_ema" not in content:
        raise CheckpointError(
            "packaged weights must hold only params_ema and meta",
            where=path,
            hint="c2fdft convert --half bf16 --ema-only",
        )
    checkpoint = load_checkpoint(path)
    checkpoint.network()  # raises an error if the weights do not fit
    if checkpoint.meta.grid is None:
        raise CheckpointError(
            "the checkpoint holds no timesteps", where=path, hint="c2fdft sweep-steps"
        )
    recipe = checkpoint.meta.recipe
    if recipe is not None and isinstance(recipe.get("data"), dict):
        recipe = {**recipe, "data": {**recipe["data"], "shards": None, "streaks": None}}
    meta = replace(checkpoint.meta, data=None, data_train=None, data_val=None, recipe=recipe)
    file = io.BytesIO()
    torch.save({"params_ema": content["params_ema"], "meta": meta.to_json()}, file)
    size = file.tell()
    if size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"packaged weights must have at most {MAX_FILE_BYTES} bytes, got {size}",
            where=path,
            hint="c2fdft convert --half bf16 --ema-only, or a smaller network",
        )
    return checkpoint, file.getvalue()


def _derived(name: str, checkpoint: Checkpoint, data: bytes) -> dict[str, Any]:
    return {
        "file": f"{name}.pt",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "parameters": sum(tensor.numel() for tensor in checkpoint.ema.values()),
        "network": asdict(checkpoint.meta.network),
        "grid": checkpoint.meta.grid,
    }


def _read_facts(path: Path) -> dict[str, Any]:
    wanted = ", ".join(f.name for f in fields(PackagedWeights) if f.name not in DERIVED)
    hint = f"JSON with {wanted}"
    try:
        facts = json.loads(read_text(path))
    except (DataError, ValueError, RecursionError) as error:
        reason = error.what if isinstance(error, DataError) else error
        raise UsageError(f"the facts cannot be read: {reason}", where=path, hint=hint) from error
    if not isinstance(facts, dict):
        raise UsageError("the facts must be a JSON object", where=path, hint=hint)
    if odd := sorted(set(facts) & set(DERIVED)):
        raise UsageError(
            f"the facts cannot hold keys that come from the file: {', '.join(odd)}", where=path
        )
    return facts


def main() -> None:
    """Package the weights that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "checkpoint", type=Path, help="a file written by `c2fdft convert --half bf16 --ema-only`"
    )
    parser.add_argument("--name", required=True, help="the name that --weights will accept")
    parser.add_argument(
        "--facts",
        type=Path,
        required=True,
        help="JSON: the entries of the catalogue that do not come from the checkpoint",
    )
    parser.add_argument(
        "--into", type=Path, help="folder of the catalogue (default: the installed one)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace weights of this name")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    entry = add_entry(
        given.name, given.checkpoint, given.facts, given.into, overwrite=given.overwrite
    )
    log.info("packaged: %s (%s)", entry.name, binary_size(entry.bytes))


if __name__ == "__main__":
    try:
        main()
    except C2fdftError as error:
        sys.exit(report(error))
