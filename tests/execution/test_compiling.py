"""When torch.compile is worth its warm-up."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from c2fdft_cli.execution import compiling
from c2fdft_cli.execution.compiling import MUCH_WORK, compile_in_place, compiles_strips
from c2fdft_cli.execution.device import Runtime

CPU, CUDA = Runtime(torch.device("cpu")), Runtime(torch.device("cuda"))


@pytest.fixture(autouse=True)
def compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the machine is said to have; both kinds to begin with."""
    there = ["g++", "triton"]

    def find(name: str) -> str | None:
        return name if name in there else None

    util = SimpleNamespace(find_spec=find)
    monkeypatch.setattr(compiling, "shutil", SimpleNamespace(which=find))
    monkeypatch.setattr(compiling, "importlib", SimpleNamespace(util=util))
    with torch._dynamo.config.patch(suppress_errors=False):
        yield there


@pytest.mark.parametrize(
    ("setting", "runtime", "work", "compiled"),
    [
        ("auto", CPU, 100 * MUCH_WORK, False),
        ("auto", CUDA, MUCH_WORK - 1, False),
        ("auto", CUDA, MUCH_WORK, True),
        ("off", CUDA, 100 * MUCH_WORK, False),
        ("on", CPU, 1, True),
        ("on", CUDA, 1, True),
    ],
)
def test_restoring(setting: str, runtime: Runtime, work: int, compiled: bool) -> None:
    assert compiles_strips(setting, runtime, work) == (compiled, None)
    # what cannot be compiled then runs uncompiled
    assert torch._dynamo.config.suppress_errors is compiled


@pytest.mark.parametrize(("runtime", "lacking"), [(CPU, "a C++ compiler"), (CUDA, "triton")])
def test_no_compiler(runtime: Runtime, lacking: str, compilers: list[str]) -> None:
    compilers.clear()
    compiled, notice = compiles_strips("on", runtime, 1)
    assert not compiled
    assert notice is not None
    assert lacking in notice
    net = torch.nn.Identity()
    assert compile_in_place(net, "on", runtime) == notice
    assert net._compiled_call_impl is None


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor, on import
def test_training_compiles_where_it_pays() -> None:
    for setting, runtime, compiled in (
        ("auto", CPU, False),
        ("auto", CUDA, True),
        ("on", CPU, True),
        ("off", CUDA, False),
    ):
        net = torch.nn.Identity()
        assert compile_in_place(net, setting, runtime) is None
        assert (net._compiled_call_impl is not None) is compiled
