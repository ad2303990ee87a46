"""When torch.compile is used, and when it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from c2fdft_cli.core.block import Block
from c2fdft_cli.core.network import DFT
from c2fdft_cli.execution import compiling
from c2fdft_cli.execution.compiling import (
    MOST_GRAPHS,
    MUCH_WORK,
    allow_failures,
    compile_in_place,
    compiles_strips,
    functions_given_up,
    is_compiled,
    missing_compiler,
    run_uncompiled,
    uncompiled,
)
from c2fdft_cli.execution.device import Runtime
from c2fdft_cli.execution.surroundings import usual_settings

CPU, CUDA = Runtime(torch.device("cpu")), Runtime(torch.device("cuda"))

# torch 2.7 introduced the first name
LIMITS = [
    name for name in ("recompile_limit", "cache_size_limit") if hasattr(torch._dynamo.config, name)
]


@pytest.fixture(autouse=True)
def compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The compilers that the machine appears to have, initially all."""
    there = ["g++", "cc", "triton"]

    def find(name: str) -> str | None:
        return name if name in there else None

    util = SimpleNamespace(find_spec=find)
    monkeypatch.setattr(compiling, "shutil", SimpleNamespace(which=find))
    monkeypatch.setattr(compiling, "importlib", SimpleNamespace(util=util))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    with torch._dynamo.config.patch(suppress_errors=False, **dict.fromkeys(LIMITS, 8)):
        yield there
    logger.setLevel(level)


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
def test_restoring_compiles_if_requested_or_worthwhile(
    setting: str, runtime: Runtime, work: int, compiled: bool
) -> None:
    assert compiles_strips(setting, runtime, work) == (compiled, None)
    # functions that cannot be compiled then run uncompiled
    assert torch._dynamo.config.suppress_errors is compiled
    limits = {getattr(torch._dynamo.config, name) for name in LIMITS}
    assert limits == {MOST_GRAPHS if compiled else 8}


def test_settings_of_torch_compile_last_as_long_as_a_programs_call() -> None:
    def now() -> tuple[object, ...]:
        config, logger = torch._dynamo.config, logging.getLogger("torch._dynamo")
        return (config.suppress_errors, *(getattr(config, one) for one in LIMITS), logger.level)

    before = now()
    changed = (True, *(MOST_GRAPHS for _ in LIMITS), logging.CRITICAL)
    with usual_settings():
        assert compiles_strips("on", CPU, 1) == (True, None)
        assert now() == changed
    assert now() == before
    with usual_settings():
        allow_failures()
        allow_failures()
        assert now() == changed
    assert now() == before


def test_with_our_own_kernels_nothing_is_compiled_unless_requested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "are_tried", lambda *_: True)
    assert compiles_strips("auto", CUDA, MUCH_WORK) == (False, None)
    assert compiles_strips("on", CUDA, MUCH_WORK) == (True, None)


@pytest.mark.parametrize(("runtime", "lacking"), [(CPU, "a C++ compiler"), (CUDA, "triton")])
def test_a_missing_compiler_is_reported(
    runtime: Runtime, lacking: str, compilers: list[str]
) -> None:
    compilers.clear()
    compiled, notice = compiles_strips("on", runtime, 1)
    assert not compiled
    assert notice is not None
    assert lacking in notice
    net = DFT(dim=8, blocks=(1, 1, 1, 1))
    assert compile_in_place(net, "on", runtime) == notice
    assert not is_compiled(net)


@pytest.mark.parametrize(
    ("capability", "dtype", "lacking"),
    [
        ((6, 1), torch.float16, "a GPU of compute capability 7.0"),
        ((7, 5), torch.float16, None),
        ((7, 5), torch.bfloat16, "a GPU of compute capability 8.0 for bf16"),
        ((8, 0), torch.bfloat16, None),
    ],
)
def test_cards_that_triton_serves(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    lacking: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert missing_compiler(Runtime(torch.device("cuda"), dtype)) == lacking


def test_triton_needs_a_c_compiler(compilers: list[str]) -> None:
    compilers.remove("cc")
    assert missing_compiler(CUDA) == "a C compiler for Triton's launchers"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_functions_that_are_no_longer_compiled_are_counted() -> None:
    """Beyond its limit of shapes, a function silently runs uncompiled."""
    before = functions_given_up()
    double = torch.compile(lambda x: 2 * x, dynamic=False, backend="eager")
    with torch._dynamo.config.patch(suppress_errors=True, **dict.fromkeys(LIMITS, 2)):
        for size in (2, 3):
            double(torch.ones(size))
        assert functions_given_up() == before
        assert torch.equal(double(torch.ones(4)), torch.full((4,), 2.0))
    assert functions_given_up() == before + 1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by inductor on import
def test_training_compiles_on_cuda_or_if_requested() -> None:
    for setting, runtime, compiled in (
        ("auto", CPU, False),
        ("auto", CUDA, True),
        ("on", CPU, True),
        ("off", CUDA, False),
    ):
        net = DFT(dim=8, blocks=(1, 2, 1, 1))
        assert compile_in_place(net, setting, runtime) is None
        assert is_compiled(net) is compiled
        blocks = [m._compiled_call_impl for m in net.modules() if isinstance(m, Block)]
        assert all((call is not None) is compiled for call in blocks)
        assert net._compiled_call_impl is None
        with uncompiled(net):
            assert not is_compiled(net)
        assert is_compiled(net) is compiled
        run_uncompiled(net)
        assert not is_compiled(net)
