"""Which of a file's dictionaries are the weights? Files of ours, official ones, and others'.

Others wrap the network (DDP, compile, FSDP), hold it in a module (Lightning), or save the weights
beside optimiser and options. All of them leave one name: that of the network's first weight,
behind some prefix, in some dictionary of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from c2fdft_cli.engine.weights.identify import SAVE_AGAIN, not_a_checkpoint
from c2fdft_cli.engine.weights.pickles import Opaque, StoredTensor
from c2fdft_cli.engine.weights.stored import METADATA, StoredFile, tensors_in
from c2fdft_cli.engine.weights.tensors import META_KEY, WEIGHTS_KEY
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.vocabulary import WeightSet

FIRST_WEIGHT = "patch_embed.proj.weight"
MAX_DEPTH = 4
MAX_SETS = 16
MAX_NAME = 200
"""Longer names are no weights', and comparing many of them would take long."""
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
Described = dict[str, StoredTensor]


@dataclass(frozen=True)
class _Set:
    """One set of weights: where in the file, and its tensors by name without that prefix."""

    place: str
    state: dict[str, StoredTensor | Opaque]

    def is_ema(self) -> bool:
        """Whether its place says that it is an average over the training."""
        # as a word: "net_g_ema." is one, "schema." is none
        return "ema" in re.split(r"[^a-z]+", self.place.lower())


def plain_name(name: str) -> str:
    """A weight's name without what DDP, compile, FSDP and checkpointing put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def weights_in(file: StoredFile, path: Path) -> tuple[dict[WeightSet, Described], object]:
    """The weights of a file, not read yet, and its metadata.

    Returns:
        One or two sets, the raw one first; and what stands where our files have their metadata.

    Raises:
        CheckpointError: it has none, several that cannot be told apart, or tensors that are not
            plain floating-point numbers.
    """
    content = file.content
    if isinstance(content, Opaque):
        raise not_a_checkpoint(
            path, f"it is a whole Python object ({content.name:.80}), not weights", SAVE_AGAIN
        )
    if not isinstance(content, dict):
        raise not_a_checkpoint(path, f"the file holds a {type(content).__name__}")
    # a dictionary is the metadata of another program, such as MMCV
    meta = None if isinstance(content.get("meta"), dict) else content.get("meta")
    if file.is_safetensors:
        content, meta = _as_checkpoint(content)
    # each set that is found compares all names of its dictionary with its prefix
    found = list(islice(_sets(content), MAX_SETS))
    if not found:
        raise _none_found(content, path)
    by_kind: dict[WeightSet, list[_Set]] = {
        "raw": [one for one in found if not one.is_ema()],
        "ema": [one for one in found if one.is_ema()],
    }
    return {kind: _only(sets, path) for kind, sets in by_kind.items() if sets}, meta


def _as_checkpoint(content: Mapping[str, Any]) -> tuple[dict[str, Any], object]:
    """A safetensors file's content, under the name of its set if it has one; our metadata."""
    about = content.get(METADATA)
    about = about if isinstance(about, dict) else {}
    state = {name: value for name, value in content.items() if name != METADATA}
    if about.get(WEIGHTS_KEY) == "raw":
        state = {"params": state}
    elif about.get(WEIGHTS_KEY) == "ema":
        state = {"params_ema": state}
    return state, about.get(META_KEY)


def _sets(content: dict[Any, Any]) -> Iterator[_Set]:
    """Every set of weights in nested dictionaries, those further up first."""
    level: list[tuple[str, dict[Any, Any]]] = [("", content)]
    seen: set[int] = set()
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, dict[Any, Any]]] = []
        for place, node in level:
            # a pickle may hold one dictionary in many places, or in itself
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield from _sets_of(place, node)
            below += [
                (f"{place}{key}.", value)
                for key, value in node.items()
                if _is_name(key) and isinstance(value, dict)
            ]
        level = below


def _sets_of(place: str, node: dict[Any, Any]) -> Iterator[_Set]:
    tensors = {
        key: value
        for key, value in node.items()
        if _is_name(key) and isinstance(value, StoredTensor | Opaque)
    }
    for name in tensors:
        prefix = name.removesuffix(FIRST_WEIGHT)
        # "other_patch_embed.proj.weight" ends alike and is another weight
        if prefix == name or (prefix and not prefix.endswith(".")):
            continue
        state = {
            plain_name(key.removeprefix(prefix)): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        yield _Set(place + prefix, state)


def _is_name(key: object) -> bool:
    return isinstance(key, str) and len(key) <= MAX_NAME


def _only(sets: list[_Set], path: Path) -> Described:
    """The tensors of the one set of these, or of the one that is there several times."""
    if any(found.state != sets[0].state for found in sets[1:]):
        raise CheckpointError(
            "the file holds several sets of weights, and nothing says which one to use",
            where=path,
            hint="save the one that you mean in a file of its own: "
            "torch.save(content['NAME'], 'weights.pth')",
            details=[found.place.rstrip(".") or "(at the top)" for found in sets[:10]],
        )
    described = {}
    for name, tensor in sets[0].state.items():
        if not isinstance(tensor, StoredTensor) or not tensor.dtype.is_floating_point:
            raise not_a_checkpoint(path, f"{name:.80} does not hold plain floating-point numbers")
        described[name] = tensor
    return described


def _none_found(content: dict[Any, Any], path: Path) -> CheckpointError:
    """The error about a file of something else."""
    items = list(tensors_in(content))
    objects = sorted({item.name for item in items if isinstance(item, Opaque)})
    if any(isinstance(item, StoredTensor) for item in items):
        return not_a_checkpoint(
            path, f"these are not the weights of a DFT (none of them is named {FIRST_WEIGHT})"
        )
    if objects:
        shown = ", ".join(f"{name:.80}" for name in objects[:3])
        return not_a_checkpoint(
            path, f"it carries Python objects ({shown}) and no tensors", SAVE_AGAIN
        )
    return not_a_checkpoint(path, "it has neither params nor params_ema")
