"""Run commands in the test process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from c2fdft_cli.cli.app import app


def run(*words: object, stdin: bytes | None = None) -> Any:
    """Run one command; return Typer's result with `exit_code`, `stdout` and `stderr`."""
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def refused(*words: object, code: int, says: str) -> str:
    """Run a command that must fail with an exit code and one error on stderr.

    Returns the first line of the error; `says` must be in it, in the details below or in the hint.
    """
    result = run(*words)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert says in result.stderr[result.stderr.index(lines[0]) :], result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]
