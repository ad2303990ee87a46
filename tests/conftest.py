"""Shared fixtures: networks by formula, the official program's numbers, pairs and shards."""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.sharing import check_data, made_once

# torch is not imported here: the process that only hands out tests to others starts without it
if TYPE_CHECKING:
    from c2fdft_cli.core.network import DFT

NUMBERS = Path(__file__).parent / "numbers"

# the faults are made with forks and signals that Windows does not have
collect_ignore = ["faults"] if sys.platform == "win32" else []

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also in the processes that tests start
# images of containers may set it; each program that the tests start would compile the package anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# With this, which images of containers set too, a full disk is noticed when something is printed;
# for a user it is noticed when Python writes its buffer, at the end.
os.environ.pop("PYTHONUNBUFFERED", None)
sys.dont_write_bytecode = False
# Waiting for the disk took a tenth of a run, and no test cuts the power. A descriptor that cannot
# be synced is still an error, and the programs that tests start sync their files.
os.fsync = os.fstat


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a run that lacks required data; handle SIGINT although a shell may have it ignored."""
    gc.disable()  # until all tests are collected, which leaves millions of objects and no garbage
    # Let libraries take themselves apart; Triton's would report what is left as leaks. Not earlier,
    # because pytest itself collects garbage at its end, several times.
    atexit.register(gc.unfreeze)
    check_data(os.environ)
    if config.getoption("dist", "no") == "no":  # this process runs tests itself
        _prepare_torch()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let the collector look at what tests make only: all that is there took it 10 % of a run."""
    gc.freeze()
    gc.enable()


def _prepare_torch() -> None:
    """Use one thread, as tests run in parallel, and Triton's interpreter without a GPU."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if not torch.cuda.is_available():  # read by Triton when it is imported
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the names of the skipped tests into the file that C2FDFT_SKIPPED names, if it does.

    `.ci/run` runs them again once the extras that they may need are installed.
    """
    target = os.environ.get("C2FDFT_SKIPPED")
    if target:
        names = {report.nodeid for report in terminalreporter.stats.get("skipped", [])}
        Path(target).write_text("".join(f"{name}\n" for name in sorted(names)))


@pytest.fixture(scope="session")
def tiny_net() -> Callable[..., DFT]:
    """Return a function that makes a small network with weights by formula."""
    from c2fdft_cli.core.network import DFT
    from tests.kit.formula import fill

    def make(**changes: Any) -> DFT:
        arguments: dict[str, Any] = {"dim": 8, "blocks": (1, 1, 1, 1), **changes}
        return fill(DFT(**arguments))

    return make


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matplotlib seem to be missing: drawing a plot takes as long as ten training steps."""
    if "plots" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def plots() -> None:
    """Draw the plots of trainings and sweeps after all; skips the test without matplotlib."""
    pytest.importorskip("matplotlib")


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the installed folder of packaged weights."""
    from c2fdft_cli.engine.weights import catalogue as weights_catalogue

    folder = tmp_path / "packaged"
    folder.mkdir()
    monkeypatch.setattr(weights_catalogue, "weights_folder", lambda: folder)
    return folder


@pytest.fixture(scope="session")
def ramp() -> dict[str, Any]:
    """The official program's outputs for networks with weights by formula."""
    import numpy as np
    import torch

    cases = json.loads((NUMBERS / "ramp.json").read_text())
    with np.load(NUMBERS / "ramp.npz") as arrays:
        for name, case in cases.items():
            for key in ("output", "final"):
                if f"{name}.{key}" in arrays:
                    case[key] = torch.tensor(arrays[f"{name}.{key}"])
    return cases


@pytest.fixture(scope="session")
def misc() -> dict[str, Any]:
    """The official program's schedules, losses, metrics, learning rates and patch cycles."""
    import numpy as np
    import torch

    numbers = json.loads((NUMBERS / "misc.json").read_text())
    with np.load(NUMBERS / "misc.npz") as arrays:
        numbers["arrays"] = {key: torch.tensor(arrays[key]) for key in arrays}
    return numbers


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The folder of reference.pt; skips the test if it is not set."""
    folder = os.environ.get("C2FDFT_REFERENCE")
    if not folder:
        pytest.skip("C2FDFT_REFERENCE is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pairs, `{train,val}/{rainy,clean}/*.png`, two of them for validation."""
    return made_once(tmp_path_factory, "pairs", _write_pairs)


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory, pair_folder: Path) -> Path:
    """The shards prepared from `pair_folder`."""
    from c2fdft_cli.engine.prepare.job import prepare
    from c2fdft_cli.engine.prepare.options import PrepareOptions

    def pack(folder: Path) -> None:
        prepare(PrepareOptions(source=pair_folder, out=folder)).run()

    return made_once(tmp_path_factory, "shards", pack)


def _write_pairs(root: Path) -> None:
    import numpy as np

    from c2fdft_cli.data.images.picture import save_rgb8
    from tests.kit.formula import picture

    for split, count in (("train", 10), ("val", 2)):
        for kind in ("rainy", "clean"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            gt = picture(40 + 8 * (number % 3), 56, number + 100 * (split == "val"))
            save_rgb8(root / split / "clean" / f"{number}.png", gt)
            lq = np.clip(
                gt.astype(int) + 40 * (np.arange(56) % 7 == number % 7)[None, :, None], 0, 255
            )
            save_rgb8(root / split / "rainy" / f"{number}.png", lq.astype(np.uint8))
