"""`load` and `Restorer`: restore images in memory with packaged weights or a checkpoint."""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path, PurePath
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar, overload

import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor

from c2fdft_cli.api.arguments import as_tuple, check_callable, counted, name_or_path, texts
from c2fdft_cli.api.images import (
    Image,
    Unpacked,
    are_several,
    as_list,
    converting,
    size_of,
    unpack,
)
from c2fdft_cli.api.module import RestorationModule
from c2fdft_cli.engine.restore.batch import refuse_not_finite
from c2fdft_cli.engine.restore.job import restore
from c2fdft_cli.engine.restore.options import (
    UNCERTAINTY_SAMPLES,
    Machine,
    SamplingOptions,
    Writing,
    parse_size,
    sample_count,
)
from c2fdft_cli.engine.restore.plan import make_sampler, plan_restore, warning_about
from c2fdft_cli.engine.restore.result import RestoreResult
from c2fdft_cli.engine.sampling.ensemble import transforms_for
from c2fdft_cli.engine.sampling.executor import Executor
from c2fdft_cli.engine.sampling.sampler import Sampler
from c2fdft_cli.engine.weights.checkpoint import Checkpoint, load_checkpoint
from c2fdft_cli.engine.weights.choose import choose_weights
from c2fdft_cli.engine.weights.stored import refuse_missing
from c2fdft_cli.errors import CheckpointError, UsageError
from c2fdft_cli.execution.compiling import compiles_strips
from c2fdft_cli.execution.device import Runtime, make_runtime
from c2fdft_cli.execution.strips import StripNetwork
from c2fdft_cli.execution.surroundings import usual_settings
from c2fdft_cli.files.reading import sha256_of
from c2fdft_cli.settings import check_type
from c2fdft_cli.words import many

DEFAULT_NAME = "image"
"""The name of an image without a file name, which decides its noise."""

_GRID = "descending timesteps such as (999, 500)"
Progress: TypeAlias = Callable[[float], object]
Names: TypeAlias = str | Path | Sequence[str | Path]

_restorers: weakref.WeakSet[Restorer] = weakref.WeakSet()

Given = ParamSpec("Given")
Result = TypeVar("Result")
One = TypeVar("One", npt.NDArray[Any], Tensor, PIL.Image.Image)


def _in_usual_settings(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """Run a method that restores with the usual settings of torch and NumPy."""

    @wraps(method)
    def run(*args: Given.args, **options: Given.kwargs) -> Result:
        restorer: Any = args[0]
        with usual_settings(cpu_inference=restorer.device.type == "cpu"):
            return method(*args, **options)

    return run


class Uncertain(NamedTuple):
    """A restored image and how much its samples differ.

    image: the mean over the samples, of the same type as the input.
    deviation: the per-pixel standard deviation on the scale 0 .. 1, root mean square over the
        colours: float32 `[n, 1, h, w]` for tensors, otherwise a NumPy array `[h, w]`.
    """

    image: Any
    deviation: Any


@usual_settings()
def load(
    weights: str | Path | None = None,
    *,
    task: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    steps: int | None = None,
    spacing: str | None = None,
    grid: Sequence[int] | None = None,
    eta: float | None = None,
    seed: int = 0,
    self_ensemble: bool = False,
    max_memory: int | str | None = None,
    tile: int | None = None,
    compile: str = "auto",
) -> Restorer:
    """Load weights for restoring images; the keywords are options of `c2fdft restore`.

    A Python warning is issued if fine weights are used on timesteps that they were not trained on,
    if a GPU is not used or not in the usual way, and if compiling is requested but no compiler is
    available.

    Args:
        weights: a packaged name such as "derain", or a checkpoint file, which may be an official
            one; None for the best packaged weights of `task`, or those trained for `steps`.
        task: "derain", "denoise" or "deblur", instead of `weights`.
        device: "auto" (CUDA, otherwise MPS, otherwise CPU), "cpu", "cuda", "cuda:1" or "mps".
        precision: "auto", "fp32", "tf32", "bf16" or "fp16".
        steps: number of sampling steps; None for the checkpoint's own timesteps.
        spacing: spacing of `steps`, "linspace", "leading" or "trailing"; None for "linspace".
        grid: descending timesteps, instead of `steps`.
        eta: noise added in each step, 0 (none, DDIM) to 1 (ancestral, DDPM); None for the
            checkpoint's.
        seed: the seed of the noise.
        self_ensemble: whether to average over flips and rotations.
        max_memory: bytes, or a size such as "6G"; None for 80 % of the memory that is free at each
            call.
        tile: restore in overlapping tiles of this size in px; None for the exact result.
        compile: whether to use torch.compile: "on", "off", or "auto", which compiles for large
            folders on CUDA, never for images in memory.

    Raises:
        UsageError: invalid values, or arguments that cannot be combined.
        CheckpointError: no such weights, or a file that is not a checkpoint.
        ResourceError: the device is not available.
    """
    check_type("weights", weights, str | Path | None)
    sampling = SamplingOptions(
        weights=None if weights is None else name_or_path(weights),
        task=task,
        steps=steps,
        spacing=spacing,
        grid=None if grid is None else as_tuple("grid", grid, _GRID),
        eta=eta,
        seed=seed,
        self_ensemble=self_ensemble,
    )
    machine = Machine(
        device=str(device),
        precision=precision,
        max_memory=parse_size(max_memory) if isinstance(max_memory, str) else max_memory,
        tile=tile,
        compile=compile,
    )
    runtime = make_runtime(machine.device, machine.precision)
    path = choose_weights(sampling.weights, sampling.task, sampling.steps).path
    checkpoint = load_checkpoint(path)
    sampler = make_sampler(checkpoint, sampling)
    for note in filter(None, (*runtime.notes, warning_about(checkpoint, sampler))):
        warnings.warn(note, stacklevel=3)
    return Restorer(checkpoint, sampler, runtime, sampling, machine)


class Restorer:
    """Restores images in memory and folders of files; created by `load`.

    Calls from several threads run one after another; several restorers can run at the same time. On
    CUDA only if they have the same precision: torch has one setting for all threads of whether
    float32 products are rounded to TF32, and one in fp32 would compute with that of the others. A
    process that is forked after `load` computes on one thread, a spawned one on all. One that is
    forked before `load`, from a process that has computed with torch on several threads, waits
    forever unless it calls `torch.set_num_threads(1)` first.

    Attributes:
        weights: the checkpoint file.
        grid: the sampler's timesteps, one per sampling step.
        device: the device that the network runs on.
        precision: the precision that it computes in.
        task: the task that the weights were trained for; None if unknown.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sampler: Sampler,
        runtime: Runtime,
        sampling: SamplingOptions,
        machine: Machine,
    ) -> None:
        # The current folder may change, and so may the file.
        self.weights = Path(os.path.abspath(checkpoint.path))
        self._loaded = sha256_of(self.weights)
        self.grid = list(sampler.timesteps)
        self.device = runtime.device
        self.precision = runtime.precision
        self.task = checkpoint.task()
        # Only these weights restore; on a CPU the network holds no copy of them.
        self._checkpoint = replace(checkpoint, path=self.weights, params=checkpoint.ema)
        self._sampler, self._runtime = sampler, runtime
        self._sampling, self._machine = sampling, machine
        self._compiled, notice = compiles_strips(machine.compile, runtime, work=0)
        if notice is not None:
            warnings.warn(notice, stacklevel=4)
        self._create_unshared_parts()

    def _create_unshared_parts(self) -> None:
        """Create the parts that copies of this object, also in other processes, do not share."""
        self._net = self._checkpoint.network().to(self.device).requires_grad_(False)
        self._strips = StripNetwork(self._net, dtype=self._runtime.dtype, compile=self._compiled)
        self._lock = threading.Lock()
        self._executors: dict[int, Executor] = {}
        _restorers.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled, for example for a process pool, or copied by `copy.deepcopy`."""
        own = ("_net", "_strips", "_lock", "_executors")
        return {key: value for key, value in vars(self).items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state of `__getstate__`, and create the rest again."""
        vars(self).update(state)
        self._create_unshared_parts()

    def __repr__(self) -> str:
        return (
            f"<Restorer {self.weights.name}, timesteps {','.join(map(str, self.grid))}, "
            f"{self.device}, {self.precision}>"
        )

    @overload
    def __call__(
        self, image: One, name: Names | None = None, *, progress: Progress | None = None
    ) -> One: ...
    @overload
    def __call__(
        self, image: Sequence[One], name: Names | None = None, *, progress: Progress | None = None
    ) -> list[One]: ...
    @_in_usual_settings
    def __call__(
        self, image: Any, name: Names | None = None, *, progress: Progress | None = None
    ) -> Any:
        """Restore an image, a batch or several images, and return the same type.

        The result has the pixels that `c2fdft restore` writes for a file with this name and these
        pixels.

        Args:
            image: NumPy `[h, w, 3]` or `[h, w]` (uint8, uint16, or floats in 0 .. 1), torch
                `[n, 3, h, w]` or `[3, h, w]` (uint8 or floats in 0 .. 1), a PIL image, or a
                sequence of these, whose results are a list. The EXIF orientation of PIL images is
                not applied.
            name: the name of the image's file, or one name per image. Together with the seed it
                decides the noise that sampling starts from. None for a PIL image's own file name,
                otherwise "image".
            progress: called many times with the share of the work that is done, 0 to 1. It may
                raise an exception, which cancels the call; the restorer can be used again.

        Raises:
            UsageError: not a supported image.
            DataError: the file of a PIL image is damaged, or has been closed before it was read.
            ResourceError: the image does not fit into memory.
            GpuError: a kernel that was tried failed, and this process cannot use the GPU any more.
            CheckpointError: the network produced NaN or infinite values.
        """
        images = self._unpacked(as_list(image), samples=1)
        frames = iter(self._run(images, name, 1, progress))
        restored = [one.pack(torch.stack([next(frames)[0] for _ in one.values])) for one in images]
        return restored if are_several(image) else restored[0]

    @_in_usual_settings
    def uncertainty(
        self,
        image: Image,
        samples: int = UNCERTAINTY_SAMPLES,
        name: Names | None = None,
        *,
        progress: Progress | None = None,
    ) -> Uncertain:
        """Return the mean of several samples of an image, and their per-pixel standard deviation.

        Args:
            image, name, progress: as for a call.
            samples: at least 2.

        Raises:
            The same errors as a call.
        """
        check_type("samples", samples, int)
        samples = sample_count(int(samples), self._sampling.self_ensemble, uncertainty=True)
        (apart,) = self._unpacked([image], samples)
        frames = self._run([apart], name, samples, progress)
        restored = apart.pack(torch.stack([frame for frame, _ in frames]))
        deviation = torch.stack([one for _, one in frames if one is not None])
        if isinstance(image, Tensor):
            return Uncertain(restored, deviation.to(image.device))
        return Uncertain(restored, deviation[0, 0].numpy())

    @_in_usual_settings
    def restore_folder(
        self,
        source: str | Path | Sequence[str | Path],
        out: str | Path,
        *,
        format: str | None = None,
        quality: int = 95,
        bit_depth: int | None = None,
        suffix: str = "",
        overwrite: bool = False,
        check: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> RestoreResult:
        """Restore images and videos as `c2fdft restore` does; existing outputs are skipped.

        A process that torchrun started restores its share of them. What the command prints before
        it starts is issued as Python warnings.

        Args:
            source: a folder, a file, a glob, `@list.txt`, or several of them.
            out: a folder; for one input also a file.
            format: "png", "jpg", "tif", "bmp", "webp" or "same"; None for PNG, or for the suffix of
                `out`.
            quality: JPEG quality, 1 to 100.
            bit_depth: 8 or 16; None for the input's own.
            suffix: appended to each output's base name.
            overwrite: replace existing outputs.
            check: whether to raise the error if inputs failed; otherwise it is the result's
                `failure`.
            progress: called after each image or frame with the number done, and the total number.

        Raises:
            PartialFailure: some inputs failed, or some existing outputs may differ from what this
                call makes, such as with other settings; all other inputs are restored.
            Interrupted: stopped by Ctrl-C, in place of KeyboardInterrupt, or by SIGTERM; finished
                files are kept. If nothing is left to do, the program's own handler is called
                instead, or KeyboardInterrupt raised.
            UsageError, DataError, ResourceError: as the command.
            CheckpointError: the weights are missing or have changed since `load`, or produced NaN.
        """
        check_type("out", out, str | Path)
        check_callable("progress", progress)
        sources = texts("source", source)
        if not sources:
            raise UsageError("there is nothing to restore: source is empty")
        writing = Writing(
            format=format, quality=quality, bit_depth=bit_depth, suffix=suffix, overwrite=overwrite
        )
        refuse_missing(self.weights)
        if sha256_of(self.weights) != self._loaded:
            what = "the weights have changed since they were loaded"
            raise CheckpointError(what, where=self.weights, hint="load them again")
        sampling = replace(self._sampling, weights=str(self.weights), task=None)
        (folder,) = texts("out", out)
        plan = plan_restore(
            sources,
            folder,
            sampling=sampling,
            machine=self._machine,
            writing=writing,
            checkpoint=self._checkpoint,
        )
        for warning in plan.warnings:
            warnings.warn(warning, stacklevel=3)
        job = restore(plan)
        result = job.run(counted(progress, len(job)))
        if check and result.failure is not None:
            raise result.failure
        return result

    @usual_settings()
    def module(self) -> RestorationModule:
        """Return a differentiable `torch.nn.Module` that restores with a copy of the network."""
        sampler = self._sampler
        return RestorationModule(
            self._net, sampler.alpha_bar, sampler.timesteps, seed=sampler.seed, name=DEFAULT_NAME
        )

    def _unpacked(self, images: Sequence[Image], samples: int) -> list[Unpacked]:
        """Convert the images, if there is enough memory to restore each of them."""
        # Under the lock: the memory that another call uses at the moment is free again afterwards.
        with self._lock, self._runtime.on_device():
            executor = self._executor(samples)
            for size in filter(None, map(size_of, images)):
                executor.check_fits(*size)
        with converting():
            return [unpack(one) for one in images]

    def _run(
        self, images: list[Unpacked], name: Names | None, samples: int, progress: Progress | None
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Restore all images; return each frame, `[3, h, w]`, and its deviation, `[1, h, w]`.

        The deviation is None for a single run of the sampler.
        """
        check_callable("progress", progress)
        names = _names(images, name)
        with converting():
            frames = [frame for one in images for frame in one.lq]
        before, total = 0, sum(frame.numel() for frame in frames)

        def report(share: float) -> None:
            if progress is not None:
                progress((before + share * lq.numel()) / total)

        by_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, frame in enumerate(frames):
            by_size[tuple(frame.shape)].append(i)
        found: list[tuple[Tensor, Tensor | None]] = [(frame, None) for frame in frames]
        # The current GPU of the calling thread may be another one.
        with self._lock, self._runtime.on_device():
            executor = self._executor(samples)
            for (_, height, width), members in by_size.items():
                size = executor.batch_size(height, width)
                for start in range(0, len(members), size):
                    batch = members[start : start + size]
                    lq = torch.stack([frames[i] for i in batch])
                    done = executor(lq, [names[i] for i in batch], report)
                    before += lq.numel()
                    refuse_not_finite(
                        bool(done.image.isfinite().all()), self.weights, self.precision
                    )
                    for note in done.notes:
                        warnings.warn(note, stacklevel=4)
                    for k, i in enumerate(batch):
                        deviation = None if done.deviation is None else done.deviation[k]
                        found[i] = done.image[k], deviation
        return found

    def _executor(self, samples: int) -> Executor:
        """Return the executor for this number of samples of each image, with its present budget."""
        if samples in self._executors:
            self._executors[samples].measure_memory()
        else:
            self._executors[samples] = Executor(
                self._strips,
                self._sampler,
                self._runtime,
                samples=samples,
                transforms=transforms_for(self.task, self._sampling.self_ensemble),
                max_memory=self._machine.max_memory,
                tile=self._machine.tile,
            )
        return self._executors[samples]


def _names(images: Sequence[Unpacked], name: Names | None) -> list[str]:
    """Return the base name of each image, including each image of a batch."""
    count = sum(len(one.values) for one in images)
    if name is None:
        own = [one.name or DEFAULT_NAME for one in images for _ in one.values]
        return [PurePath(one).stem for one in own]
    names = [PurePath(one).stem for one in texts("name", name)]
    if isinstance(name, str | Path):
        return names * count
    if len(names) != count:
        raise UsageError(f"there are {len(names)} names for {many(count, 'image')}")
    return names


def _replace_locks() -> None:
    """Replace all locks in a forked process: no one there would release those of other threads."""
    for one in _restorers:
        one._lock = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_replace_locks)
