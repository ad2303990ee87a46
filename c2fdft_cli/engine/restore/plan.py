"""Everything that restoring needs, checked and settled before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from c2fdft_cli.data.video.probe import count_frames
from c2fdft_cli.engine.restore.draws import ensemble_positions
from c2fdft_cli.engine.restore.inputs import find_inputs
from c2fdft_cli.engine.restore.manifest import Record
from c2fdft_cli.engine.restore.options import (
    RestoreOptions,
    choose_grid,
    grid_warning,
    settings_digest,
)
from c2fdft_cli.engine.restore.outputs import Item, output_folder, plan_outputs
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.weights.catalogue import sha256_of
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.execution.compiling import compiles_strips
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.files import ensure_folder


@dataclass(frozen=True)
class Skipped:
    """An output that was there already.

    doubt: why it may not be what this run would make; None if it is.
    """

    source: str
    output: str
    doubt: str | None


@dataclass(frozen=True)
class RestorePlan:
    """What `restore` will do.

    Args:
        options: the request.
        weights: the checkpoint.
        runtime: device and arithmetic.
        grid: times of the network calls.
        executor: runs the network on its device, within the memory there is.
        items: what is to be done by this process, the unreadable included.
        skipped: what is there already.
        single: whether one file was named by itself.
        folder: the output folder, None for a single file.
        record: of the output folder.
        warnings: what the user should know before it starts.
        remarks: how the weights were chosen.
    """

    options: RestoreOptions
    weights: Path
    runtime: Runtime
    grid: list[int]
    executor: Executor
    items: list[Item]
    skipped: list[Skipped]
    single: bool
    folder: Path | None
    record: Record
    positions: tuple[int, ...] = (0,)
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """How many times the sampler runs for each image."""
        return self.options.draws * len(self.positions)

    @property
    def units(self) -> int:
        """Events to expect: one for each image and for each frame of a video."""
        videos = [item.source.video for item in self.items]
        return sum(1 if video is None else max(1, video.frames) for video in videos)

    @property
    def unit(self) -> str:
        """What most events stand for."""
        return "frame" if any(item.source.video for item in self.items) else "image"


def plan_restore(options: RestoreOptions) -> RestorePlan:
    """Check the request, load the weights, find inputs and outputs; nothing is written yet.

    Raises:
        UsageError: options that do not fit together, outputs that collide.
        CheckpointError: no weights, or a file that is not a checkpoint.
        DataError: no inputs, or the single named image cannot be read.
        ResourceError: no such device, the output path lies under a regular file, or the single
            image is too large for the memory.
    """
    options.check()
    runtime = make_runtime(options.device, options.precision)
    found = choose_weights(options.weights, options.task)
    checkpoint = load_checkpoint(found.path)
    grid = choose_grid(options, checkpoint.meta, checkpoint.grid())
    folder = output_folder(options)
    _refuse_same_folder(options.source, folder)
    inputs = find_inputs(options.source, options.stdin, skip=folder)
    if inputs.single and inputs.sources[0].problem is not None:
        raise inputs.sources[0].problem
    outputs = plan_outputs(inputs, options)
    for path in _folders(outputs.folder, options):
        ensure_folder(path)
    digest = settings_digest(options, sha256_of(found.path), grid, runtime.precision)
    record = Record(outputs.folder, digest)
    share = outputs.items[runtime.rank :: runtime.world]
    todo, skipped = _split(share, record, options)
    net = checkpoint.network().to(runtime.device)
    positions = ensemble_positions(checkpoint.task()) if options.self_ensemble else (0,)
    work = sum(_pixels(item) for item in todo) * len(grid) * options.draws * len(positions)
    compiled, notice = compiles_strips(options.compile, runtime, work)
    executor = Executor(
        net,
        checkpoint.alpha_bar(),
        grid,
        runtime,
        eta=options.eta,
        seed=options.seed,
        max_memory=options.max_memory,
        tile=options.tile,
        compile=compiled,
    )
    todo, refused = _refuse_too_large(todo, executor)
    if inputs.single and refused:
        raise refused[0]
    warning = grid_warning(checkpoint.meta, grid)
    return RestorePlan(
        options=options,
        weights=found.path,
        runtime=runtime,
        grid=grid,
        executor=executor,
        items=[_counted(item) for item in todo],
        skipped=skipped,
        single=inputs.single,
        folder=outputs.folder,
        record=record,
        positions=positions,
        warnings=[
            *(one for one in (warning, notice) if one),
            *outputs.warnings,
            *(str(error) for error in refused),
        ],
        remarks=found.remarks,
    )


def _refuse_same_folder(source: str, folder: Path | None) -> None:
    path = Path(source)
    if folder is not None and path.is_dir() and path.resolve() == folder.resolve():
        raise UsageError(
            "inputs and outputs in one folder", where=folder, hint="choose another folder for OUT"
        )


def _folders(folder: Path | None, options: RestoreOptions) -> list[Path]:
    """Folders to write into; made, or refused, before any work."""
    out = folder if folder is not None else Path(options.out).parent
    return [path for path in (out, options.compare, options.uncertainty) if path is not None]


def _split(
    items: Sequence[Item], record: Record, options: RestoreOptions
) -> tuple[list[Item], list[Skipped]]:
    todo: list[Item] = []
    skipped: list[Skipped] = []
    for item in items:
        if options.overwrite or not item.is_complete:
            todo.append(item)
        else:
            doubt = record.doubt(item)
            skipped.append(Skipped(item.source.label, str(item.output), doubt))
    return todo, skipped


def _pixels(item: Item) -> int:
    """Of an image, or of all frames of a video as far as its header counts them."""
    source = item.source
    frames = 1 if source.video is None else max(1, source.video.frames)
    return source.height * source.width * frames


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
