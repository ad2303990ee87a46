"""The Typer application, and the only place where an error is printed as a line."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from c2fdft_cli.cli import console, parser_errors
from c2fdft_cli.cli.command_list import Group, list_commands, load_command
from c2fdft_cli.errors import (
    C2fdftError,
    DataError,
    Interrupted,
    ResourceError,
    gpu_failure,
    lost_process,
    no_more_threads,
    no_temporary_folder,
    too_many_files,
    unloadable_library,
)
from c2fdft_cli.files.failures import is_disk_full, write_error
from c2fdft_cli.files.writing import remove_temporaries
from c2fdft_cli.signals import SignalReceived
from c2fdft_cli.words import first_of


class Commands(Group):
    """Imports only the command that is called, and turns an error into a line and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; it behaves the same under a shell and under a test's runner."""
        _print_any_name()
        words = [_expand_home(word) for word in (sys.argv[1:] if args is None else args)]
        # Decided from the arguments before parsing, because a command line that cannot be parsed
        # also ends with a document.
        console.expect(document="--json" in words)
        try:
            # Not standalone, because Typer would then print errors and end the process itself.
            # Standard output is flushed here, so that a full disk is reported like any other error.
            # Python's own flush at exit would report it as an ignored exception, with exit code
            # 120.
            code = super().main(words, "c2fdft", complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except SignalReceived as stop:
            remove_temporaries()
            code = report(Interrupted(str(stop), signal_number=stop.signal_number, hint=stop.hint))
        except Exception as error:  # to distinguish errors that a user can cause from bugs
            if type(error).__name__ == "NoArgsIsHelpError":
                # With Rich the help is already printed when its text is requested.
                sys.stdout.write(error.format_message())  # type: ignore[attr-defined]
                _end(0)
            known = _known(error, words)
            if known is None:
                _emit_error(1, f"{type(error).__name__}: {error}", None)
                if not _is_awaited():
                    raise
                traceback.print_exc()
            code = 1 if known is None else report(known)
        _end(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Look up in the list the command that a command line calls, and import it."""
        name, listed, rest = super().resolve_command(ctx, args)
        _require_current_folder()
        return name, listed and load_command(str(listed.name)), rest


def _require_current_folder() -> None:
    """Raise DataError if the current folder was removed: libraries fail there without a reason."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        hint = "change to a folder that exists"
        raise DataError("the current folder no longer exists", hint=hint) from error


def _print_any_name() -> None:
    """Let standard output print every file name, whatever its encoding.

    Bytes of a name that are no characters pass through. Characters that the encoding lacks (that of
    a pipe on Windows lacks most) are printed as `\\u96e8`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("any_name", _encode_any)
        sys.stdout.reconfigure(errors="any_name")


def _encode_any(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


def _expand_home(word: str) -> str:
    """Expand `~` as a shell does, and also after `--out=`, `key=` and `@`."""
    mark = re.match(r"@|[\w.-]+=", word)
    end = mark.end() if mark else 0
    return word[:end] + os.path.expanduser(word[end:])


def _end(code: int) -> NoReturn:
    """Exit; at once if other processes may wait for this one, for which Python would wait."""
    if code and _is_awaited():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _drop_output() -> None:
    """Discard what could not be printed: Python would try again when it exits, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_awaited() -> bool:
    """Whether this process is in a torch.distributed process group with others of its job."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def report(error: C2fdftError) -> int:
    """Print an error, its details, indented, and its hint; return the exit code.

    They are printed on stderr, of the details the first 20. With --json a document, which contains
    all details, is printed on stdout too, unless one has been printed already.
    """
    what, hint = " ".join(str(error).split()), error.hint and " ".join(error.hint.split())
    # torchrun turns the exit code of every child into 1, so each process names its rank.
    rank = f" [rank {os.environ['RANK']}]" if "RANK" in os.environ else ""
    lines = [f"error{rank}: {what}", *(f"  {line}" for line in first_of(error.details))]
    if hint:
        lines.append(f"hint: {hint}")
    for line in map(console.one_line, lines):
        sys.stderr.write(console.wrapped(line, sys.stderr) + "\n")
    _emit_error(error.exit_code, what, hint, error.details)
    return error.exit_code


def _emit_error(code: int, what: str, hint: str | None, details: Sequence[str] = ()) -> None:
    """Print the JSON document of an error; if stdout cannot be written, stderr has the error."""
    try:
        console.emit_error(code, what, hint, details)
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _known(error: Exception, words: Sequence[str]) -> C2fdftError | None:
    """Convert an exception that a user can cause to the error to report; None for a bug."""
    if isinstance(error, C2fdftError):
        return error
    # Recognised by its method, because Typer contains its own copy of Click, whose classes are
    # private.
    if hasattr(error, "format_message"):
        return parser_errors.convert(error, words)
    known: C2fdftError | None = None
    if isinstance(error, ImportError):
        known = unloadable_library(error)
    if known is None and _is_awaited():
        known = lost_process(error)
    if known is None:
        known = no_more_threads(error) or too_many_files(error) or no_temporary_folder(error)
    if known is None:
        # Memory first: the driver reports its lack in the words of a failure of the GPU.
        known = _out_of_memory(error) or gpu_failure(error)
    # Typer installs the completion without handling errors.
    is_write = "--install-completion" in words or (
        isinstance(error, OSError) and is_disk_full(error)
    )
    if known is None and isinstance(error, OSError) and is_write:
        known = write_error(error, Path(error.filename or "standard output"))
    return known


def _out_of_memory(error: Exception) -> ResourceError | None:
    """Recognise that memory ran out where nothing else can be tried."""
    # Only torch raises other classes than MemoryError. Without it, it is not imported for this.
    known = isinstance(error, MemoryError)
    if not known and "torch" in sys.modules:
        from c2fdft_cli.execution.memory import is_out_of_memory

        known = is_out_of_memory(error)
    return ResourceError("out of memory", hint="close other programs") if known else None


app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Restore images (rain, blur, noise) with a coarse-to-fine diffusion Transformer.",
    epilog="prepare -> train-coarse -> sweep-steps -> train-fine -> restore -> eval. "
    "`c2fdft demo` runs them all on a small set in minutes.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from c2fdft_cli.cli.commands.start import show_version

        show_version()
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Restore images (rain, blur, noise) with a coarse-to-fine diffusion Transformer."""
    if context.invoked_subcommand is None:
        from c2fdft_cli.cli.commands.start import show_start

        show_start()


list_commands(app)
