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
class Weights:
    """The weights in a file, not read yet; the same dictionary twice where it holds one set.

    meta: what stands where our files have their metadata, or None.
    sets: which of the two the file holds.
    """

    raw: Described
    ema: Described
    meta: object
    sets: tuple[WeightSet, ...]


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


def weights_in(file: StoredFile, path: Path) -> Weights:
    """The weights of a file.

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
    sets = list(islice(_sets(content), MAX_SETS))
    if not sets:
        raise _none_found(content, path)
    ema = _only([found for found in sets if found.is_ema()], path)
    raw = _only([found for found in sets if not found.is_ema()], path)
    described = {id(s): _plain_tensors(s, path) for s in (raw, ema) if s is not None}
    first, second = described.get(id(raw)), described.get(id(ema))
    held: dict[WeightSet, Described | None] = {"raw": first, "ema": second}
    # one dictionary, not two equal ones, where there is one set: `load_checkpoint` asks with `is`
    return Weights(
        raw=first or second or {},
        ema=second or first or {},
        meta=meta,
        sets=tuple(name for name, one in held.items() if one is not None),
    )


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
    names = [key for key in node if _is_name(key)]
    for name in names:
        prefix = name.removesuffix(FIRST_WEIGHT)
        # "other_patch_embed.proj.weight" ends alike and is another weight
        if prefix == name or (prefix and not prefix.endswith(".")):
            continue
        state = {
            plain_name(key.removeprefix(prefix)): node[key]
            for key in names
            if key.startswith(prefix) and isinstance(node[key], StoredTensor | Opaque)
        }
        yield _Set(place + prefix, state)


def _is_name(key: object) -> bool:
    return isinstance(key, str) and len(key) <= MAX_NAME


def _only(sets: list[_Set], path: Path) -> _Set | None:
    """The one set of these, the one that the same tensors are in twice, or None."""
    if not sets:
        return None
    if any(found.state != sets[0].state for found in sets[1:]):
        raise CheckpointError(
            "the file holds several sets of weights, and nothing says which one to use",
            where=path,
            hint="save the one that you mean in a file of its own: "
            "torch.save(content['NAME'], 'weights.pth')",
            details=[found.place.rstrip(".") or "(at the top)" for found in sets[:10]],
        )
    return sets[0]


def _plain_tensors(found: _Set, path: Path) -> Described:
    described = {}
    for name, tensor in found.state.items():
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
