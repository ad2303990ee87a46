"""The processes of one job: join, wait for one another, reduce values, leave."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
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
"""How long processes wait for one another within a step, before a hang becomes an error."""
_VALIDATION_PATIENCE = timedelta(hours=6)
"""How long they wait for the process that alone scores the validation images."""
_MEETING_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others to join, which may first look through their inputs."""
_RESULTS_PATIENCE = timedelta(days=30)
"""How long a process that has restored its share waits for the others."""

_START = "start all of them with torchrun, or unset RANK and WORLD_SIZE"

_PLAINEST_FIRST = ("fp32", "tf32", "fp16", "bf16")

_patient_groups: list[dist.ProcessGroup] = []
"""The group that waits for validation, if this process is in a training of several processes."""


def refuse_tasks_without_rank() -> None:
    """Raise UsageError if srun has started several tasks and none of them has a rank.

    Each would train the same run, into the same folder. Independent trainings set RANK=0.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" not in os.environ and tasks.isdigit() and int(tasks) > 1:
        raise UsageError(
            f"srun started this training {tasks} times, without RANK and WORLD_SIZE",
            hint="start one task per node with torchrun in it (docs/howto/cluster.md); "
            "set RANK=0 WORLD_SIZE=1 for independent trainings",
        )


def join_training(runtime: Runtime) -> None:
    """Join the processes of a training that torchrun started; a single process does nothing.

    NCCL is bound to the device, so that its errors occur here and not in the first step.

    Raises:
        UsageError: some of the processes compute on a GPU and others do not, or they cannot be
            joined on their devices, or a calling program has joined them already.
    """
    # A group that an earlier training has left behind after an error is ours, and used again.
    if dist.is_initialized() and not _patient_groups:
        raise UsageError(
            "this program is in a process group of torch.distributed, in which it cannot train",
            hint="train in a process of its own, or after destroy_process_group()",
        )
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
        # Each group has its own timeout: that for validation may wait for hours, while a hang
        # within a step still ends after minutes.
        _patient_groups[:] = [dist.new_group(backend="gloo", timeout=_VALIDATION_PATIENCE)]


def _meet(patience: timedelta) -> tuple[Any, int, int]:
    """Return a store that the processes of this job share, this process's rank, and their number.

    torchrun's own store exists as long as the processes. A second job in the same processes would
    find the addresses of the first job's sockets in it, so each job uses a separate prefix.

    Raises:
        UsageError: the environment does not state the address where the processes meet.
        ResourceError: the other processes do not join there.
    """
    met: Future[tuple[Any, int, int]] = Future()

    def meet() -> None:
        try:
            met.set_result(next(rendezvous("env://", timeout=_MEETING_PATIENCE)))
        except Exception as error:
            met.set_exception(error)

    try:
        # In a thread, because it waits in code that Python's signal handlers cannot interrupt. Not
        # in a pool, whose threads the interpreter waits for when it exits.
        threading.Thread(target=meet, daemon=True).start()
        store, rank, world = met.result()
    except ValueError as error:
        what = f"the processes of this job have no address to meet at: {error}"
        raise UsageError(what, hint=_START) from error
    except RuntimeError as error:  # dist.DistError, and of torch 2.6 also others
        place = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        what = f"the other processes of this job did not join at {place}: {error}"
        raise ResourceError(what, hint=_START) from error
    store.set_timeout(patience)
    # All processes have joined one job before the first of them joins the next.
    number = (store.add("joined", 1) - 1) // world
    part = dist.PrefixStore(f"job {number}", store)  # type: ignore[attr-defined]
    return part, rank, world


def _refuse_unlike_devices(store: Any, rank: int, world: int, device: torch.device) -> None:
    """Raise UsageError in all processes if "auto" chose a GPU for some and the CPU for others.

    It chooses the CPU for a GPU that torch does not support. Processes on GPUs and on CPUs
    communicate by different libraries, and would wait for each other until a timeout. For Apple's
    GPUs torch has no such library.
    """
    if device.type == "mps":
        what = "several processes cannot train together on Apple GPUs"
        raise UsageError(what, hint="use --device cpu, or a single process without torchrun")
    store.set(f"device of {rank}", device.type)
    kinds = [store.get(f"device of {other}").decode() for other in range(world)]
    _refuse_unlike(
        kinds,
        "the processes of this training would compute on different devices",
        "remove the GPUs that the installed torch does not support from "
        "CUDA_VISIBLE_DEVICES (`c2fdft doctor` lists what it supports), or use --device cpu",
    )


def refuse_unlike_starts(start: str, runtime: Runtime) -> None:
    """Raise UsageError in all processes of the training unless all start from the same state.

    Machines without a common run folder may find a state on some of them only. The processes of the
    others would train new weights, and the mean of both gradients would fit neither.

    Args:
        start: describes the state that this process starts from.
        runtime: the runtime of this process.
    """
    if dist.is_initialized():
        starts: list[Any] = [None] * runtime.world
        dist.all_gather_object(starts, start, group=_patient_groups[0])
        _refuse_unlike(
            starts,
            "the processes of this training would start from different states",
            "the run folder must be the same on all machines: use a shared file system, or copy "
            "the folder to all of them before resuming (docs/howto/cluster.md)",
        )


def _refuse_unlike(values: list[str], what: str, hint: str) -> None:
    """Raise UsageError with the value of each process, given by rank, if they differ."""
    if len(set(values)) > 1:
        found = ", ".join(f"process {rank}: {value}" for rank, value in enumerate(values))
        raise UsageError(f"{what} ({found})", hint=hint)


def agree_on_precision(runtime: Runtime) -> Runtime:
    """Return the runtime in the plainest precision that any process of the training resolved.

    "auto" may resolve to different precisions on different GPUs. Gradients are scaled only in fp16,
    so a mean over those of fp16 and bf16 processes would be wrong for both.
    """
    own = _PLAINEST_FIRST.index(runtime.precision)
    agreed = all_reduce_min(own, runtime.device)
    if agreed == own:
        return runtime
    name = _PLAINEST_FIRST[agreed]
    note = f"the network runs in {name}: the GPU of another process in this job has nothing better"
    return replace(with_precision(runtime, name, "--precision"), precision_note=note)


def barrier() -> None:
    """Wait for the other processes of the job.

    A process that ends while gloo's threads still hold tensors of its last reduction aborts
    (pytorch/pytorch#179291), and DDP keeps those threads alive beyond `destroy_process_group`. The
    first process saves for a while after the last step: the processes that wait for it end with
    idle threads.
    """
    if dist.is_initialized():
        dist.barrier()


def destroy_process_group() -> None:
    """Leave the process group, if this process is in one.

    Only for exits that all processes reach: with NCCL it waits for the others.
    """
    if dist.is_initialized():
        _patient_groups.clear()
        dist.destroy_process_group()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process of the job."""
    return all_reduce_min(int(not flag), device) == 0


def any_rank_after_validation(flag: bool) -> bool:
    """Do the same as `any_rank`, for a process that may arrive hours after the others."""
    group = _patient_groups[0] if _patient_groups else None
    return all_reduce_min(int(not flag), torch.device("cpu"), group) == 0


def all_reduce_min(
    number: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> int:
    """Return the smallest of the numbers of all processes of the job, reduced on a device."""
    if not dist.is_initialized():
        return number
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=group)
    return int(tensor.item())


def gather(item: Item, runtime: Runtime, merge: Callable[[list[Item]], Item]) -> Item:
    """Merge the items of all processes, given by rank, in rank 0; other ranks get their own back.

    A single process gets its own back too.
    """
    if not dist.is_initialized():
        return item
    everyone: list[Any] | None = [None] * runtime.world if runtime.is_main else None
    dist.gather_object(item, everyone)
    return item if everyone is None else merge(everyone)


def join_ranks(runtime: Runtime) -> None:
    """Join the other processes that torchrun started; their results are gathered at the end."""
    if runtime.world > 1 and not dist.is_initialized():
        store, rank, world = _meet(_RESULTS_PATIENCE)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=_RESULTS_PATIENCE
        )
