"""find_weights: what --weights and --task may stand for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from c2fdft_cli.core.network import DFT
from c2fdft_cli.engine.weights.choose import choose_weights, find_path, find_weights, packaged_file
from c2fdft_cli.errors import CheckpointError, UsageError
from tests.kit.weights import package


@pytest.fixture
def three(packaged: Path, tiny_net: Callable[..., DFT]) -> Path:
    package(packaged, "derain", tiny_net(), [999, 750, 500, 250])
    package(packaged, "derain-fast", tiny_net(), [500])
    package(packaged, "denoise", tiny_net(), [500], task="denoise")
    return packaged


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"x")
    assert find_weights(str(path)) == path


def test_a_missing_file_is_left_to_the_reader() -> None:
    assert find_weights("missing.pt") == Path("missing.pt")


@pytest.mark.usefixtures("packaged")
def test_nothing_chosen_says_how_to_get_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "derain-fine"
    run.mkdir(parents=True)
    (run / "fine.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no packaged weights for the task derain") as caught:
        find_weights(None)
    assert str(caught.value.hint).endswith("(packaged: none)")
    assert "c2fdft train-coarse" in "\n".join(caught.value.details)
    assert "c2fdft demo" in "\n".join(caught.value.details)


@pytest.mark.usefixtures("packaged")
def test_a_name_without_packaged_weights() -> None:
    with pytest.raises(CheckpointError, match="there are no packaged weights 'derain'") as caught:
        find_weights("derain")
    assert caught.value.hint == "packaged: none; or give a file"


def test_names_and_tasks(three: Path) -> None:
    assert find_weights("derain") == find_weights(None, "derain") == three / "derain.pt"
    assert find_weights("derain-fast") == packaged_file("derain-fast") == three / "derain-fast.pt"
    assert find_weights(None, "denoise") == three / "denoise.pt"
    assert choose_weights(None, "denoise").remarks == choose_weights("denoise").remarks == []


def test_the_default_is_derain_and_names_the_others(three: Path) -> None:
    found = choose_weights(None)
    assert found.path == three / "derain.pt"
    assert found.remarks == [
        "weights: derain (the default); others: derain-fast, denoise (--weights NAME, or --task)"
    ]


def test_a_task_takes_any_weights_for_it(packaged: Path, tiny_net: Callable[..., DFT]) -> None:
    package(packaged, "denoise-fast", tiny_net(), [500], task="denoise")
    assert find_weights(None, "denoise") == packaged / "denoise-fast.pt"
    with pytest.raises(CheckpointError) as caught:
        find_weights(None)
    assert "(packaged: denoise-fast)" in str(caught.value.hint)


@pytest.mark.usefixtures("three")
def test_a_task_without_weights_names_what_exists() -> None:
    with pytest.raises(CheckpointError, match="for the task deblur") as caught:
        find_weights(None, "deblur")
    assert "(packaged: derain, derain-fast, denoise)" in str(caught.value.hint)
    assert caught.value.exit_code == 4
    assert "--recipe deblur" in caught.value.details[0]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("find", "name", "hint"),
    [
        (find_weights, "derian", "did you mean derain?; or give a file"),
        (packaged_file, "Derain-Fats", "did you mean derain-fast?"),
        (packaged_file, "xyz", "packaged: derain, derain-fast, denoise"),
    ],
)
def test_wrong_names(find: Callable[[str], Path], name: str, hint: str) -> None:
    with pytest.raises(CheckpointError, match=f"there are no packaged weights {name!r}") as caught:
        find(name)
    assert caught.value.hint == hint


def test_wrong_tasks() -> None:
    with pytest.raises(UsageError, match="got 'denoize'") as caught:
        find_weights(None, "denoize")
    assert caught.value.hint == "did you mean denoise?"
    with pytest.raises(UsageError, match="--weights cannot be combined with --task"):
        find_weights("derain", "derain")


def test_a_file_of_the_name_is_taken_by_its_path_alone(
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
    assert find_weights("./derain") == Path("derain")
    assert find_path("derain") == three / "derain.pt"
    assert find_path("./derain") == Path("derain")
    assert find_path("other") == Path("other")
