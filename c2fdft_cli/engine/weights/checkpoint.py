"""Checkpoints: `{"params", "params_ema", "meta"}`, and the files of other programs.

`meta` is JSON text, so a file loads with `weights_only=True`, and programs that do not know `meta`
can still read the weights. A file without `meta` is an official checkpoint or was written by
another program: its network is inferred from names and shapes. Weights stored in half precision
are converted to float32 when they are loaded. One of the two sets of weights is enough; a
`.safetensors` file that this program writes contains only one.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from c2fdft_cli.core.diffusion import check_timesteps, spaced_timesteps
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.build import alpha_bar_of_recipe, make_network
from c2fdft_cli.engine.weights.contents import plain_name, weights_in
from c2fdft_cli.engine.weights.identify import not_a_checkpoint
from c2fdft_cli.engine.weights.pickles import StoredTensor
from c2fdft_cli.engine.weights.stored import METADATA, containers_of, enough_memory, open_stored
from c2fdft_cli.engine.weights.tensors import OUR_KEYS, SUFFIX, save_safetensors, save_tensors
from c2fdft_cli.errors import CheckpointError, DataError, RecipeError
from c2fdft_cli.recipe.files import recipe_from_dict
from c2fdft_cli.recipe.schema import Diffusion, Network, Recipe
from c2fdft_cli.validation import STRICT, NotBool, validate
from c2fdft_cli.version import __version__
from c2fdft_cli.vocabulary import GridOrigin, WeightSet, WeightsStage
from c2fdft_cli.words import for_shell

if TYPE_CHECKING:
    from c2fdft_cli.data.shards.reader import ShardSet

FORMAT_VERSION = 2
"""The version that is written; earlier ones are read. Files of version 1, those of version 0.1.0 of
the program, lack `data_train` and `data_val`."""
IF_LATER = "if a later version of c2fdft wrote the file, upgrade c2fdft"
"""What to try if metadata has keys or values that this version does not know."""
MAX_META_BYTES = 16 << 20
StateDict = dict[str, Tensor]
SET_KEYS: dict[WeightSet, str] = {"raw": "params", "ema": "params_ema"}
_Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass
class Meta:
    """The metadata of a checkpoint.

    stage: "released" for an official checkpoint, which has no metadata.
    grid: the timesteps to sample at with these weights, or None if none have been chosen.
    grid_from: the origin of `grid`.
    data: the shards that the weights were trained on, as the user gave them.
    data_train, data_val: fingerprints of their training and validation images (`ShardSet`); None
        if they are not known, or there are none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    network: Network
    diffusion: Diffusion = field(default_factory=Diffusion)
    stage: WeightsStage = "released"
    step: Annotated[int, NotBool] = 0
    grid: list[Annotated[int, NotBool]] | None = None
    grid_from: GridOrigin = "recipe"
    recipe: dict[str, Any] | None = None
    recipe_name: str | None = None
    data: str | None = None
    data_train: _Fingerprint | None = None
    data_val: _Fingerprint | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the JSON text that is stored in the file."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)


@dataclass
class Checkpoint:
    """Weights with their metadata; restoring uses the `ema` weights.

    sets: the sets that the file holds; if it is one, `params` and `ema` are both this one.
    """

    path: Path
    params: StateDict
    ema: StateDict
    meta: Meta
    sets: tuple[WeightSet, ...] = ("raw", "ema")

    def refuse_other_data(self, shards: ShardSet) -> None:
        """Raise DataError if the shards at `meta.data` are known not to be those of the training.

        The path may be relative to another folder, or the set may have been prepared again.
        """
        is_train, found = shards.header.split == "train", shards.fingerprint
        own = self.meta.data_train if is_train else self.meta.data_val
        if own is None or own == found:
            return
        folder, kind = shards.paths[0].parent, "training" if is_train else "validation"
        raise DataError(
            f"the {kind} images in this folder (fingerprint {found[:8]}) are not those that "
            f"{self.path} was trained with ({own[:8]})",
            where=folder,
            hint=f"if they are meant, name the folder: {for_shell('--data', str(folder))}",
        )

    def recipe(self, overrides: list[str]) -> Recipe | None:
        """Return the recipe of the training run, with overrides; None if the file has none.

        Raises:
            RecipeError: as `recipe_in`.
        """
        own = self.meta.recipe
        return None if own is None else recipe_in(own, overrides, self.path)

    def task(self) -> str | None:
        """Return the task that the weights were trained for; None if the file does not state it."""
        task = (self.meta.recipe or {}).get("task")
        return task if isinstance(task, str) else None

    def timesteps(self) -> list[int]:
        """Return the timesteps to sample at: the file's own, otherwise 4, or all if fewer exist."""
        total = self.meta.diffusion.timesteps
        return self.meta.grid or spaced_timesteps(min(4, total), total=total)

    def eta(self) -> float:
        """Return the noise that the sampler adds in each step; 0 if the file does not state it."""
        sampling = (self.meta.recipe or {}).get("sampling")
        eta = sampling.get("eta") if isinstance(sampling, dict) else None
        if isinstance(eta, bool) or not isinstance(eta, int | float):
            return 0.0
        return float(eta) if 0 <= eta <= 1 else 0.0

    def alpha_bar(self) -> Tensor:
        """Return alpha_bar_t of the file's noise schedule, `[T]` float32."""
        return alpha_bar_of_recipe(self.meta.diffusion)

    def network(self, weights: WeightSet = "ema") -> DFT:
        """Return the network with its weights, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the network.
        """
        state = self.ema if weights == "ema" else self.params
        return make_network(self.meta.network, state, self.path).eval()


def save_checkpoint(path: Path, params: StateDict, ema: StateDict, meta: Meta) -> None:
    """Write a checkpoint atomically; ResourceError if the disk is full or not writable.

    A path that ends in `.safetensors` is written in that format, with `ema` only.
    """
    meta.versions = versions()
    if path.suffix.lower() == SUFFIX:
        save_safetensors(path, plain(ema), meta.to_json(), "ema")
        return
    content = {"params": plain(params), "params_ema": plain(ema), "meta": meta.to_json()}
    save_tensors(path, content)


def replace_meta(path: Path, meta: Meta, weights: Mapping[str, Tensor]) -> bool:
    """Replace the metadata of a checkpoint atomically; its sets of weights and dtypes are kept.

    If the file meanwhile holds other weights than those that `meta` describes (`weights`: `ema` as
    `load_checkpoint` returned it), it is left unchanged and the result is False.

    Raises:
        CheckpointError: as `load_checkpoint`.
        ResourceError: as `load_checkpoint` and `save_checkpoint`.
    """
    with open_stored(path) as file:
        sets, _ = weights_in(file)
        loaded: dict[WeightSet, StateDict] = file.load(sets)
    last, held = list(loaded.items())[-1]
    with enough_memory(path):
        if not same_tensors(plain(in_float32(held, path)), weights):
            return False
    meta.versions = versions()
    if file.is_safetensors:  # this program writes one set to this format
        save_safetensors(path, plain(held), meta.to_json(), last)
        return True
    content = {SET_KEYS[kind]: plain(state) for kind, state in loaded.items()}
    save_tensors(path, {**content, "meta": meta.to_json()})
    return True


def same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights have the same names and values."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def besides_weights(path: Path) -> list[str]:
    """List what a checkpoint holds besides weights and metadata, and `replace_meta` would drop.

    Returns:
        The names of other entries at the top level of the file, such as an optimiser, and in the
        metadata of a safetensors file. If a safetensors file has two sets, the raw one is listed
        too. The list is empty for a file that this program wrote.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    with open_stored(path) as file:
        states = list(weights_in(file)[0].values())
        content, names = dict(file.content), list[str]()
        if file.is_safetensors:
            states = states[-1:]
            about = content.pop(METADATA, None)
            about = about if isinstance(about, dict) else {}
            names = [name for name in about if name not in OUR_KEYS]
        kept = {tensor for state in states for tensor in state.values()}

        def is_kept(value: Any) -> bool:
            return isinstance(value, StoredTensor) and value in kept

        of_kept = containers_of(content, is_kept)
        of_others = containers_of(content, lambda value: not is_kept(value))
        for name, value in content.items():
            is_meta = name == "meta" and isinstance(value, str)
            holds = id(value) in of_kept and id(value) not in of_others
            if not (is_meta or is_kept(value) or holds):
                names.append(str(name))
        return names


def plain(state: Mapping[str, Tensor]) -> StateDict:
    """Return detached CPU tensors under names without the prefixes of wrappers (DDP, ...)."""
    return {plain_name(name): tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def versions() -> dict[str, str]:
    """Return the versions of the software that a result depends on."""
    return {
        "c2fdft": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this or another program; the file is untrusted.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or of a newer format.
        UnreadableError: the system does not read it.
        ResourceError: out of memory.
    """
    with open_stored(path) as file:
        sets, about = weights_in(file)
        loaded: dict[WeightSet, StateDict] = file.load(sets)
    with enough_memory(path):
        states = [plain(in_float32(state, path)) for state in loaded.values()]
    params, ema = states[0], states[-1]  # the same set if there is only one
    meta = Meta(infer_network(ema, path)) if about is None else read_meta(about, path)
    return Checkpoint(path, params, ema, meta, tuple(loaded))


def in_float32(state: Mapping[str, Tensor], path: Path) -> StateDict:
    """Convert the weights to float32; CheckpointError for values that are not finite there."""
    full = {name: tensor.float() for name, tensor in state.items()}
    for name, tensor in full.items():
        if not tensor.isfinite().all():
            if state[name].isfinite().all():  # of float64
                what = f"{name} holds numbers that float32 cannot represent"
                raise CheckpointError(what, where=path)
            raise CheckpointError(
                f"the weights contain NaN or infinite values in {name}",
                where=path,
                hint="the training that wrote them diverged: use an earlier checkpoint",
            )
    return full


def read_meta(text: object, path: Path) -> Meta:
    """Parse the metadata of a checkpoint or state; CheckpointError if the text is not valid."""
    if not isinstance(text, str) or len(text) > MAX_META_BYTES:
        raise not_a_checkpoint(path, "its metadata is not JSON text")
    try:
        values = json.loads(text)
        version = values.pop("format_version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_a_checkpoint(path, "its metadata is not JSON text") from error
    if version not in range(1, FORMAT_VERSION + 1):
        raise CheckpointError(
            f"the file has format version {version}, this program reads 1 to {FORMAT_VERSION}",
            where=path,
            hint="upgrade c2fdft",
        )
    try:
        meta = validate(Meta, values)
        if meta.grid is not None:
            meta.grid = check_timesteps(meta.grid, meta.diffusion.timesteps)
    except ValueError as error:
        what = f"its metadata cannot be used: {error}"
        raise not_a_checkpoint(path, what, IF_LATER) from error
    return meta


def recipe_in(values: Mapping[str, Any], overrides: Sequence[str], path: Path) -> Recipe:
    """Return the recipe in the metadata of a file, with overrides.

    Raises:
        RecipeError: the recipe, or an override, has unknown keys or values that cannot be used.
    """
    try:
        return recipe_from_dict(values, overrides, where=str(path))
    except RecipeError as error:
        if error.where is None:  # an override is wrong
            raise
        what, details = error.what, error.details
        raise RecipeError(what, where=path, hint=IF_LATER, details=details) from error


def infer_network(state: Mapping[str, Tensor], path: Path) -> Network:
    """Infer the network's configuration from names and shapes.

    Source: docs/paper.md, "State-dict contract".

    The feed-forward factor is the largest ratio hidden / C over the levels, because the hidden
    width is rounded down, or the next larger number if this one, itself rounded, gives less.

    Raises:
        CheckpointError: these are not the weights of a DFT.
    """
    stages = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    try:
        dim = state["patch_embed.proj.weight"].shape[0]
        blocks = [
            len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})
            for stage in stages
        ]
        heads = [state[f"{stage}.0.attn.temperature"].shape[0] for stage in stages]
        hidden = [state[f"{stage}.0.ffn.project_in.weight"].shape[:2] for stage in stages]
        values = {
            "dim": dim,
            "blocks": blocks,
            "heads": heads,
            "ffn_factor": _ffn_factor(hidden),
            "bias": "encoder_level1.0.attn.qkv.bias" in state,
            "norm": "with_bias" if "encoder_level1.0.norm1.body.bias" in state else "bias_free",
            "dual_pixel": "skip_conv.weight" in state,
        }
        return validate(Network, values)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise not_a_checkpoint(path, f"these are not the weights of a DFT ({error})") from error


def _ffn_factor(hidden: Sequence[Sequence[int]]) -> float:
    """Return a factor f with `int(width * f)` = out for each level's (out, width), if there is one.

    The widths are one width times powers of two, for which the products are rounded alike.
    """
    factor = max(out / width for out, width in hidden)
    while any(int(width * factor) < out for out, width in hidden):
        factor = math.nextafter(factor, math.inf)
    return factor
