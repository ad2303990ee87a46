"""The processes of one job: joining, waiting for one another, reducing, leaving."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution.device import Runtime, with_precision

Item = TypeVar("Item")

_TRAINING_PATIENCE = timedelta(minutes=15)
"""How long processes wait for one another within a step: a hang ends then."""
_VALIDATION_PATIENCE = timedelta(hours=6)
"""How long they wait for the one that scores the validation images alone."""
_MEETING_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others to come, which may look through their inputs before."""
_RESULTS_PATIENCE = timedelta(days=30)
"""How long a process that has restored its share waits for the others."""

_START = "start all of them with torchrun, or unset RANK and WORLD_SIZE"

_PLAINEST_FIRST = ("fp32", "tf32", "fp16", "bf16")

_patient_groups: list[dist.ProcessGroup] = []
"""The group that waits for validation, where this process is in a training of several."""


def refuse_tasks_without_rank() -> None:
    """UsageError where srun has started several tasks and none of them has a rank.

    Each would train the same run, into the same folder. Separate trainings state RANK=0.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" not in os.environ and tasks.isdigit() and int(tasks) > 1:
        raise UsageError(
            f"srun started this training {tasks} times, without RANK and WORLD_SIZE",
            hint="start one task per node with torchrun in it (docs/howto/cluster.md); "
            "RANK=0 WORLD_SIZE=1 for trainings that have nothing to do with each other",
        )


def join_training(runtime: Runtime) -> None:
    """Join the processes of a training that torchrun started; alone, nothing happens.

    NCCL is bound to the device, so that its errors come here and not in the first step.

    Raises:
        UsageError: some of the processes compute on a GPU and others do not.
    """
    if runtime.world > 1 and not dist.is_initialized():
        store, rank, world = _meet(_TRAINING_PATIENCE)
        _refuse_unlike_devices(store, rank, world, runtime.device)
        on_cuda = runtime.device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=_TRAINING_PATIENCE,
            device_id=runtime.device if on_cuda else None,
        )
        # A timeout belongs to a group: the one for validation may wait for hours while a hang
        # within a step still ends in minutes.
        _patient_groups[:] = [dist.new_group(backend="gloo", timeout=_VALIDATION_PATIENCE)]


def _meet(patience: timedelta) -> tuple[Any, int, int]:
    """A store that the processes of this job share, this one's rank, and their number.

    torchrun's own store lasts as long as the processes do. A second job in the same ones would find
    the addresses there that the first one's sockets had, so each job has a part of its own.

    Raises:
        UsageError: the environment does not say where the processes meet.
        ResourceError: the others do not come there.
    """
    met: Future[tuple[Any, int, int]] = Future()

    def meet() -> None:
        try:
            met.set_result(next(rendezvous("env://", timeout=_MEETING_PATIENCE)))
        except Exception as error:
            met.set_exception(error)

    try:
        # In a thread, as it waits where no signal reaches Python. Not in a pool, whose threads the
        # interpreter waits for at its end.
        threading.Thread(target=meet, daemon=True).start()
        store, rank, world = met.result()
    except ValueError as error:
        what = f"several processes without a place to meet: {error}"
        raise UsageError(what, hint=_START) from error
    except dist.DistError as error:
        place = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        what = f"the other processes of this job were not met at {place}: {error}"
        raise ResourceError(what, hint=_START) from error
    store.set_timeout(patience)
    # All have joined a job before the first of them comes to the next one.
    number = (store.add("joined", 1) - 1) // world
    part = dist.PrefixStore(f"job {number}", store)  # type: ignore[attr-defined]
    return part, rank, world


def _refuse_unlike_devices(store: Any, rank: int, world: int, device: torch.device) -> None:
    """UsageError in all processes where "auto" gave some a GPU and others, beside an old one, none.

    Each kind has a library of its own to talk by, and would wait for the others' until a timeout.
    """
    store.set(f"device of {rank}", device.type)
    kinds = [store.get(f"device of {other}").decode() for other in range(world)]
    if len(set(kinds)) > 1:
        found = ", ".join(f"process {other}: {kind}" for other, kind in enumerate(kinds))
        raise UsageError(
            f"the processes of this training would compute on unlike devices ({found})",
            hint="leave the GPUs that the installed torch has no kernels for out of "
            "CUDA_VISIBLE_DEVICES (`c2fdft doctor` says which it serves), or use --device cpu",
        )


def agree_on_precision(runtime: Runtime) -> Runtime:
    """The runtime in the plainest precision that any process of the training has found for itself.

    Unlike GPUs take unlike ones by "auto", and gradients are scaled in fp16 alone: their mean over
    fp16 and bf16 would be that of neither.
    """
    own = _PLAINEST_FIRST.index(runtime.precision)
    agreed = all_reduce_min(own, runtime)
    if agreed == own:
        return runtime
    name = _PLAINEST_FIRST[agreed]
    note = f"the network runs in {name}, as in the process of this training whose GPU has no better"
    return replace(with_precision(runtime, name, "--precision"), precision_note=note)


def barrier() -> None:
    """Wait for the other processes of the job.

    A process that ends while gloo's threads still hold tensors of its last reduction aborts
    (pytorch/pytorch#179291), and DDP keeps those threads alive beyond `destroy_process_group`. The
    first process saves for a while after the last step: whoever waits for it ends with idle
    threads.
    """
    if dist.is_initialized():
        dist.barrier()


def destroy_process_group() -> None:
    """Leave the process group, if this process is in one.

    For ends that all processes come to: with NCCL it waits for the others.
    """
    if dist.is_initialized():
        _patient_groups.clear()
        dist.destroy_process_group()


def any_rank(flag: bool, runtime: Runtime) -> bool:
    """Whether the flag is set in any process of the job."""
    return all_reduce_min(int(not flag), runtime) == 0


def any_rank_after_validation(flag: bool) -> bool:
    """As `any_rank`, for a process that may come hours after the others."""
    group = _patient_groups[0] if _patient_groups else None
    return _all_reduce_min(int(not flag), torch.device("cpu"), group) == 0


def all_reduce_min(number: int, runtime: Runtime) -> int:
    """The smallest of the numbers of all processes of the job."""
    return _all_reduce_min(number, runtime.device, None)


def _all_reduce_min(number: int, device: torch.device, group: dist.ProcessGroup | None) -> int:
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=group)
    return int(tensor.item())


def gather(item: Item, runtime: Runtime) -> list[Item] | None:
    """Each process's item in rank 0, by rank; None in the others, and where there is only one."""
    if not dist.is_initialized():
        return None
    everyone: list[Any] | None = [None] * runtime.world if runtime.is_main else None
    dist.gather_object(item, everyone)
    return everyone


def join_ranks(runtime: Runtime) -> None:
    """Join the other processes that torchrun started; their results are gathered at the end."""
    if runtime.world > 1 and not dist.is_initialized():
        store, rank, world = _meet(_RESULTS_PATIENCE)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=_RESULTS_PATIENCE
        )
