"""Finds the weights in the nested dictionaries of a file, whichever program wrote it.

Other programs wrap the network (DDP, compile, FSDP), hold it in a module (Lightning), or save the
weights together with optimiser and options. In each of these files some dictionary contains the
name of the network's first weight, possibly with a prefix.
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
"""Longer names are ignored: no weight has one, and comparing many of them would take long."""
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
PROFILED = frozenset({"total_ops", "total_params"})
"""The last parts of the names under which thop, a profiler, stores its counts in a network."""
Described = dict[str, StoredTensor]


@dataclass(frozen=True)
class _Set:
    """A set of weights: its place in the file, and its tensors by name without the prefix.

    keys: the keys of the dictionaries that lead to the one that holds it.
    prefix: what the names of its tensors start with in that dictionary.
    """

    keys: tuple[str, ...]
    prefix: str
    state: dict[str, StoredTensor | Opaque]

    def place(self) -> str:
        """Return the keys and the prefix in one, such as "ema.online_model"; "" at the top."""
        return ".".join((*self.keys, self.prefix)).rstrip(".")

    def is_ema(self) -> bool:
        """Whether its place in the file marks it as an average over the training."""
        # "ema" must be a separate word: as in "net_g_ema." and "netEMA.", not as in "schema.".
        # The last word decides: "ema.online_model." is the network whose average "ema" is.
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", self.place())
        kinds = [word.lower() for word in words if word.lower() in ("ema", "online")]
        return kinds[-1:] == ["ema"]

    def code(self) -> str:
        """Return Python code for the dictionary of its tensors in the file's `content`."""
        node = "content" + "".join(f"[{key!r}]" for key in self.keys)
        if not self.prefix:
            return node
        return f"{{k: v for k, v in {node}.items() if k.startswith({self.prefix!r})}}"


def plain_name(name: str) -> str:
    """Remove the parts of a weight's name that DDP, compile, FSDP and checkpointing insert."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def weights_in(file: StoredFile) -> tuple[dict[WeightSet, Described], object]:
    """Find the weights of a file, without reading them, and its metadata.

    Returns:
        One or two sets of weights, the raw one first; and the unchecked value of the entry in which
        this program stores its metadata.

    Raises:
        CheckpointError: the file has no weights, several sets that cannot be told apart, or tensors
            that are not plain floating-point numbers.
    """
    content, path = file.content, file.path
    if isinstance(content, Opaque):
        raise not_a_checkpoint(
            path, f"it is a whole Python object ({content.name:.80}), not weights", SAVE_AGAIN
        )
    if not isinstance(content, dict):
        raise not_a_checkpoint(path, f"the file holds a {type(content).__name__}")
    # If `meta` is a dictionary, another program such as MMCV wrote it.
    meta = None if isinstance(content.get("meta"), dict) else content.get("meta")
    if file.is_safetensors:
        content, meta = _as_checkpoint(content)
    # Limited because for each set all names of its dictionary are compared with its prefix.
    found = list(islice(_sets(content), MAX_SETS))
    if not found:
        raise _none_found(content, path)
    by_kind: dict[WeightSet, list[_Set]] = {
        "raw": [one for one in found if not one.is_ema()],
        "ema": [one for one in found if one.is_ema()],
    }
    return {kind: _only(sets, path) for kind, sets in by_kind.items() if sets}, meta


def _as_checkpoint(content: Mapping[str, Any]) -> tuple[dict[str, Any], object]:
    """Return a safetensors file's content in the structure of a checkpoint, and its metadata.

    If the file's metadata name the set of weights ("raw" or "ema"), the tensors are put under the
    key of that set.
    """
    about = content.get(METADATA)
    about = about if isinstance(about, dict) else {}
    state = {name: value for name, value in content.items() if name != METADATA}
    if about.get(WEIGHTS_KEY) == "raw":
        state = {"params": state}
    elif about.get(WEIGHTS_KEY) == "ema":
        state = {"params_ema": state}
    return state, about.get(META_KEY)


def _sets(content: dict[Any, Any]) -> Iterator[_Set]:
    """Yield every set of weights in nested dictionaries, those of outer levels first."""
    level: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), content)]
    seen: set[int] = set()
    for _ in range(MAX_DEPTH):
        below: list[tuple[tuple[str, ...], dict[Any, Any]]] = []
        for keys, node in level:
            # A pickle may contain one dictionary in many places, or inside itself.
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield from _sets_of(keys, node)
            below += [
                ((*keys, key), value)
                for key, value in node.items()
                if _is_name(key) and isinstance(value, dict)
            ]
        level = below


def _sets_of(keys: tuple[str, ...], node: dict[Any, Any]) -> Iterator[_Set]:
    tensors = {
        key: value
        for key, value in node.items()
        if _is_name(key) and isinstance(value, StoredTensor | Opaque)
    }
    for name in tensors:
        prefix = name.removesuffix(FIRST_WEIGHT)
        # "other_patch_embed.proj.weight" has the same ending but is another weight.
        if prefix == name or (prefix and not prefix.endswith(".")):
            continue
        state = {
            plain_name(key.removeprefix(prefix)): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix) and key.rpartition(".")[2] not in PROFILED
        }
        yield _Set(keys, prefix, state)


def _is_name(key: object) -> bool:
    return isinstance(key, str) and len(key) <= MAX_NAME


def _only(sets: list[_Set], path: Path) -> Described:
    """Return the tensors of the only set, or of one of several identical sets."""
    if any(found.state != sets[0].state for found in sets[1:]):
        raise CheckpointError(
            "the file holds several sets of weights, and it is unclear which one to use",
            where=path,
            hint="load it as content and save the one that you mean, for example "
            # the last, because one without a prefix could be beside it in one dictionary
            f"torch.save({sets[-1].code()}, 'weights.pth')",
            details=[found.place() or "(at the top)" for found in sets[:10]],
        )
    described = {}
    for name, tensor in sets[0].state.items():
        if not isinstance(tensor, StoredTensor) or not tensor.dtype.is_floating_point:
            what = f"{name:.80} does not hold plain floating-point numbers"
            raise not_a_checkpoint(path, what, "save the network's weights alone, in float32")
        described[name] = tensor
    return described


def _none_found(content: dict[Any, Any], path: Path) -> CheckpointError:
    """Make the error for a file that contains no weights of this network."""
    items = list(tensors_in(content))
    objects = sorted({item.name for item in items if isinstance(item, Opaque)})
    if any(isinstance(item, StoredTensor) for item in items):
        return not_a_checkpoint(
            path, f"these are not the weights of a DFT (none of them is named {FIRST_WEIGHT})"
        )
    if objects:
        shown = ", ".join(f"{name:.80}" for name in objects[:3])
        return not_a_checkpoint(
            path, f"it contains Python objects ({shown}) and no tensors", SAVE_AGAIN
        )
    return not_a_checkpoint(path, "it has neither params nor params_ema")
