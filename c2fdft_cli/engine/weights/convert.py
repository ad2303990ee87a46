"""Converts weights between file formats: checkpoint, official checkpoint, safetensors, ONNX."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import (
    SET_KEYS,
    Checkpoint,
    StateDict,
    load_checkpoint,
    versions,
)
from c2fdft_cli.engine.weights.convert_options import (
    CHECKPOINT,
    OFFICIAL,
    ONNX,
    SAFETENSORS,
    ConvertOptions,
)
from c2fdft_cli.engine.weights.onnx import MODULES, export_onnx
from c2fdft_cli.engine.weights.tensors import require_export, save_safetensors, save_tensors
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import PRECISIONS
from c2fdft_cli.files.folders import ensure_folder
from c2fdft_cli.recipe.schema import Diffusion
from c2fdft_cli.vocabulary import WeightSet


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Args:
        form: the format of `out`.
        sets: the sets of weights of the source that `out` holds: "raw", "ema" or both. If the
            source has only one set, it is this one, whichever was requested.
        stored: the type of the stored numbers: "float32", "bfloat16" or "float16".
        parameters: the number of parameters in one set.
        bytes: the size of `out`.
        grid, eta: the timesteps of the weights, and the noise that the sampler adds in each step;
            an official checkpoint cannot hold them.
        keeps_schedule: whether a command that reads `out` uses the noise schedule of the weights.
        onnx_error: the largest relative error of an ONNX file, compared with torch; None for other
            formats.
        left_out: metadata of the source that `out` cannot hold.
    """

    source: Path
    out: Path
    form: str
    sets: list[WeightSet]
    stored: str
    parameters: int
    bytes: int
    grid: list[int]
    eta: float
    keeps_schedule: bool
    onnx_error: float | None = None
    left_out: list[str] = field(default_factory=list)


def convert(source: Path, out: Path, options: ConvertOptions) -> Converted:
    """Write the weights of one file, in any format except ONNX, in another format, atomically.

    Raises:
        UsageError: options cannot be combined, or `out` is the source or already exists.
        CheckpointError: the source is not a checkpoint, or its weights do not fit its network.
        ResourceError: a package is missing, the file cannot be written, or the ONNX file does
            not compute the same as the network.
    """
    form = options.check(source, out)
    if form in (SAFETENSORS, ONNX):
        modules = MODULES if form == ONNX else ("safetensors.torch",)
        require_export(modules, f"--to {form}")
    checkpoint = load_checkpoint(source)
    for state in (checkpoint.params, checkpoint.ema):
        # raises an error if the weights do not fit
        make_network(checkpoint.meta.network, state, source)
    left_out = _left_out(form, checkpoint)
    checkpoint.meta.versions = checkpoint.meta.versions or versions()
    ensure_folder(out.parent)
    sets = _sets(checkpoint, options, form)
    error = _write(checkpoint, out, form, sets, _dtype(options))
    return Converted(
        source=source,
        out=out,
        form=form,
        sets=sets,
        stored=str(_dtype(options)).removeprefix("torch."),
        parameters=sum(tensor.numel() for tensor in checkpoint.ema.values()),
        bytes=out.stat().st_size,
        grid=checkpoint.timesteps(),
        eta=checkpoint.eta(),
        keeps_schedule=form != OFFICIAL or checkpoint.meta.diffusion == Diffusion(),
        onnx_error=error,
        left_out=left_out,
    )


def _write(
    checkpoint: Checkpoint, out: Path, form: str, sets: list[WeightSet], dtype: torch.dtype
) -> float | None:
    """Write the file and return the largest relative error of an ONNX file, None for others."""
    meta = checkpoint.meta
    if form == ONNX:
        return export_onnx(checkpoint, out, sets[0])
    states: dict[WeightSet, StateDict] = {"raw": checkpoint.params, "ema": checkpoint.ema}
    if form == SAFETENSORS:
        save_safetensors(out, _cast(states[sets[0]], dtype), meta.to_json(), sets[0])
        return None
    content: dict[str, StateDict | str] = {
        SET_KEYS[kind]: _cast(states[kind], dtype)
        for kind in (states if form == OFFICIAL else sets)  # the official program needs both
    }
    if form == CHECKPOINT:
        content["meta"] = meta.to_json()
    save_tensors(out, content)
    return None


def _cast(state: StateDict, dtype: torch.dtype) -> StateDict:
    """Convert the weights to a dtype.

    They are always copied: of a view of a larger tensor, torch would store the whole tensor.

    Raises:
        UsageError: a weight exceeds the largest number of the dtype.
    """
    cast = {name: tensor.to(dtype, copy=True) for name, tensor in state.items()}
    for name, tensor in cast.items():
        if not tensor.isfinite().all():  # those of a checkpoint are finite
            raise UsageError(
                f"{name} holds numbers that {str(dtype).removeprefix('torch.')} cannot represent",
                hint="use --half bf16, or omit --half",
            )
    return cast


def _dtype(options: ConvertOptions) -> torch.dtype:
    return PRECISIONS[options.half or "fp32"]


def _sets(checkpoint: Checkpoint, options: ConvertOptions, form: str) -> list[WeightSet]:
    """Return the sets to write: those requested, or the only one of the source."""
    wanted: list[WeightSet] = ["ema"] if options.ema_only else ["raw", "ema"]
    if form in (SAFETENSORS, ONNX):
        wanted = [options.weight_set]
    return [one for one in wanted if one in checkpoint.sets] or list(checkpoint.sets)


def _left_out(form: str, checkpoint: Checkpoint) -> list[str]:
    """List the metadata that an official checkpoint cannot hold; empty for other formats."""
    meta = checkpoint.meta
    if form != OFFICIAL:
        return []
    known = {
        "noise schedule": None if meta.diffusion == Diffusion() else _words(meta.diffusion),
        "grid": meta.grid,
        "eta": checkpoint.eta(),
        "stage": None if meta.stage == "released" else meta.stage,
        "step": meta.step,
        "recipe": meta.recipe and (meta.recipe_name or "unnamed"),
        "metrics": ", ".join(meta.metrics),
        "data": meta.data,
        "fingerprints": " ".join(one[:8] for one in (meta.data_train, meta.data_val) if one),
        "versions": ", ".join(f"{name} {one}" for name, one in meta.versions.items()),
    }
    return [f"{key} {value}" for key, value in known.items() if value]


def _words(diffusion: Diffusion) -> str:
    ends = f"{diffusion.beta_start:g} to {diffusion.beta_end:g}"
    return f"{diffusion.schedule}, {diffusion.timesteps} timesteps, beta from {ends}"
