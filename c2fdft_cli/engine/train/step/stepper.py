"""One optimiser step: micro-batches, scaling, averaging over devices, EMA.

On a GPU the forward and backward pass of a small batch are recorded as a CUDA graph. What changes
from step to step is not part of it: random numbers and the loss scale are input tensors; the
learning rate, skipping a step that is not finite, and the EMA belong to the few launches after it.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from c2fdft_cli.core.ema import ema_decay, ema_update
from c2fdft_cli.data.batches.batch import Batch
from c2fdft_cli.data.images.tensors import to_unit
from c2fdft_cli.engine.train.step.objective import Objective
from c2fdft_cli.errors import ResourceError
from c2fdft_cli.execution.compiling import is_compiled, load_without_temporary_folder
from c2fdft_cli.execution.cuda.recorded import Recorder, records
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.memory import keep_freed_memory, stop_keeping_freed_memory
from c2fdft_cli.execution.surroundings import change_until_return
from c2fdft_cli.recipe.schema import Train

# The one step that was timed, of 14 million values, took 63 to 80 ms and kept an H100 busy for 42
# (docs/performance.md, On a GPU).
MAX_RECORDED_STEP = 1 << 25
"""Largest number of values in the first level's stream (pixels x channels) for which a step is
recorded: with more values the launches no longer limit the GPU."""

Gradients = tuple[Tensor | None, ...]

CALMER = "start again with a lower learning rate or train.clip_norm"
"""Hint of the errors about a training that diverges."""


@dataclass(frozen=True)
class StepResult:
    """The global batch's loss, the norm of its gradient, and whether the step was skipped."""

    loss: float
    grad_norm: float
    skipped: bool


class Stepper:
    """Holds the weights, their average (EMA), optimiser and loss scaler; does optimiser steps.

    The network of `objective` is on the runtime's device; the average starts from its weights.
    """

    def __init__(self, objective: Objective, train: Train, runtime: Runtime) -> None:
        if runtime.device.type == "cpu":
            change_until_return(keep_freed_memory, stop_keeping_freed_memory)
        self.net = objective.net
        self.ema = copy.deepcopy(objective.net).requires_grad_(False).eval()
        self.train = train
        self.runtime = runtime
        self.updates = 0
        self.bad_steps = 0
        load_without_temporary_folder()
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            # Set before each step as a function of only the iteration, so there is no scheduler
            # whose state must be saved.
            lr=0.0,
            betas=(train.adam_betas[0], train.adam_betas[1]),
            weight_decay=train.weight_decay,
            fused=runtime.device.type in ("cpu", "cuda"),
        )
        self.scaler = self._new_scaler()
        self.recorder: Recorder[tuple[Tensor, Gradients]] = Recorder()
        self.objective: nn.Module = objective
        if dist.is_initialized():
            devices = [runtime.device.index] if runtime.device.type == "cuda" else None
            self.objective = DistributedDataParallel(objective, device_ids=devices)

    def _new_scaler(self) -> torch.amp.GradScaler:
        enabled = self.runtime.dtype == torch.float16
        return torch.amp.GradScaler(self.runtime.device.type, enabled=enabled)

    def try_out(self, batch: Batch, micro_batch: int) -> float:
        """Run forward and backward pass of one micro-batch, in this process alone.

        The weights do not change. The result is the loss.
        """
        with self._no_sync():
            loss = self._loss(batch.rows(0, min(micro_batch, len(batch))))
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    @torch.no_grad()
    def loss(self, batch: Batch, micro_batch: int) -> float:
        """Return the loss of one micro-batch, computed in this process alone."""
        return self._loss(batch.rows(0, min(micro_batch, len(batch)))).item()

    def abandon(self) -> None:
        """Discard the gradients and the recording of a step that failed."""
        self.recorder.forget()
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.state_dict()
        self.scaler = self._new_scaler()  # the old one may have unscaled the gradients already
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(scale)

    def step(self, batch: Batch, share: float, lr: float, micro_batch: int) -> StepResult:
        """Do one optimiser step; a step whose loss or gradient is not finite is skipped.

        Args:
            batch: this process's rows of the global batch, at least one.
            share: their weight, rows / global batch (0 if the rank has no rows of its own).
            lr: learning rate.
            micro_batch: number of rows that go through the network together.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self._is_recorded(batch, micro_batch):
            return self._apply(self._replay(batch, share), lr)
        self.recorder.forget()
        loss, n = torch.zeros((), device=self.runtime.device), len(batch)
        for lo in range(0, n, micro_batch):
            hi = min(lo + micro_batch, n)
            # DDP averages the gradients over the processes, so each loss is multiplied by `world`
            # to make the result a sum
            with nullcontext() if hi == n else self._no_sync():
                # Weighted by rows, so that the parts add up to the mean over the global batch,
                # however it is divided. The only loss that is not such a mean is MS-SSIM
                # `as_released`, which pools its rows.
                part = self._loss(batch.rows(lo, hi)) * (share * (hi - lo) / n)
                self.scaler.scale(part * self.runtime.world).backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        if dist.is_initialized():
            # Whether the step is skipped depends on this sum and the reduced gradients, which are
            # equal in all processes, so either all of them update their weights or none does.
            dist.all_reduce(loss)
        return self._apply(loss, lr)

    def _is_recorded(self, batch: Batch, micro_batch: int) -> bool:
        """Whether to use a CUDA graph: for a small, undivided batch in a single process."""
        small = batch.gt[:, 0].numel() * self.net.dim <= MAX_RECORDED_STEP
        whole = micro_batch >= len(batch) and not dist.is_initialized()
        return small and whole and records(self.runtime.device)

    def _replay(self, batch: Batch, share: float) -> Tensor:
        """Replay the recorded step; set the scaled gradients, return the weighted loss."""
        scale = self.scaler.scale(torch.full((), share, device=self.runtime.device))
        inputs, key = self._inputs(batch), is_compiled(self.net)
        loss, gradients = self.recorder(self._loss_and_gradients, scale, *inputs, key=key)
        for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        # the product is a new tensor: the next replay overwrites `loss`
        return loss * share

    def _loss_and_gradients(self, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, Gradients]:
        self.optimizer.zero_grad(set_to_none=True)  # a recording that failed may have left some
        with self.runtime.autocast():
            loss = self.objective(*inputs)
        loss.backward(scale)
        return loss.detach(), tuple(parameter.grad for parameter in self.net.parameters())

    def _loss(self, rows: Batch) -> Tensor:
        inputs = self._inputs(rows)
        with self.runtime.autocast():
            return self.objective(*inputs)  # type: ignore[no-any-return]

    def _inputs(self, rows: Batch) -> list[Tensor]:
        """Return the objective's inputs (lq, gt, noise, times) on the device, mixup applied."""
        rows = rows.to(self.runtime.device, non_blocking=True)
        lq, gt = to_unit(rows.lq), to_unit(rows.gt)
        if rows.lq2 is not None and rows.gt2 is not None:
            lq = rows.lam * lq + (1 - rows.lam) * to_unit(rows.lq2)
            gt = rows.lam * gt + (1 - rows.lam) * to_unit(rows.gt2)
        return [lq, gt, rows.noise, rows.times]

    def _no_sync(self) -> AbstractContextManager[object]:
        if isinstance(self.objective, DistributedDataParallel):
            return self.objective.no_sync()
        return nullcontext()

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _apply(self, loss: Tensor, lr: float) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # before the norm is computed, because clip_norm applies to unscaled gradients
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.train.clip_norm is not None:
            # Clips without testing whether the norm is finite, which would wait for the GPU; if it
            # is not, the weights do not change anyway.
            nn.utils.clip_grads_with_norm_(self.net.parameters(), self.train.clip_norm, norm)
        # the only point of a step that waits for the GPU
        loss_value, norm_value = torch.stack([loss, norm]).tolist()
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        if finite:
            self.scaler.step(self.optimizer)
            self.updates += 1
            # by updates instead of iterations: a skipped step does not advance the warm-up
            decay = ema_decay(self.updates, self.train.ema_decay, self.train.ema_warm_up)
            ema_update(self.ema, self.net, decay)
        # also after a skipped step, to lower the loss scale that made the gradients overflow
        self.scaler.update()
        self._count_bad(finite)
        return StepResult(loss_value, norm_value, skipped=not finite)

    def _count_bad(self, finite: bool) -> None:
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if self.bad_steps >= self.train.max_bad_steps:
            raise ResourceError(
                f"{self.bad_steps} steps in a row had no finite loss or gradient",
                hint=f"resume with --resume --precision fp32, or {CALMER}",
            )

    def check_weights(self) -> None:
        """Raise ResourceError if a weight is NaN or infinite.

        A step with a finite gradient can produce such weights, which only the next step would
        notice.
        """
        states = (self.net.state_dict(), self.ema.state_dict())
        if not all(tensor.isfinite().all() for state in states for tensor in state.values()):
            what = "the training diverged: its weights are NaN or infinite"
            raise ResourceError(what, hint=CALMER)

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on, except the batch."""
        return {
            "params": self.net.state_dict(),
            "params_ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            "bad_steps": self.bad_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: the optimiser's moments have other shapes than the weights.
            Exception: arbitrary values can cause any error (KeyError, RuntimeError, ...).
        """
        self.net.load_state_dict(state["params"])
        self.ema.load_state_dict(state["params_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._arrange_moments()
        if self.scaler.is_enabled() and state["scaler"]:  # empty if saved in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.updates, self.bad_steps = int(state["updates"]), int(state["bad_steps"])

    def _arrange_moments(self) -> None:
        """Check the optimiser's moments, and convert them to the layout of their parameters.

        The fused AdamW pairs their values by position in memory, without comparing sizes. A state
        that was saved on another device may have another layout.

        Raises:
            ValueError: a moment has another shape than its parameter.
        """
        for parameter, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moment = moments[name]
                if moment.shape != parameter.shape:
                    shapes = f"{list(parameter.shape)}, got {list(moment.shape)}"
                    raise ValueError(f"{name} of a weight must have the shape {shapes}")
                if moment.stride() != parameter.stride():
                    moments[name] = torch.empty_like(parameter).copy_(moment)
            if moments["step"].numel() != 1:
                raise ValueError("the optimiser's step of a weight must be one number")
