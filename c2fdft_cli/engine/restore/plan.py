"""Everything that restoring needs, checked and settled before any work starts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from c2fdft_cli.data.video.probe import count_frames
from c2fdft_cli.engine.restore.inputs import find_inputs
from c2fdft_cli.engine.restore.manifest import Manifest
from c2fdft_cli.engine.restore.options import (
    Machine,
    Sampling,
    Writing,
    choose_grid,
    grid_warning,
    sample_count,
)
from c2fdft_cli.engine.restore.outputs import Item, Outputs, output_folder, plan_outputs
from c2fdft_cli.engine.restore.result import Skipped
from c2fdft_cli.engine.sampling.ensemble import ensemble_transforms
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.weights.catalogue import sha256_of
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.execution.compiling import compiles_bands
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.files import check_folder

_SAMPLING, _MACHINE, _WRITING = Sampling(), Machine(), Writing()


@dataclass(frozen=True)
class RestorePlan:
    """What `restore` will do.

    Args:
        sampling, writing: as asked.
        out: as the user named it.
        weights: the checkpoint.
        runtime: device and arithmetic.
        executor: runs the network on its device, within the memory there is.
        batch: images of one size that go through the network together; 0 for what is sensible.
        items: what is to be done by this process, the unreadable included.
        skipped: what exists already.
        single: whether one file was named by itself.
        folder: the output folder, None for a single file.
        manifest: of the output folder.
        warnings: what the user should know before it starts.
        remarks: how the weights were chosen.
    """

    sampling: Sampling
    writing: Writing
    out: str
    weights: Path
    runtime: Runtime
    executor: Executor
    batch: int
    items: list[Item]
    skipped: list[Skipped]
    single: bool
    folder: Path | None
    manifest: Manifest
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def grid(self) -> list[int]:
        """The sampler's timesteps."""
        return self.executor.restorer.grid

    @property
    def units(self) -> int:
        """Events to expect: one for each image and for each frame of a video."""
        return sum(item.source.frames for item in self.items)

    @property
    def unit(self) -> str:
        """What most events stand for."""
        return "frame" if any(item.source.video for item in self.items) else "image"


def plan_restore(
    source: str | Path,
    out: str | Path,
    *,
    sampling: Sampling = _SAMPLING,
    machine: Machine = _MACHINE,
    writing: Writing = _WRITING,
    stdin: bytes | None = None,
) -> RestorePlan:
    """Load the weights, find inputs and outputs, and check them; nothing is written yet.

    Args:
        source: a file, a folder, a glob, `@list.txt`, or `-` for the bytes in `stdin`.
        out: a folder; for a single image also a file with an image suffix, or `-`.
        sampling, machine, writing: the settings.
        stdin: the bytes of the one image when `source` is `-`.

    Raises:
        UsageError: settings that do not fit together, or outputs that cannot be.
        CheckpointError: no weights, or a file that is not a checkpoint.
        DataError: no inputs, or the single named image cannot be read.
        ResourceError: no such device, OUT cannot be written to, or the single image is too large.
    """
    source, out = _not_empty("IN", source), _not_empty("OUT", out)
    samples = sample_count(sampling.samples, sampling.self_ensemble, bool(writing.uncertainty))
    runtime = make_runtime(machine.device, machine.precision)
    found = choose_weights(sampling.weights, sampling.task)
    checkpoint = load_checkpoint(found.path)
    grid = choose_grid(sampling, checkpoint.grid(), checkpoint.meta.diffusion.timesteps)
    single, outputs = _find_files(source, out, writing, stdin)
    settings = _settings(sampling, machine, writing, samples)
    settings |= {"weights": sha256_of(found.path), "grid": grid, "precision": runtime.precision}
    manifest = Manifest(outputs.folder, settings, found.path.name)
    share = outputs.items[runtime.rank :: runtime.world]
    todo, skipped = _split(share, manifest, writing.overwrite)
    executor, notice = _make_executor(
        checkpoint, grid, runtime, sampling, machine, samples, pixels=sum(map(_pixels, todo))
    )
    todo, refused = _refuse_too_large(todo, executor)
    if single and refused:
        raise refused[0]
    meta = checkpoint.meta
    warning = grid_warning(meta.grid if meta.stage == "fine" else None, grid)
    return RestorePlan(
        sampling=sampling,
        writing=writing,
        out=out,
        weights=found.path,
        runtime=runtime,
        executor=executor,
        batch=machine.batch,
        items=[_counted(item) for item in todo],
        skipped=skipped,
        single=single,
        folder=outputs.folder,
        manifest=manifest,
        warnings=[
            *[one for one in (warning, notice) if one is not None],
            *_stale(skipped),
            *outputs.warnings,
            *(f"{error} ({error.hint})" for error in refused),
        ],
        remarks=found.remarks,
    )


def _not_empty(name: str, value: str | Path) -> str:
    if not str(value):
        raise UsageError(f"{name} is empty", hint="name a file or a folder")
    return str(value)


def _find_files(
    source: str, out: str, writing: Writing, stdin: bytes | None
) -> tuple[bool, Outputs]:
    """Whether one file was named by itself, and where each input goes."""
    folder = output_folder(out)
    if folder is not None and os.path.realpath(source) == os.path.realpath(folder):
        what = "inputs and outputs are in one folder"
        raise UsageError(what, where=folder, hint="choose another folder for OUT")
    inputs = find_inputs(source, stdin, skip=folder)
    if inputs.single and inputs.sources[0].problem is not None:
        raise inputs.sources[0].problem
    outputs = plan_outputs(inputs, out, writing)
    for path in (folder or Path(out).parent, writing.compare, writing.uncertainty):
        if path is not None:
            check_folder(path)
    return inputs.single, outputs


def _settings(
    sampling: Sampling, machine: Machine, writing: Writing, samples: int
) -> dict[str, object]:
    """What decides an output's pixels, besides weights, timesteps, precision and its input."""
    return {
        "draws": samples,
        "eta": sampling.eta,
        "seed": sampling.seed,
        "self_ensemble": sampling.self_ensemble,
        "temporal_noise": sampling.temporal_noise,
        "tile": machine.tile,
        "quality": writing.quality,
        "bit_depth": writing.bit_depth,
        "crf": writing.crf,
    }


def _make_executor(
    checkpoint: Checkpoint,
    grid: list[int],
    runtime: Runtime,
    sampling: Sampling,
    machine: Machine,
    samples: int,
    pixels: int,
) -> tuple[Executor, str | None]:
    """The executor, and a notice where it is not compiled although that was asked for."""
    ensemble = sampling.self_ensemble
    transforms = ensemble_transforms(checkpoint.task()) if ensemble else (0,)
    work = pixels * len(grid) * samples * len(transforms)
    compiled, notice = compiles_bands(machine.compile, runtime, work)
    executor = Executor(
        checkpoint.network().to(runtime.device),
        checkpoint.alpha_bar(),
        grid,
        runtime,
        eta=sampling.eta,
        seed=sampling.seed,
        samples=samples,
        transforms=transforms,
        max_memory=machine.max_memory,
        tile=machine.tile,
        compile=compiled,
    )
    return executor, notice


def _split(
    items: Sequence[Item], manifest: Manifest, overwrite: bool
) -> tuple[list[Item], list[Skipped]]:
    """What is to be done, and what exists: complete, or not to be completed as it is."""
    todo: list[Item] = []
    skipped: list[Skipped] = []
    for item in items:
        doubt = None
        if item.output is not None and os.path.exists(item.output):
            doubt = manifest.doubt(item.output, item.source.path)
        if overwrite or (doubt is None and not item.is_complete):
            todo.append(item)
        else:
            skipped.append(Skipped(item.source.label, str(item.output), doubt))
    return todo, skipped


def _stale(skipped: Sequence[Skipped]) -> list[str]:
    """What differs between existing outputs and this run, one line for each difference."""
    outputs: dict[str, list[str]] = defaultdict(list)
    for one in skipped:
        if one.doubt is not None:
            outputs[one.doubt].append(one.output)
    return [
        f"{paths[0]} already exists, not overwritten: {doubt}"
        if len(paths) == 1
        else f"{len(paths)} files already exist, not overwritten: {doubt}"
        for doubt, paths in outputs.items()
    ]


def _pixels(item: Item) -> int:
    return item.source.height * item.source.width * item.source.frames


def _counted(item: Item) -> Item:
    """With the number of frames, if it is a video; what cannot be counted has none."""
    source = item.source
    if source.video is None or source.problem is not None:
        return item
    try:
        video = replace(source.video, frames=count_frames(source.path))
    except DataError as error:
        return replace(item, source=replace(source, problem=error))
    return replace(item, source=replace(source, video=video))


def _refuse_too_large(
    items: Sequence[Item], executor: Executor
) -> tuple[list[Item], list[ResourceError]]:
    """Give images beyond the budget their problem now, before hours of work on the others."""
    settled: list[Item] = []
    refused: list[ResourceError] = []
    for item in items:
        source = item.source
        try:
            if source.problem is None:
                executor.rows(source.height, source.width)
            settled.append(item)
        except ResourceError as error:
            named = ResourceError(error.what, where=source.label, hint=error.hint)
            refused.append(named)
            settled.append(replace(item, source=replace(source, problem=named)))
    return settled, refused
