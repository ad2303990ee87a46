"""The live view of a training, at several widths."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from c2fdft_cli.cli.views.train import TrainView, describe
from c2fdft_cli.engine.train.events import Begun, StepDone, Validated
from c2fdft_cli.engine.train.setup import set_up
from tests.kit.training import request


def step(number: int, *, batch: int = 8, lr: float = 1e-4, memory: int = 900 << 20) -> StepDone:
    return StepDone(number, 96, batch, 0.25, 1.0, lr, False, 0.5, 0.0, memory)


@pytest.fixture
def options(tmp_path: Path, shard_folder: Path):
    return set_up(request("coarse", shard_folder, tmp_path / "run"))


def lines(view: TrainView, screen: Console) -> list[str]:
    with screen.capture() as capture:
        screen.print(view)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get()).splitlines()


@pytest.mark.parametrize("width", [40, 64, 66, 80, 120])
def test_the_layout_is_stable_while_values_change(options, width: int) -> None:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True)
    view = TrainView(options, 0, screen)
    view.take(step(1))
    few = lines(view, screen)
    for number in range(2, 60):
        view.take(step(number, batch=128, lr=1.23e-5, memory=17 << 30))
    view._best = Validated(270000, 31.52, 0.9, "derain", 4, True)
    many = lines(view, screen)
    assert len(few) == len(many)
    assert max(map(len, many)) <= width - 2  # a terminal shows ^C after the last line
    for name in ("precision", "memory", "best", "images/s", "data wait", "patch"):
        places = [[line.find(name) for line in drawn] for drawn in (few, many)]
        assert places[0] == places[1], name
        assert max(places[0]) > 0
    assert "31.52 dB at 270000" in " ".join(many)


def test_a_resumed_run_continues_its_bar(options) -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    assert options.section.iterations == 12
    view = TrainView(options, 3, screen)
    assert " 3/12  25%" in lines(view, screen)[1]
    view.take(step(4))
    assert " 4/12  33%" in lines(view, screen)[1]


def test_the_best_score_before_a_run_was_resumed_is_shown(options) -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    view = TrainView(options, 3, screen)
    begun = Begun(Path("shards/mine"), 1, 2, 970094, 35, 210, "cpu", "fp32")
    for best, shown in ((None, "best       -"), (21.504, "best       21.50 dB")):
        view.take(replace(begun, best_psnr=best))
        view.take(step(36))
        assert shown in " ".join(lines(view, screen))
    view.take(Validated(40, 22.0, 0.9, "derain", 4, True))
    assert "best       22.00 dB at 40" in " ".join(lines(view, screen))


def test_a_run_begins_with_a_description_of_the_training() -> None:
    begun = Begun(Path("shards/mine"), 1, 2, 970094, 35, 210, "cpu", "fp32")
    assert describe(begun) == (
        "1 training image and 2 for validation (shards/mine); 970,094 parameters; "
        "steps 36 to 210 on cpu, fp32"
    )
    done = replace(begun, step=210)
    assert describe(done).endswith("970,094 parameters; no step is left on cpu, fp32")


def test_the_mean_loss_excludes_skipped_steps(options) -> None:
    screen = Console(file=io.StringIO(), width=120, force_terminal=True)
    view = TrainView(options, 0, screen)
    view.take(replace(step(1), loss=9.0, skipped=True))
    assert any("nan" in line for line in lines(view, screen)), "none to take the mean of"
    for number, loss in ((2, 0.2), (3, 0.4)):
        view.take(replace(step(number), loss=loss))
    assert any("0.3000" in line for line in lines(view, screen))
