"""Steps that fall back to smaller micro-batches if memory runs out, or to uncompiled code."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import TypeVar

import torch

from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.engine.train.batches import patch_cycle, rank_share
from c2fdft_cli.engine.train.plan import TrainPlan
from c2fdft_cli.engine.train.step.memory import (
    choose_micro_batch,
    kernels_in_use,
    step_bytes,
    weight_bytes,
)
from c2fdft_cli.engine.train.step.stepper import Stepper, StepResult
from c2fdft_cli.errors import C2fdftError, ResourceError
from c2fdft_cli.execution.compiling import (
    MUCH_WORK,
    compile_in_place,
    is_compiled,
    run_uncompiled,
    uncompiled,
)
from c2fdft_cli.execution.distributed import all_reduce_min
from c2fdft_cli.execution.fused.training import FEED_FORWARD, Kernels
from c2fdft_cli.execution.memory import is_out_of_memory, release_cached_memory
from c2fdft_cli.recipe.schema import FineStage

COMPILED_LOSS = {True: 1e-3, False: 2e-2}
"""Relative difference of the compiled loss that still counts as rounding, by `is float32`."""

Result = TypeVar("Result")


class Fallbacks:
    """Runs the steps of a training; repeats a failed one in smaller pieces or uncompiled.

    `notify` is called with a sentence for the user when something is done differently.
    """

    def __init__(self, plan: TrainPlan, stepper: Stepper, notify: Callable[[str], None]) -> None:
        self._plan, self._stepper, self._runtime = plan, stepper, plan.runtime
        self._notify = stepper.recorder.notify = notify
        self._cycle = patch_cycle(plan.section)
        self.micro: dict[int, int] = {}
        """Size of the micro-batches, by patch size."""
        self._fitted: set[int] = set()

    def compile(self) -> None:
        """Compile the network as `train.compile` of the recipe requires."""
        setting = self._plan.recipe.train.compile
        # The fused feed-forward kernels should move fewer bytes than compiled code; the two have
        # not been compared in time.
        by_hand = any(part == FEED_FORWARD for part, _ in self._kernels)
        if setting == "auto" and (by_hand or self._pixels() < MUCH_WORK):
            setting = "off"
        notice = compile_in_place(self._stepper.net, setting, self._runtime)
        if notice:
            self._notify(notice)

    def _pixels(self) -> int:
        """Estimate how many pixels the network processes in a whole training, in this process."""
        section, plan = self._plan.section, self._plan
        calls = len(plan.timesteps) if isinstance(section, FineStage) else 1
        pixels = [rows * p**2 for p, rows in zip(section.patches, section.batches, strict=True)]
        passes = 3 * calls * section.iterations  # forward, and backward twice as long
        return sum(pixels) // len(pixels) * passes // self._runtime.world

    @property
    def is_compiled(self) -> bool:
        """Whether the network runs compiled."""
        return is_compiled(self._stepper.net)

    def bytes_per_image(self, patch: int) -> int:
        """Estimate the bytes of activations in a step, for each image of a micro-batch."""
        plan = self._plan
        calls = len(plan.timesteps)
        network, section = plan.recipe.network, plan.section
        return step_bytes(network, section, calls, patch, self._runtime, self._kernels)

    @cached_property
    def _kernels(self) -> Kernels:
        recipe = self._plan.recipe
        return kernels_in_use(recipe.network, recipe.train.compile, self._runtime)

    def fit(self, batch: Batch) -> None:
        """Choose the micro-batch of this patch size, once; all processes use the same one.

        It is the smallest one of the processes that cannot run their rows at once.

        On CUDA, and if the network is compiled, a micro-batch is tested first, before any process
        waits for the gradients of another.
        """
        patch = batch.gt.shape[-1]
        if patch in self._fitted:
            return
        self._fitted.add(patch)
        self._stepper.recorder.forget()  # so that the recorded step's memory counts as free
        if patch not in self.micro:  # otherwise it is known from the state that the run resumed
            wanted = self._plan.recipe.train.micro_batch
            each = self.bytes_per_image(patch)
            parameters = sum(p.numel() for p in self._stepper.net.parameters())
            fixed = weight_bytes(parameters, self._runtime.dtype)
            self.micro[patch] = choose_micro_batch(wanted, len(batch), each, fixed, self._runtime)
        net = self._stepper.net
        if self._runtime.device.type == "cuda" or is_compiled(net):
            if is_compiled(net):
                self._notify(f"compiling for patches of {patch} px, which may take a minute")
            loss = self._until_done(patch, partial(self._stepper.try_out, batch), alone=True)
            if is_compiled(net):
                self._check_compiled(batch, loss)
            # Either all processes run compiled or none does. On a CPU only compiled networks reach
            # this reduction, so if the processes differed, those that reach it at the next patch
            # size would wait forever for the others.
            if not all_reduce_min(int(is_compiled(net)), self._runtime.device):
                run_uncompiled(net)
        # A process whose rows run at once may have a row less than others: it must not make these
        # run a second micro-batch, of one row, for which all would wait.
        if self.micro[patch] >= len(batch):
            most = -(-self._cycle.size_at(batch.iteration)[1] // self._runtime.world)
            self.micro[patch] = max(most, len(batch))
        self.micro[patch] = all_reduce_min(self.micro[patch], self._runtime.device)
        if self.micro[patch] < len(batch):
            self._notify(
                f"patches of {patch} px: a batch of {len(batch)} runs in "
                f"micro-batches of {self.micro[patch]}"
            )

    def step(self, batch: Batch) -> StepResult:
        """Do one optimiser step; call `fit` with a batch of this patch size first."""
        k, patch = batch.iteration, batch.gt.shape[-1]
        lr = self._plan.learning_rate(k)
        share = rank_share(self._runtime, self._cycle.size_at(k)[1])
        # A failed attempt can be repeated: the batch contains its random numbers, and the weights
        # change only at the very end of a step.
        attempt = partial(self._stepper.step, batch, share, lr)
        # With several processes it is not repeated: the others already wait for the gradients of
        # the attempt that failed.
        return self._until_done(patch, attempt, alone=self._runtime.world == 1)

    def _check_compiled(self, batch: Batch, loss: float) -> None:
        """Run uncompiled from now on if the compiled loss differs from the uncompiled one."""
        net = self._stepper.net
        with uncompiled(net):
            expected = self._stepper.loss(batch, self.micro[batch.gt.shape[-1]])
        # `<=` is false for a compiled loss of NaN, which therefore counts as a difference. If the
        # uncompiled loss is not finite, there is nothing to compare with.
        allowed = COMPILED_LOSS[self._runtime.dtype == torch.float32]
        if abs(loss - expected) <= allowed * abs(expected) or not math.isfinite(expected):
            return
        run_uncompiled(net)
        self._notify(
            f"the compiled network's loss is {loss:.6g} instead of {expected:.6g}: "
            "the network runs uncompiled"
        )

    def _until_done(self, patch: int, attempt: Callable[[int], Result], alone: bool) -> Result:
        """Call `attempt` with the size of the micro-batches until it succeeds or nothing helps."""
        while True:
            try:
                return attempt(self.micro[patch])
            except C2fdftError:
                # the program's own errors, such as too many skipped steps: repeating does not help
                raise
            except Exception as error:
                self._stepper.abandon()
                notice = self._fall_back(patch, error, alone)
                if notice is None:
                    raise
            # After the except block, because the traceback of its error keeps the tensors of the
            # failed attempt alive.
            release_cached_memory(self._runtime.device)
            self._notify(notice)

    def _fall_back(self, patch: int, error: Exception, alone: bool) -> str | None:
        """Change how steps run after an error; return a notice, or None if nothing can help.

        Raises:
            ResourceError: out of memory, with micro-batches of one row or with other processes
                waiting.
        """
        micro = self.micro[patch]
        half = -(-micro // 2)
        # first, because compiled code that runs out of memory can remain compiled
        if is_out_of_memory(error):
            if micro == 1 or not alone:
                raise ResourceError(
                    f"out of memory at patches of {patch} px in micro-batches of {micro}",
                    hint=f"resume with --resume train.micro_batch={half}"
                    if micro > 1
                    else "choose a smaller network or patch, or fine.recompute=level",
                ) from error
            self.micro[patch] = half
            return f"out of memory: patches of {patch} px now run in micro-batches of {half}"
        if is_compiled(self._stepper.net) and alone:
            run_uncompiled(self._stepper.net)
            why = (str(error).splitlines() or [""])[0][:200]
            return (
                f"torch.compile failed ({type(error).__name__}: {why}): the network runs uncompiled"
            )
        return None
