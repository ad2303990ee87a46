"""Checkpoints: `{"params", "params_ema", "meta"}`, ours and the released program's alike.

`meta` is JSON text, so a file loads with `weights_only=True` and a program that knows nothing of
it can still read the weights. A file without `meta` is a released one: its network is inferred
from names and shapes. Weights that were stored in half precision are float32 once they are loaded;
one of the two sets of weights is enough. `.safetensors` holds one set.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

import c2fdft_cli
from c2fdft_cli.core.diffusion import alpha_bar_of, beta_schedule, check_grid, time_grid
from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.safetensors_file import (
    SUFFIX,
    is_safetensors,
    load_safetensors,
    save_safetensors,
)
from c2fdft_cli.engine.weights.tensors import load_tensors, save_tensors
from c2fdft_cli.engine.weights.untrusted import full_precision, not_one, refuse_missing
from c2fdft_cli.errors import CheckpointError, RecipeError
from c2fdft_cli.recipe.files import recipe_from_dict
from c2fdft_cli.recipe.schema import Diffusion, Network, Recipe, Sampling

FORMAT_VERSION = 1
MAX_META_BYTES = 16 << 20
StateDict = dict[str, Tensor]


@dataclass
class Meta:
    """What a checkpoint says of itself.

    stage: "coarse", "fine", or "released" for a file without metadata.
    grid: the sampler's times that go with the weights, or None when nobody has chosen one.
    grid_from: "recipe", "sweep" or "training": who chose it.
    data: the shards that it was trained on, as given.
    """

    network: Network
    diffusion: Diffusion = field(default_factory=Diffusion)
    stage: str = "released"
    step: int = 0
    grid: list[int] | None = None
    grid_from: str = "recipe"
    recipe: dict[str, Any] | None = None
    recipe_name: str | None = None
    data: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text stored in the file."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)


@dataclass
class Checkpoint:
    """Weights and what is known of them; `ema` is what restoring uses."""

    path: Path
    params: StateDict
    ema: StateDict
    meta: Meta

    def recipe(self, overrides: list[str]) -> Recipe | None:
        """The recipe of the training run, with overrides; None when the file has none."""
        if self.meta.recipe is None:
            return None
        return recipe_from_dict(self.meta.recipe, overrides, where=str(self.path))

    def task(self) -> str | None:
        """What the weights were trained to do, where the file says so."""
        task = (self.meta.recipe or {}).get("task")
        return task if isinstance(task, str) else None

    def grid(self) -> list[int]:
        """The times to sample at: the file's own, else 4 calls."""
        return self.meta.grid or time_grid(4, total=self.meta.diffusion.timesteps)

    def alpha_bar(self) -> Tensor:
        """alpha_bar_t of the file's noise schedule, `[T]`."""
        return alpha_bar_of_recipe(self.meta.diffusion)

    def network(self, weights: str = "ema") -> DFT:
        """The network with its weights, on the CPU, in evaluation mode.

        Args:
            weights: "ema" or "raw".

        Raises:
            CheckpointError: weights that do not fit the network.
        """
        state = self.ema if weights == "ema" else self.params
        return make_network(self.meta.network, state, self.path).eval()


def alpha_bar_of_recipe(diffusion: Diffusion) -> Tensor:
    """alpha_bar_t of a recipe's noise schedule, `[T]` float32."""
    return alpha_bar_of(
        beta_schedule(
            diffusion.schedule, diffusion.timesteps, diffusion.beta_start, diffusion.beta_end
        )
    )


def grid_of_recipe(sampling: Sampling, diffusion: Diffusion) -> list[int]:
    """The recipe's sampling times: explicit, or from steps and spacing."""
    if sampling.grid is not None:
        return check_grid(sampling.grid, diffusion.timesteps)
    return time_grid(sampling.steps, sampling.spacing, diffusion.timesteps)


def make_network(
    network: Network, state: Mapping[str, Tensor] | None = None, where: Path | None = None
) -> DFT:
    """Build the network and, if given, load its weights, those of the file `where`, strictly.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    arguments = asdict(network)
    if state is None:
        return DFT(**arguments)
    with torch.device("meta"):
        net = DFT(**arguments)
    misfit = _misfits(net.state_dict(), state)
    if misfit:
        raise CheckpointError(
            "the weights do not fit the network that the file names",
            where=where,
            hint="get the file again, or another",
            details=misfit[:10],
        )
    net.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return net.requires_grad_(True)


def _misfits(want: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> list[str]:
    found = [f"missing: {name}" for name in want if name not in have]
    found += [f"unexpected: {name}" for name in have if name not in want]
    found += [
        f"{name}: want {list(want[name].shape)}, got {list(have[name].shape)}"
        for name in want
        if name in have and want[name].shape != have[name].shape
    ]
    return found


def save_checkpoint(path: Path, params: StateDict, ema: StateDict, meta: Meta) -> None:
    """Write a checkpoint atomically; ResourceError when the disk is full or not writable.

    A path that ends in `.safetensors` becomes such a file, of `ema` alone.
    """
    meta.versions = versions()
    if path.suffix.lower() == SUFFIX:
        save_safetensors(path, plain(ema), meta.to_json())
        return
    content = {"params": plain(params), "params_ema": plain(ema), "meta": meta.to_json()}
    save_tensors(path, content)


def plain(state: Mapping[str, Tensor]) -> StateDict:
    """Detached CPU tensors, without the prefixes of compile and DDP."""
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {
        "c2fdft": c2fdft_cli.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, ours or a released one; the file is not trusted.

    Raises:
        CheckpointError: missing, damaged, not one, or of a newer format.
    """
    refuse_missing(path)
    content = load_safetensors(path) if is_safetensors(path) else load_tensors(path)
    params, ema = content.get("params"), content.get("params_ema")
    if params is None and ema is None and content and _is_state(content):
        params = content  # a bare state dict
    params, ema = (ema if params is None else params), (params if ema is None else ema)
    if params is None or ema is None or not (_is_state(params) and _is_state(ema)):
        raise not_one(path, "it has neither params nor params_ema")
    same = params is ema
    ema = plain(full_precision(ema, path))
    params = ema if same else plain(full_precision(params, path))
    text = content.get("meta")
    meta = Meta(infer_network(ema, path)) if text is None else read_meta(text, path)
    return Checkpoint(path, params, ema, meta)


def _is_state(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def read_meta(text: object, path: Path) -> Meta:
    """The metadata of a checkpoint or state from its JSON text; CheckpointError if it is not."""
    if not isinstance(text, str) or len(text) > MAX_META_BYTES:
        raise not_one(path, "its meta is not JSON text")
    try:
        values = json.loads(text)
        version = values.pop("format_version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_one(path, "its meta is not JSON text") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"format version {version}, this program reads {FORMAT_VERSION}",
            where=path,
            hint="upgrade c2fdft",
        )
    try:
        # the recipe's own checks hold for these two sections
        sections = {key: values.pop(key) for key in ("network", "diffusion")}
        checked = recipe_from_dict(sections, [], where=str(path))
        meta = Meta(network=checked.network, diffusion=checked.diffusion, **values)
        _check_types(meta)
        if meta.grid is not None:
            meta.grid = check_grid(meta.grid, meta.diffusion.timesteps)
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise not_one(path, f"its meta: {error}") from error
    return meta


def _check_types(meta: Meta) -> None:
    """TypeError where a value is not of its field's kind; JSON has no classes."""
    kinds: dict[str, Any] = {
        "stage": str,
        "step": int,
        "grid": (list, NoneType),
        "grid_from": str,
        "recipe": (dict, NoneType),
        "recipe_name": (str, NoneType),
        "data": (str, NoneType),
        "metrics": dict,
        "versions": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(meta, name), kind):
            raise TypeError(f"{name} is a {type(getattr(meta, name)).__name__}")


def infer_network(state: Mapping[str, Tensor], path: Path) -> Network:
    """The network's configuration from names and shapes: docs/paper.md, "State-dict contract".

    The feed-forward factor is the largest hidden / C over the levels, because the hidden width
    is rounded down.

    Raises:
        CheckpointError: not the weights of a DFT.
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
        network = Network(
            dim=dim,
            blocks=blocks,
            heads=heads,
            ffn_factor=max(out / width for out, width in hidden),
            bias="encoder_level1.0.attn.qkv.bias" in state,
            norm="with_bias" if "encoder_level1.0.norm1.body.bias" in state else "bias_free",
            dual_pixel="skip_conv.weight" in state,
        )
        return recipe_from_dict({"network": asdict(network)}, [], where=str(path)).network
    except (KeyError, IndexError, ZeroDivisionError, RecipeError) as error:
        raise not_one(path, f"these are not the weights of a DFT ({error})") from error
