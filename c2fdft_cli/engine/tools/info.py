"""Describes the content of a path: a checkpoint, shards, or a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from c2fdft_cli.data.shards.format import SPLITS
from c2fdft_cli.data.shards.index import read_index
from c2fdft_cli.data.shards.reader import ShardSet
from c2fdft_cli.engine.train.folder import RunFolder
from c2fdft_cli.engine.train.state import load_state
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.folders import is_hidden
from c2fdft_cli.files.reading import require_existing
from c2fdft_cli.words import for_shell

_READ = "a checkpoint, shard folder or run folder"
"""What `describe` reads, for messages."""
_TEXTS = {".yaml": "a recipe", ".yml": "a recipe", ".json": "a JSON document", ".csv": "a table"}
"""Kinds of files that the program reads or writes and `describe` does not read, by suffix."""


def describe(path: Path) -> dict[str, Any]:
    """Return facts about a path, as plain values.

    Raises:
        DataError: the path does not exist, is a folder without shards or a run, or is a file of
            another kind that the program uses.
        CheckpointError: the file is not a checkpoint.
    """
    if path.is_file() and path.suffix.lower() == ".h5":
        return _shard(path)
    if path.is_file():
        _refuse_text(path)
        return _run(path.parent) if path.name == "state.pt" else _checkpoint(path)
    if (path / "state.pt").is_file() or RunFolder(path).has_metrics():
        return _run(path)
    if any(any(path.glob(f"{split}-*.h5")) for split in SPLITS):
        return _shards(path)
    require_existing(path)
    raise DataError(f"not {_READ}", where=path)


def _refuse_text(path: Path) -> None:
    """Raise DataError for a file that has the suffix of a recipe, a JSON document or a table."""
    kind = _TEXTS.get(path.suffix.lower())
    if kind is None:
        return
    hint = "give the folder of the run or of the shards, or a .pt file"
    if kind == "a recipe":
        hint = for_shell("c2fdft", "recipes", "show", str(path))
    raise DataError(f"this looks like {kind}, not {_READ}", where=path, hint=hint)


def _checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    make_network(meta.network, checkpoint.ema, path)  # raises if the weights do not fit
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "stage": meta.stage,
        "step": meta.step,
        "network": asdict(meta.network),
        "parameters": sum(t.numel() for t in checkpoint.ema.values()),
        "tensors": len(checkpoint.ema),
        "diffusion": asdict(meta.diffusion),
        "grid": checkpoint.timesteps(),  # those in use, also if the file holds none
        "grid_from": None if meta.grid is None else meta.grid_from,
        "data": meta.data,
        "data_train": meta.data_train,
        "data_val": meta.data_val,
        "metrics": meta.metrics,
        "versions": meta.versions,
    }
    if meta.stage == "released":  # then most of it says nothing, unless a sweep has added it
        facts = {key: value for key, value in facts.items() if value}
    return facts


def _shard(path: Path) -> dict[str, Any]:
    """Describe the set that a shard belongs to, or the shard alone if it has an unusual name."""
    index = read_index(path)
    split = index.header.split
    if path.match(f"{split}-*.h5"):
        return _shards(path.parent)
    return {"kind": "shards", **_split(ShardSet([index]), split)}


def _shards(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": "shards"}
    for split in SPLITS:
        if any(path.glob(f"{split}-*.h5")):
            facts |= _split(ShardSet.open(path, split), split)
    return facts


def _split(shards: ShardSet, split: str) -> dict[str, Any]:
    areas = sorted(shards.sizes, key=lambda size: size[0] * size[1])
    return {
        split: {
            "images": len(shards),
            "pairs": shards.has_lq,
            "shards": len(shards.paths),
            "smallest": list(areas[0]),
            "largest": list(areas[-1]),
            "fingerprint": shards.fingerprint,
        },
        "layout": shards.header.layout,
        "source": shards.header.source,
    }


def _run(path: Path) -> dict[str, Any]:
    run = RunFolder(path)
    facts: dict[str, Any] = {"kind": "run"}
    if run.state.is_file():
        state = load_state(run.state)
        meta = state.meta
        facts |= {"stage": meta.stage, "recipe": meta.recipe_name, "step": state.step}
        facts |= {"data": meta.data, "grid": meta.grid, "best_psnr": state.best_psnr}
        facts |= {"metrics": meta.metrics}
    states = (run.state, run.previous_state)
    found = [file for folder in (run.checkpoints, path) for file in folder.glob("*.pt")]
    facts["checkpoints"] = sorted(
        file.name for file in found if file not in states and not is_hidden(file.name)
    )
    rows = run.read_metrics()
    if rows:
        facts["last_row"] = {key: value for key, value in rows[-1].items() if value}
    return facts
