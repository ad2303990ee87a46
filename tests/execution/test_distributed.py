"""How processes join a group, and how long they wait for one another."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from c2fdft_cli.errors import ResourceError, UsageError
from c2fdft_cli.execution import distributed
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.distributed import (
    agree_on_precision,
    any_rank,
    any_rank_after_validation,
    join_training,
)
from tests.kit.processes import start, torchrun


def run_in_two_processes(text: str, folder: Path) -> None:
    """Run a script, given as text, under torchrun; both processes must succeed."""
    script = folder / "script.py"
    script.write_text(text)
    done = torchrun(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "backend", "bound_to"),
    [("cuda:1", "nccl", torch.device("cuda:1")), ("cpu", "gloo", None)],
)
def test_a_training_is_bound_to_its_gpu_and_waits_for_minutes(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, bound_to: torch.device | None
) -> None:
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda name, **how: asked.append((name, how)))
    monkeypatch.setattr(dist, "new_group", lambda **how: asked.append(("new", how)))
    monkeypatch.setattr(distributed, "_patient_groups", [])
    store = dist.HashStore()
    store.set("job 0/device of 0", torch.device(device).type)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    join_training(Runtime(torch.device(device), rank=1, world=2))
    (name, how), patient = asked
    assert name == backend
    assert how.pop("store").get("device of 1").decode() == torch.device(device).type
    assert how == {
        "rank": 1,
        "world_size": 2,
        "timeout": timedelta(minutes=15),
        "device_id": bound_to,
    }
    assert patient == ("new", {"backend": "gloo", "timeout": timedelta(hours=6)})
    assert store.timeout == timedelta(minutes=15)


def test_processes_that_restored_their_share_wait_for_the_others_for_days(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda name, **how: asked.append(how))
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    distributed.join_ranks(Runtime(torch.device("cuda:1"), rank=1, world=2))
    assert [one["timeout"] for one in asked] == [store.timeout] == [timedelta(days=30)]


def test_a_single_process_never_waits() -> None:
    join_training(Runtime(torch.device("cpu")))
    assert not dist.is_initialized()
    assert any_rank(True, torch.device("cpu"))
    assert not any_rank_after_validation(False)
    runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    assert agree_on_precision(runtime) is runtime


def test_a_training_does_not_join_the_process_group_of_a_calling_program() -> None:
    """It would mix its gradients with those of the program, and end the program's group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for world in (1, 2):
            with pytest.raises(UsageError, match="is in a process group of torch") as caught:
                join_training(Runtime(torch.device("cpu"), world=world))
            assert "a process of its own" in (caught.value.hint or "")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_training_that_follows_a_failed_one_uses_its_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group(backend="gloo")
    monkeypatch.setattr(distributed, "_patient_groups", [group])
    join_training(Runtime(torch.device("cpu")))
    assert distributed._patient_groups == [group]
    distributed.destroy_process_group()
    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:  # not that of the training, which has left it
        with pytest.raises(UsageError, match="is in a process group of torch"):
            join_training(Runtime(torch.device("cpu")))
    finally:
        dist.destroy_process_group()


def test_several_processes_do_not_train_on_apple_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that connects them, gloo, has no reductions there."""
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
    with pytest.raises(UsageError, match="cannot train together on Apple GPUs"):
        join_training(Runtime(torch.device("mps"), rank=0, world=2))
    assert not dist.is_initialized()


UNLIKE = """
import os
import torch
from c2fdft_cli.errors import UsageError
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.distributed import join_training

rank = int(os.environ["RANK"])
try:
    join_training(Runtime(torch.device(("cuda:0", "cpu")[rank]), rank=rank, world=2))
except UsageError as error:
    assert "(process 0: cuda, process 1: cpu)" in str(error), error
    assert "CUDA_VISIBLE_DEVICES" in error.hint
else:
    raise AssertionError("joined")
"""


@pytest.mark.acceptance
def test_processes_with_and_without_a_gpu_do_not_wait_for_one_another(tmp_path: Path) -> None:
    run_in_two_processes(UNLIKE, tmp_path)


AGAIN = """
import os
import torch
from c2fdft_cli.execution import distributed
from c2fdft_cli.execution.device import Runtime

rank = int(os.environ["RANK"])
runtime = Runtime(torch.device("cpu"), rank=rank, world=2)
joins = (distributed.join_training, distributed.join_ranks)
for number, join in enumerate((*joins, *joins)):
    join(runtime)
    assert distributed.all_reduce_min(number + rank, runtime.device) == number
    distributed.barrier()
    distributed.destroy_process_group()
"""


@pytest.mark.acceptance
def test_one_job_after_another_in_the_same_processes(tmp_path: Path) -> None:
    """Without its own store the second job would find addresses of sockets that are closed."""
    run_in_two_processes(AGAIN, tmp_path)


def test_several_processes_need_an_address_to_meet_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    runtime = Runtime(torch.device("cpu"), rank=1, world=2)
    for port in (None, "none", "99999999"):
        monkeypatch.delenv("MASTER_PORT", raising=False)
        if port is not None:
            monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(UsageError, match="have no address to meet at") as caught:
            join_training(runtime)
        assert "torchrun" in str(caught.value.hint)


def test_processes_that_do_not_join_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_MEETING_PATIENCE", timedelta(seconds=1))
    with socket.socket() as taken:  # on a port in use no store can be created
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = ("127.0.0.1", str(taken.getsockname()[1]))
        for name, value in zip(("MASTER_ADDR", "MASTER_PORT"), place, strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ResourceError, match=f"did not join at {':'.join(place)}"):
            join_training(Runtime(torch.device("cpu"), rank=0, world=2))


MEET = """
import sys
from c2fdft_cli.signals import install

if sys.argv[1] == "command":
    install()
import torch
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.distributed import join_ranks

print("meeting", flush=True)
join_ranks(Runtime(torch.device("cpu"), rank=1, world=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        ("command", signal.SIGTERM, 143),
        pytest.param("program", signal.SIGINT, -signal.SIGINT, marks=pytest.mark.acceptance),
    ],
)
def test_a_signal_ends_a_process_that_waits_for_the_others(
    tmp_path: Path, kind: str, number: int, code: int
) -> None:
    script = tmp_path / "meet.py"
    script.write_text(MEET)
    with socket.socket() as silent:  # accepts connections and never replies
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent.getsockname()[1])}
        env = {**os.environ, **place, "RANK": "1", "WORLD_SIZE": "2"}
        process = start(script, kind, env=env, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "meeting\n"
            time.sleep(0.5)
            process.send_signal(number)
            assert process.wait(30) == code
        finally:
            process.kill()
            process.communicate()


AGREE = """
import os
import torch
from c2fdft_cli.execution import distributed
from c2fdft_cli.execution.device import Runtime

rank, cpu = int(os.environ["RANK"]), torch.device("cpu")
dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# a CPU refuses fp16, which one of these processes has
distributed.with_precision = lambda was, name, stated_by: Runtime(cpu, dtypes[name], rank, 2)
cases = (("bf16", "fp16", "fp16"), ("fp16", "bf16", "fp16"), ("bf16", "fp32", "fp32"),
         ("bf16", "bf16", "bf16"))
for *own, expected in cases:
    runtime = Runtime(cpu, dtypes[own[rank]], rank, 2)
    distributed.join_training(runtime)
    agreed = distributed.agree_on_precision(runtime)
    assert agreed.precision == expected
    assert (agreed.precision_note is None) == (own[rank] == expected)
distributed.destroy_process_group()
"""


@pytest.mark.acceptance
def test_processes_on_different_gpus_agree_on_one_precision(tmp_path: Path) -> None:
    run_in_two_processes(AGREE, tmp_path)


WAIT = """
import sys, time
from datetime import timedelta
from c2fdft_cli.execution import distributed
from c2fdft_cli.execution.device import make_runtime

distributed._TRAINING_PATIENCE = timedelta(seconds=3)
runtime = make_runtime("cpu", "fp32")
distributed.join_training(runtime)
assert distributed.any_rank(runtime.is_main, runtime.device)
if runtime.is_main:
    time.sleep(8)
if sys.argv[1] == "validation":
    assert distributed.any_rank_after_validation(runtime.is_main)
else:
    distributed.any_rank(True, runtime.device)
distributed.destroy_process_group()
"""


@pytest.mark.acceptance
@pytest.mark.parametrize(("kind", "works"), [("validation", True), ("step", False)])
def test_validation_may_take_longer_than_a_step(tmp_path: Path, kind: str, works: bool) -> None:
    script = tmp_path / "wait.py"
    script.write_text(WAIT)
    done = torchrun(script, kind)
    assert (done.returncode == 0) is works, done.stderr
    assert ("imed out" in done.stderr) is not works
