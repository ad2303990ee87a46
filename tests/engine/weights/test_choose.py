"""choose_weights: which weights --weights and --task select."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.engine.weights.choose import ChosenWeights, choose_weights, find_path, packaged_file
from c2fdft_cli.errors import CheckpointError, UsageError
from tests.kit.weights import FACTS, package, packaged_once

SCORE = FACTS["scores"][0]


@pytest.fixture
def three(
    packaged: Path, tiny_net: Callable[..., DFT], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    def package_all(folder: Path) -> None:
        four = [999, 750, 500, 250]
        package(folder, "derain", tiny_net(), [500], formerly=["derain-fast"])
        package(folder, "derain-4step", tiny_net(), four, seconds_per_megapixel=25)
        package(folder, "denoise", tiny_net(), [500], task="denoise")

    packaged_once(tmp_path_factory, "three_packages", packaged, package_all)
    return packaged


def test_a_file_is_used_directly(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"x")
    assert choose_weights(str(path)).path == path


def test_a_missing_file_is_left_to_the_reader() -> None:
    assert choose_weights("missing.pt").path == Path("missing.pt")


@pytest.mark.usefixtures("packaged")
def test_without_weights_the_hint_says_how_to_get_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "derain-fine"
    run.mkdir(parents=True)
    (run / "fine.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no packaged weights for the task derain") as caught:
        choose_weights(None)
    assert str(caught.value.hint).endswith("(packaged: none)")
    assert "c2fdft train-coarse" in "\n".join(caught.value.details)
    assert "c2fdft demo" in "\n".join(caught.value.details)


@pytest.mark.usefixtures("packaged")
def test_a_name_without_packaged_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match="there are no packaged weights 'derain'") as caught:
        choose_weights("derain")
    assert caught.value.hint == "packaged: none (or give a file)"


def test_names_and_tasks_select_packaged_weights(three: Path) -> None:
    assert (
        choose_weights("derain").path == choose_weights(None, "derain").path == three / "derain.pt"
    )
    assert (
        choose_weights("derain-4step").path
        == packaged_file("derain-4step")
        == three / "derain-4step.pt"
    )
    assert choose_weights(None, "denoise").path == three / "denoise.pt"
    assert choose_weights("denoise").remarks == []
    assert choose_weights(None, "denoise").remarks == [
        "weights: denoise, 1 sampling step (the default)"
    ]


def test_steps_choose_among_the_weights_of_a_task(three: Path) -> None:
    assert choose_weights(None).path == choose_weights(None, steps=1).path == three / "derain.pt"
    four = choose_weights(None, steps=4)
    assert four.path == three / "derain-4step.pt"
    said = "weights: derain-4step, 4 sampling steps (for --steps 4); derain: 1 sampling step, 0.5"
    assert four.remarks[0].startswith(said)
    # no weights were trained for seven steps: the best weights sample in seven
    assert choose_weights(None, steps=7).path == three / "derain.pt"


def test_a_former_name_gives_a_notice(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = choose_weights("derain-fast")
    assert found.path == three / "derain.pt"
    assert found.remarks == ["weights: derain-fast is now named derain"]
    assert packaged_file("derain-fast") == three / "derain.pt"
    assert find_path("derain-fast") == found
    Path("derain-fast").write_bytes(b"x")  # the former name may be that of a file
    assert choose_weights("derain-fast").path == Path("derain-fast")
    assert find_path("derain-fast") == ChosenWeights(Path("derain-fast"))


@pytest.mark.parametrize(
    ("one", "four", "first"),
    [(36.0, 35.0, "one"), (36.0, 36.05, "one"), (36.0, 36.11, "four"), (36.0, 36.0, "one")],
)
def test_the_best_weights_are_the_default_and_among_equals_the_cheaper(
    packaged: Path, tiny_net: Callable[..., DFT], one: float, four: float, first: str
) -> None:
    for name, psnr, grid in (("one", one, [500]), ("four", four, [999, 750, 500, 250])):
        scores = [{**SCORE, "psnr": psnr}, {**SCORE, "set": f"only {name}", "psnr": 50.0}]
        package(packaged, name, tiny_net(), grid, scores=scores)
    assert choose_weights(None).path == packaged / f"{first}.pt"


def test_the_default_is_derain_with_a_note_on_the_others(three: Path) -> None:
    found = choose_weights(None)
    assert found.path == three / "derain.pt"
    assert found.remarks == [
        "weights: derain, 1 sampling step (the default); derain-4step: 4 sampling steps, "
        "2 times the time; --task denoise for other degradations"
    ]


def test_a_task_uses_any_weights_for_it(packaged: Path, tiny_net: Callable[..., DFT]) -> None:
    package(packaged, "denoise-new", tiny_net(), [500], task="denoise")
    assert choose_weights(None, "denoise").path == packaged / "denoise-new.pt"
    with pytest.raises(CheckpointError) as caught:
        choose_weights(None)
    assert "(packaged: denoise-new)" in str(caught.value.hint)


@pytest.mark.usefixtures("three")
def test_a_task_without_weights_names_what_exists() -> None:
    with pytest.raises(CheckpointError, match="for the task deblur") as caught:
        choose_weights(None, "deblur")
    assert "(packaged: derain, derain-4step, denoise)" in str(caught.value.hint)
    assert caught.value.exit_code == 4
    assert "--recipe deblur" in caught.value.details[0]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("find", "name", "hint"),
    [
        (choose_weights, "derian", "did you mean derain? (or give a file)"),
        (packaged_file, "Derain-4stpe", "did you mean derain-4step?"),
        (packaged_file, "xyz", "packaged: derain, derain-4step, denoise"),
    ],
)
def test_unknown_names_are_refused(find: Callable[[str], Path], name: str, hint: str) -> None:
    with pytest.raises(CheckpointError, match=f"there are no packaged weights {name!r}") as caught:
        find(name)
    assert caught.value.hint == hint


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match="got 'denoize'") as caught:
        choose_weights(None, "denoize")
    assert caught.value.hint == "did you mean denoise?"
    with pytest.raises(UsageError, match="--weights cannot be combined with --task"):
        choose_weights("derain", "derain")


def test_a_file_with_a_packaged_name_is_used_only_by_its_path(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert choose_weights("derain").remarks == []
    Path("derain").write_bytes(b"x")
    found = choose_weights("derain")
    assert found.path == three / "derain.pt"
    assert found.remarks == [
        "weights: derain is packaged; for the file of this name, give ./derain"
    ]
    assert choose_weights("./derain").path == Path("derain")
    assert find_path("derain") == found
    assert find_path("./derain") == ChosenWeights(Path("derain"))
    Path("derain-4step").mkdir()
    (said,) = find_path("derain-4step").remarks
    assert said.endswith("is packaged; for the folder of this name, give ./derain-4step")
    assert choose_weights("derain-4step").remarks == []


@pytest.mark.usefixtures("three")
def test_a_path_may_be_nearly_a_packaged_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for spec in ("other", "./derian", "derian.pt", "runs/derian"):
        assert find_path(spec) == ChosenWeights(Path(spec))
    with pytest.raises(CheckpointError, match="there are no packaged weights 'derian'") as caught:
        find_path("derian")
    assert caught.value.hint == "did you mean derain? (or give a path)"
    Path("derian").mkdir()
    assert find_path("derian") == ChosenWeights(Path("derian"))
    with pytest.raises(UsageError, match="the path is empty"):
        find_path("")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("spec", ["a" * 300, "a" * 300 + ".pth", "a\0b", "a\0b.pth"])
def test_names_that_no_file_can_have_are_refused(spec: str) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(choose_weights(spec).path)
