"""Plan a restoration: everything that it needs is checked and decided before any work starts."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from c2fdft_cli.data.video.parts import read_through
from c2fdft_cli.engine.restore.inputs import Inputs, find_inputs
from c2fdft_cli.engine.restore.kinds import NotRead
from c2fdft_cli.engine.restore.manifest import Manifest
from c2fdft_cli.engine.restore.options import (
    STDIO,
    Machine,
    SamplingOptions,
    Writing,
    choose_timesteps,
    sample_count,
    timesteps_warning,
)
from c2fdft_cli.engine.restore.outputs import (
    Item,
    is_there,
    output_folder,
    plan_outputs,
    with_usable_names,
)
from c2fdft_cli.engine.restore.result import Skipped, named
from c2fdft_cli.engine.sampling.ensemble import transforms_for
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.sampling.subject import trained_timesteps
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.errors import DataError, ResourceError, UsageError
from c2fdft_cli.execution.compiling import compiles_strips
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.files.folders import check_folder
from c2fdft_cli.files.paths import checked_path, real_path, same_files
from c2fdft_cli.files.reading import sha256_of
from c2fdft_cli.progress import Looked, counted

_SAMPLING, _MACHINE, _WRITING = SamplingOptions(), Machine(), Writing()
_NAMES = "checking the outputs' names"


@dataclass(frozen=True)
class RestorePlan:
    """What `restore` will do.

    Args:
        sampling, writing: the requested settings.
        out: OUT as the user named it.
        weights: the checkpoint file.
        runtime: device and precision.
        executor: runs the network on its device within the available memory.
        items: the images and videos of this process, including unreadable ones.
        skipped: outputs that already exist.
        single: whether the input is exactly one named file.
        folder: the output folder; None for a single output file.
        manifest: the manifest of the output folder.
        warnings: what the user should know before the work starts.
        remarks: how the weights were chosen.
        not_read: pictures among the inputs whose formats are not supported.
        protocol: the protocol for scores of the weights' task; None if they have no recipe.
    """

    sampling: SamplingOptions
    writing: Writing
    out: str
    weights: Path
    runtime: Runtime
    executor: Executor
    items: list[Item]
    skipped: list[Skipped]
    single: bool
    folder: Path | None
    manifest: Manifest
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    not_read: list[NotRead] = field(default_factory=list)
    protocol: str | None = None

    @property
    def timesteps(self) -> list[int]:
        """The sampler's timesteps."""
        return self.executor.sampler.timesteps

    @property
    def units(self) -> int:
        """The number of expected events: one for each image and each frame of a video."""
        return sum(item.source.frames for item in self.items)

    @property
    def unit(self) -> str:
        """The unit of the events: "frame" if there are videos, otherwise "image"."""
        return "frame" if any(item.source.video for item in self.items) else "image"


def plan_restore(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    sampling: SamplingOptions = _SAMPLING,
    machine: Machine = _MACHINE,
    writing: Writing = _WRITING,
    stdin: bytes | None = None,
    checkpoint: Checkpoint | None = None,
    looked: Looked = lambda *_: None,
) -> RestorePlan:
    """Load the weights, find the inputs and outputs, and check them; nothing is written yet.

    Args:
        source: a file, a folder, a glob, `@list.txt`, or several of them; or `-` for the image
            whose bytes are `stdin`.
        out: a folder; for a single image also a file with an image suffix, or `-`.
        sampling, machine, writing: the settings.
        checkpoint: what the file that `sampling.weights` names holds, if it is loaded already.
        looked: is told what is checked, and how many of how many files were checked.

    Raises:
        UsageError: settings that cannot be combined, or impossible outputs.
        CheckpointError: no weights, or a file that is not a checkpoint.
        DataError: no inputs, or the single named image cannot be read.
        ResourceError: no such device, OUT is not writable, or the single image is too large.
    """
    several = [source] if isinstance(source, str | Path) else source
    specs, out = [checked_path("IN", one) for one in several], checked_path("OUT", out)
    # The command guarantees the order of the checks: usage, device, checkpoint, data. Cheap checks
    # come first.
    samples = sample_count(sampling.samples, sampling.self_ensemble, bool(writing.uncertainty))
    runtime = make_runtime(machine.device, machine.precision)
    found = choose_weights(sampling.weights, sampling.task, sampling.steps)
    checkpoint = checkpoint or load_checkpoint(found.path)
    recipe = checkpoint.recipe([])
    sampler = make_sampler(checkpoint, sampling)
    folder = output_folder(out)
    _check_folders(specs, out, folder, writing)
    inputs = find_inputs(specs, stdin, skip=folder, looked=looked)
    if not inputs.single:
        _check_not_among(inputs, writing)
    looked(_NAMES, 0, len(inputs.sources))
    items, renamed = plan_outputs(inputs, out, writing)
    chosen = {"draws": samples, "grid": sampler.timesteps, "precision": runtime.precision}
    settings = {"eta": sampler.eta} | _settings(sampling, machine, writing) | chosen
    manifest = _manifest(out, folder, settings, found.path)
    _refuse_originals(counted(items, looked, _NAMES))
    # The items are divided among the processes before existing outputs are sorted out: processes
    # look at different times, so they might otherwise divide different lists.
    own = [with_usable_names(item) for item in items[runtime.rank :: runtime.world]]
    compared = counted(own, looked, "comparing with finished files")
    todo, skipped = _split(compared, manifest, writing.overwrite)
    if todo:
        manifest.check_writable()
    executor, notice = _executor(checkpoint, sampler, runtime, sampling, machine, samples, todo)
    checked = counted(todo, looked, "checking sizes")
    todo, too_large = _all_checked(checked, executor, inputs.single)
    advice = (warning_about(checkpoint, sampler), notice, *_unread(manifest))
    return RestorePlan(
        sampling=sampling,
        writing=writing,
        out=out,
        weights=found.path,
        runtime=runtime,
        executor=executor,
        items=todo,
        skipped=skipped,
        single=inputs.single,
        folder=folder,
        manifest=manifest,
        warnings=[*runtime.notes, *filter(None, advice), *_stale(skipped), *renamed, *too_large],
        remarks=found.remarks,
        not_read=inputs.not_read,
        protocol=None if recipe is None else recipe.train.protocol,
    )


def make_sampler(checkpoint: Checkpoint, sampling: SamplingOptions) -> Sampler:
    """Return the sampler with the settings that are requested, otherwise the checkpoint's.

    Raises:
        UsageError: timesteps that do not fit the checkpoint's noise schedule.
    """
    timesteps = choose_timesteps(
        sampling, checkpoint.timesteps(), checkpoint.meta.diffusion.timesteps
    )
    eta = checkpoint.eta() if sampling.eta is None else sampling.eta
    return Sampler(checkpoint.alpha_bar(), timesteps, eta, sampling.seed)


def warning_about(checkpoint: Checkpoint, sampler: Sampler) -> str | None:
    """Return a warning if fine weights are to be sampled at timesteps that are not theirs."""
    return timesteps_warning(
        trained_timesteps(checkpoint), sampler.timesteps, checkpoint.timesteps()
    )


def _manifest(
    out: str, folder: Path | None, settings: dict[str, object], weights: Path
) -> Manifest:
    """Open the manifest of the folder that the outputs are in.

    Raises:
        UsageError: OUT is an existing file, and by the manifest not what this program wrote.
        DataError: the manifest cannot be read.
    """
    place = None if out == STDIO else folder or Path(out).parent
    manifest = Manifest(place, {**settings, "weights": sha256_of(weights)}, weights.name)
    is_file = folder is None and out != STDIO
    if is_file and os.path.exists(out) and not manifest.has(Path(out)):
        # A user's file: OUT may be the last match of a shell's pattern.
        hint = "name a folder for the outputs; to replace this file, delete it first"
        what = "OUT exists, and there is no record that this program wrote it"
        if manifest.was_written(Path(out)):
            what = "OUT was not written by this program, or was changed since"
        raise UsageError(what, where=out, hint=hint, details=_unread(manifest))
    return manifest


def _refuse_originals(items: Iterable[Item]) -> None:
    """Refuse to replace the pictures that the inputs were made from: IN and OUT interchanged.

    Raises:
        UsageError: names the first of them.
        DataError: the records of a folder of inputs cannot be read.
    """

    opened = cache(lambda folder: Manifest(folder, {}))

    @cache
    def records(folder: Path) -> list[Manifest]:
        """Return those of the folder and of all above it, any of which may have been an OUT."""
        return [one for one in map(opened, (folder, *folder.parents)) if one.has_records]

    for item in items:
        path, output = item.source.path.absolute(), item.output
        if item.source.data is not None or output is None or not is_there(output):
            continue
        if any(one.is_made_from(path, output) for one in records(path.parent)):
            label = item.source.label
            what = f"the input {label} was made from this picture, which it would replace"
            hint = "IN and OUT may be interchanged; to restore a result again, name another OUT"
            raise UsageError(what, where=output, hint=hint)


def _unread(manifest: Manifest) -> list[str]:
    """Return a warning for each file of records that is not read."""
    effect = "the files that it lists count as files without a record"
    return [f"{path} cannot be read ({why}): {effect}" for path, why in manifest.unread.items()]


def _check_folders(specs: Sequence[str], out: str, folder: Path | None, writing: Writing) -> None:
    """Refuse folders that are not writable, or that inputs and outputs would share."""
    if folder is not None and same_files([folder], specs):
        what = "inputs and outputs are in one folder"
        raise UsageError(what, where=folder, hint="choose another folder for OUT")
    _check_beside(specs, folder, writing)
    parent = None if out == STDIO else Path(out).parent
    for path in (folder or parent, writing.compare, writing.uncertainty):
        if path is not None:
            check_folder(path)


def _check_beside(specs: Sequence[str], folder: Path | None, writing: Writing) -> None:
    """Refuse to write comparisons or maps into the folders of the inputs or outputs.

    The next `restore` would take them for inputs, and the next `eval` for results without targets.
    """
    for option, beside in _folders_beside(writing):
        place = real_path(beside)  # check its parents too, as both commands search sub-folders
        places = (place, *place.parents)
        if folder is not None and same_files(places, [folder]):
            raise _mixed(option, beside, "outputs")
        if same_files(places, specs):
            raise _mixed(option, beside, "inputs")


def _check_not_among(inputs: Inputs, writing: Writing) -> None:
    """Refuse the same for a folder of listed or matched files; its sub-folders are allowed."""
    folders = {one.path.parent for one in inputs.sources}
    for option, beside in _folders_beside(writing):
        if same_files([beside], folders):
            raise _mixed(option, beside, "inputs")


def _folders_beside(writing: Writing) -> list[tuple[str, Path]]:
    options = (("--compare", writing.compare), ("--uncertainty", writing.uncertainty))
    return [(option, folder) for option, folder in options if folder is not None]


def _mixed(option: str, folder: Path, whose: str) -> UsageError:
    what = f"{option} must not be in the folder of the {whose}: they would be mixed"
    return UsageError(what, where=folder, hint=f"choose another folder for {option}")


def _settings(sampling: SamplingOptions, machine: Machine, writing: Writing) -> dict[str, object]:
    """Return the user's settings that decide the pixels of an output."""
    return {
        "seed": sampling.seed,
        "self_ensemble": sampling.self_ensemble,
        "temporal_noise": sampling.temporal_noise,
        "tile": machine.tile,
        "quality": writing.quality,
        "bit_depth": writing.bit_depth,
        "crf": writing.crf,
    }


def _executor(
    checkpoint: Checkpoint,
    sampler: Sampler,
    runtime: Runtime,
    sampling: SamplingOptions,
    machine: Machine,
    samples: int,
    items: Sequence[Item],
) -> tuple[Executor, str | None]:
    """Make the executor; also return a notice if it is not compiled although that was requested."""
    transforms = transforms_for(checkpoint.task(), sampling.self_ensemble)
    pixels = sum(one.source.height * one.source.width * one.source.frames for one in items)
    work = pixels * len(sampler.timesteps) * samples * len(transforms)
    compiled, notice = compiles_strips(machine.compile, runtime, work)
    net = checkpoint.network().to(runtime.device)
    executor = Executor(
        StripNetwork(net, dtype=runtime.dtype, compile=compiled),
        sampler,
        runtime,
        samples=samples,
        transforms=transforms,
        max_memory=machine.max_memory,
        tile=machine.tile,
        batch=machine.batch,
    )
    return executor, notice


def _split(
    items: Iterable[Item], manifest: Manifest, overwrite: bool
) -> tuple[list[Item], list[Skipped]]:
    """Separate what is to be restored from what is skipped.

    Without `overwrite` an output is skipped if it is complete, or if it exists and may differ from
    what this run would make.
    """
    todo: list[Item] = []
    skipped: list[Skipped] = []
    for item in items:
        if item.source.data is not None:
            manifest.look_at(item.source.path, item.source.data)
        doubts = _doubts(item, manifest)
        if overwrite or not (doubts or item.is_complete):
            todo.append(item)
        else:
            path, doubt = doubts[0] if doubts else (item.output, None)
            skipped.append(Skipped(item.source.label, str(path), doubt))
    return todo, skipped


def _doubts(item: Item, manifest: Manifest) -> list[tuple[Path, str]]:
    """Return the existing files that may differ from what this run would make, the output first."""
    # earlier versions recorded no comparisons and maps
    known = [
        path
        for path in reversed(item.files)
        if is_there(path)
        if path == item.output or manifest.was_written(path)
    ]
    if known and item.source.data is None:
        manifest.look_at(item.source.path)  # once for all of them
    found = [(path, manifest.doubt(path, item.source.path)) for path in known]
    return [(path, doubt) for path, doubt in found if doubt is not None]


def _stale(skipped: Sequence[Skipped]) -> list[str]:
    """Return warnings on existing outputs that may differ from this run, one per kind of doubt."""
    outputs: dict[str, list[str]] = defaultdict(list)
    for one in skipped:
        if one.doubt is not None:
            outputs[one.doubt].append(one.output)
    return [
        f"{paths[0]} already exists, not overwritten: {doubt}"
        if len(paths) == 1
        else f"{len(paths)} files already exist, not overwritten; for each: {doubt}"
        for doubt, paths in outputs.items()
    ]


def _all_checked(
    items: Iterable[Item], executor: Executor, single: bool
) -> tuple[list[Item], list[str]]:
    """Check all items; also return warnings on those that are too large.

    Raises:
        DataError, ResourceError: the problem of an item, if it is a single named file.
    """
    checked = [_checked(item, executor) for item in items]
    problems = [item.source.problem for item in checked if item.source.problem is not None]
    if single and problems:
        raise problems[0]
    return checked, [f"{one} ({one.hint})" for one in problems if isinstance(one, ResourceError)]


def _checked(item: Item, executor: Executor) -> Item:
    """Set the item's problem if it does not fit into memory or is a video that cannot be read.

    This is checked before hours of work on the other items. The frames of a video are counted.
    """
    source = item.source
    if source.problem is not None:
        return item
    try:
        executor.check_fits(source.height, source.width)
        if source.video is not None:
            source = replace(source, video=read_through(source.video))
    except (DataError, ResourceError) as error:
        source = replace(source, problem=named(error, source))
    return replace(item, source=source)
