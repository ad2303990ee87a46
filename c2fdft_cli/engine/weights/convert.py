"""Weights from one file format to another: checkpoint, official checkpoint, safetensors, ONNX."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, StateDict, load_checkpoint, versions
from c2fdft_cli.engine.weights.onnx import MODULES, export_onnx
from c2fdft_cli.engine.weights.tensors import require_export, save_safetensors, save_tensors
from c2fdft_cli.errors import UsageError
from c2fdft_cli.files import ensure_folder
from c2fdft_cli.vocabulary import WEIGHT_SETS, WeightSet, check_choice

CHECKPOINT, RELEASED, SAFETENSORS, ONNX = FORMATS = (
    "checkpoint",
    "released",
    "safetensors",
    "onnx",
)
SUFFIXES = {
    ".pt": CHECKPOINT,
    ".ckpt": CHECKPOINT,
    ".pth": RELEASED,
    ".safetensors": SAFETENSORS,
    ".onnx": ONNX,
}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert into what.

    Args:
        source: a checkpoint of any format but ONNX.
        out: the file to write.
        to: one of `FORMATS`; None for the format of the suffix of `out`.
        weights: "ema" or "raw": which weights go into a format that holds one set (safetensors
            and ONNX); None for ema.
        half: "bf16" or "fp16": store the tensors in half precision (checkpoint, safetensors).
        ema_only: omit the raw weights (checkpoint).
        overwrite: replace `out`.
    """

    source: Path
    out: Path
    to: str | None = None
    weights: str | None = None
    half: str | None = None
    ema_only: bool = False
    overwrite: bool = False

    def format(self) -> str:
        """The format to write; UsageError where neither --to nor the suffix says which."""
        if self.to is not None:
            return check_choice("--to", self.to, FORMATS)
        found = SUFFIXES.get(self.out.suffix.lower())
        if found is None:
            raise UsageError(
                "the suffix does not tell the format to write",
                where=self.out,
                hint=f"use {', '.join(SUFFIXES)}, or --to {'|'.join(FORMATS)}",
            )
        return found

    def weight_set(self) -> WeightSet:
        """The weights for a format that holds one set; UsageError for an unknown name."""
        return check_choice("--weights", self.weights or "ema", WEIGHT_SETS)

    def check(self) -> str:
        """Return the format; UsageError for options that do not fit it or a file in the way."""
        form = self.format()
        if self.half is not None:
            check_choice("--half", self.half, tuple(HALVES))
        self.weight_set()
        for given, option, fitting in (
            (self.half is not None, "--half", (CHECKPOINT, SAFETENSORS)),
            (self.ema_only, "--ema-only", (CHECKPOINT,)),
            (self.weights is not None, "--weights", (SAFETENSORS, ONNX)),
        ):
            if given and form not in fitting:
                raise UsageError(
                    f"{option} cannot be combined with the format {form}",
                    hint=f"it goes with --to {' or '.join(fitting)}",
                )
        if self.source.suffix.lower() == ".onnx":
            raise UsageError(
                "an ONNX file cannot be converted back",
                where=self.source,
                hint="convert the checkpoint that it was made from",
            )
        if os.path.isdir(self.out):
            raise UsageError(f"output file {self.out} is a folder", hint="give a file in it")
        if os.path.exists(self.out) and not self.overwrite:
            raise UsageError(
                f"output file {self.out} already exists", hint="use --overwrite to replace it"
            )
        return form


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        source, out, form: the files, and the format of `out`.
        sets: which weights are in it: "raw", "ema" or both.
        stored: "float32", "bfloat16" or "float16".
        parameters: numbers in one set.
        bytes: size of the file.
        grid: the timesteps of the weights, which an official checkpoint does not hold.
        onnx_error: largest relative error of the ONNX file against torch, else None.
        left_out: metadata of the source that the new file cannot hold.
    """

    source: Path
    out: Path
    form: str
    sets: list[str]
    stored: str
    parameters: int
    bytes: int
    grid: list[int]
    onnx_error: float | None = None
    left_out: list[str] = field(default_factory=list)


def convert(options: ConvertOptions) -> Converted:
    """Write the weights of one file in another format, atomically.

    Raises:
        UsageError: options that do not go together, or `out` already exists.
        CheckpointError: a source that is not a checkpoint, weights that do not fit.
        ResourceError: a package is missing, the file cannot be written, or the ONNX file does
            not compute what the network does.
    """
    form = options.check()
    if form in (SAFETENSORS, ONNX):
        modules = MODULES if form == ONNX else ("safetensors.torch",)
        require_export(modules, f"--to {form}")
    checkpoint = load_checkpoint(options.source)
    for state in (checkpoint.params, checkpoint.ema):
        # fails where the weights do not fit
        make_network(checkpoint.meta.network, state, options.source)
    checkpoint.meta.versions = checkpoint.meta.versions or versions()
    ensure_folder(options.out.parent)
    error = _write(options, form, checkpoint)
    return Converted(
        source=options.source,
        out=options.out,
        form=form,
        sets=_sets(options, form),
        stored=str(_dtype(options)).removeprefix("torch."),
        parameters=sum(tensor.numel() for tensor in checkpoint.ema.values()),
        bytes=options.out.stat().st_size,
        grid=checkpoint.grid(),
        onnx_error=error,
        left_out=_left_out(form, checkpoint),
    )


def _write(options: ConvertOptions, form: str, checkpoint: Checkpoint) -> float | None:
    """Write the file; the largest relative error of an ONNX one."""
    out, meta = options.out, checkpoint.meta
    weights = options.weight_set()
    if form == ONNX:
        return export_onnx(checkpoint, out, weights)
    dtype = _dtype(options)
    if form == SAFETENSORS:
        state = checkpoint.ema if weights == "ema" else checkpoint.params
        save_safetensors(out, _cast(state, dtype), meta.to_json(), weights)
        return None
    content: dict[str, StateDict | str] = {}
    if not options.ema_only:
        content["params"] = _cast(checkpoint.params, dtype)
    content["params_ema"] = _cast(checkpoint.ema, dtype)
    if form == CHECKPOINT:
        content["meta"] = meta.to_json()
    save_tensors(out, content)
    return None


def _cast(state: StateDict, dtype: torch.dtype) -> StateDict:
    """The state as another type; copied, since a part of a larger tensor is stored with all of it.

    Raises:
        UsageError: a weight beyond the largest number of the type.
    """
    cast = {name: tensor.to(dtype, copy=True) for name, tensor in state.items()}
    for name, tensor in state.items():
        if not cast[name].isfinite().equal(tensor.isfinite()):
            raise UsageError(
                f"{name} holds numbers that {str(dtype).removeprefix('torch.')} cannot represent",
                hint="use --half bf16, or no --half",
            )
    return cast


def _dtype(options: ConvertOptions) -> torch.dtype:
    return torch.float32 if options.half is None else HALVES[options.half]


def _sets(options: ConvertOptions, form: str) -> list[str]:
    if form in (SAFETENSORS, ONNX):
        return [options.weight_set()]
    return ["ema"] if options.ema_only else ["raw", "ema"]


def _left_out(form: str, checkpoint: Checkpoint) -> list[str]:
    """The metadata of ours that an official checkpoint has no place for."""
    meta = checkpoint.meta
    if form != RELEASED:
        return []
    known = {
        "grid": meta.grid,
        "stage": None if meta.stage == "released" else meta.stage,
        "step": meta.step or None,
        "recipe": meta.recipe and (meta.recipe_name or "unnamed"),
        "metrics": ", ".join(meta.metrics) or None,
    }
    return [f"{key} {value}" for key, value in known.items() if value]
