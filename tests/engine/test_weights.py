"""find_weights: what --weights may stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2fdft_cli.engine import weights
from c2fdft_cli.engine.weights import find_weights
from c2fdft_cli.errors import CheckpointError


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"x")
    assert find_weights(str(path)) == path


def test_a_missing_file_is_left_to_the_reader() -> None:
    assert find_weights("missing.pt") == Path("missing.pt")


def test_nothing_chosen_says_how_to_get_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "derain-fine"
    run.mkdir(parents=True)
    (run / "fine.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no weights") as caught:
        find_weights(None)
    assert "c2fdft train-coarse" in "\n".join(caught.value.details)
    assert "c2fdft demo" in "\n".join(caught.value.details)


@pytest.mark.parametrize(("spec", "task"), [("derain", None), (None, "derain")])
def test_an_unknown_name_is_an_error_that_lists(spec: str | None, task: str | None) -> None:
    with pytest.raises(CheckpointError, match=r"no weights of this name - derain .*none are"):
        find_weights(spec, task)


def test_packaged_weights_are_found_by_name_and_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "packaged_weights", lambda: {"derain": Path("d.pt")})
    assert find_weights("derain") == find_weights(None, "derain") == Path("d.pt")
    with pytest.raises(CheckpointError, match="names: derain"):
        find_weights("deblur")
