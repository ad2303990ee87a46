"""The exceptions: one line and one exit code each."""

from __future__ import annotations

import errno
import pickle
import tempfile
from pathlib import Path

import pytest

from c2fdft_cli import errors
from c2fdft_cli.files.failures import read_error, write_error
from c2fdft_cli.files.writing import TakenError


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("C2fdftError", 1),
        ("UsageError", 2),
        ("RecipeError", 2),
        ("DataError", 3),
        ("CheckpointError", 4),
        ("ResourceError", 5),
        ("PartialFailure", 6),
    ],
)
def test_each_error_has_its_exit_code(name, code):
    assert getattr(errors, name)("what").exit_code == code
    assert name in errors.__doc__


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_each_signal_has_its_exit_code(number, code):
    assert errors.Interrupted("stopped", signal_number=number).exit_code == code


def test_an_error_is_one_line():
    error = errors.DataError("what", where="here", hint="try", details=["a", "b"])
    assert str(error) == "here: what"
    assert error.hint == "try"
    assert error.details == ("a", "b")
    assert str(errors.DataError("what")) == "what"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_a_lack_of_resources(code):
    error = OSError(code, "Too many open files", "a.png")
    for known in (
        errors.too_many_files(error),
        read_error(error, "a.png"),
        write_error(error, Path("a.png")),
    ):
        assert known.exit_code == 5
        assert "ulimit -n" in known.hint
    assert str(read_error(error, "a.png")) == "a.png: too many files are open"
    assert errors.too_many_files(OSError(errno.EIO, "")) is None


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:2. This is"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("[-1] Broken pipe"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (BrokenPipeError("Broken pipe"), False),  # of the program's own stdout
    ],
)
def test_errors_of_a_lost_peer_process_are_recognised(error, lost):
    found = errors.lost_process(error)
    assert (found is not None) == lost
    assert found is None or found.exit_code == 5


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"), True),
        (RuntimeError("Triton Error [CUDA]: unspecified launch failure"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("the shapes do not fit; CUDA error: none"), False),
        (ValueError("CUDA error: of another kind"), False),
    ],
)
def test_faults_of_the_gpu_are_recognised(error, failed):
    found = errors.gpu_failure(error)
    assert (found is not None) == failed
    if found is not None:
        assert found.exit_code == 5
        assert str(found) == f"the GPU failed: {str(error).splitlines()[0]}"
        assert "C2FDFT_KERNELS=off" in found.hint


@pytest.mark.parametrize(
    ("error", "limited"),
    [
        (RuntimeError("can't start new thread"), True),
        (BlockingIOError(11, "Resource temporarily unavailable"), True),
        (BlockingIOError(11, "Resource temporarily unavailable", "a file"), False),
        (RuntimeError("another"), False),
    ],
)
def test_a_limit_of_threads_is_recognised(error, limited):
    found = errors.no_more_threads(error)
    assert (found is not None) == limited
    assert found is None or found.exit_code == 5


def test_a_lack_of_folders_for_temporary_files_is_recognised(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    found = errors.no_temporary_folder(caught.value)
    assert found.exit_code == 5
    assert "TMPDIR" in found.hint
    assert errors.no_temporary_folder(FileNotFoundError(2, "No such file or directory")) is None


def subclasses(kind=errors.C2fdftError):
    return [kind, *(one for direct in kind.__subclasses__() for one in subclasses(direct))]


def test_errors_keep_their_attributes_in_another_process():
    """A process pool pickles them; one that cannot be unpickled breaks it or lets it hang."""
    made = [TakenError(Path("a.png")), errors.Interrupted("wrong", signal_number=15)]
    known = [one for one in subclasses() if one not in map(type, made)]
    for error in (*made, *(kind("wrong", hint="try", where="a.png") for kind in known)):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
        assert again.exit_code == error.exit_code
