"""Running ffmpeg: found through imageio-ffmpeg, never blocked by its own messages, never left."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from c2fdft_cli.data.images.picture import MAX_PIXELS
from c2fdft_cli.errors import C2fdftError, DataError, ResourceError

_HEAD_LINES = 2000
_TAIL_LINES = 50
_LINE_BYTES = 4096
_PATIENCE = 10.0
"""Seconds that a process whose pipes have closed is given to end."""
_PREFIX = re.compile(r"^(\[[^\]]*\] ?)+")
_GENERIC = re.compile(
    r"Conversion failed|Error opening (input|output)|Error closing file|Error muxing a packet"
    r"|Error submitting|Error sending frames|Error writing trailer|Task finished with error"
    r"|Terminating thread|Nothing was written|Last message repeated|Decode error rate"
    r"|Error while (opening|filtering|decoding)|Output file does not contain|To ignore this"
    r"|Could not write header|Failed to set value|Could not open encoder|Finishing stream"
    r"|Cannot determine format of input|Error parsing|frame= |size= "
)
_DISK_FULL = "No space left on device"


def ffmpeg_program() -> str:
    """The program that imageio-ffmpeg carries, or the one that IMAGEIO_FFMPEG_EXE names.

    Raises:
        DataError: the extra is not installed, or it brings no program for this platform.
    """
    hint = "pip install 'c2fdft[video]'"
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise DataError("videos need imageio-ffmpeg", hint=hint) from error
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        hint = "install ffmpeg and name it in IMAGEIO_FFMPEG_EXE"
        raise DataError("imageio-ffmpeg has no ffmpeg here", hint=hint) from error


def input_options(path: Path) -> list[str]:
    """Options that open a file, and nothing but this file, as an input.

    The name cannot be taken for an option or an address; play lists and other kinds of file that
    name further files are no inputs; a frame beyond the pixel limit is not decoded.
    """
    return [
        "-protocol_whitelist", "file,pipe",
        "-format_whitelist", "mov,matroska,avi",
        "-max_pixels:v", str(MAX_PIXELS),
        "-i", f"file:{path.absolute()}",
    ]  # fmt: skip


class Ffmpeg:
    """One ffmpeg process; leaving the `with` block ends it.

    Args:
        arguments: behind the program's name.
        reads, writes: whether this side writes to its stdin, reads from its stdout.
        level: of its messages.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        reads: bool = False,
        writes: bool = False,
        level: str = "error",
    ) -> None:
        self._head: list[str] = []
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        general = ["-hide_banner", "-nostdin", "-nostats", "-loglevel", level]
        self.process = subprocess.Popen(  # noqa: S603 - our own options, paths as `file:` names
            [ffmpeg_program(), *general, *arguments],
            stdin=subprocess.PIPE if reads else subprocess.DEVNULL,
            stdout=subprocess.PIPE if writes else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Ctrl-C reaches this program alone, which then ends its children itself
            start_new_session=True,
            env={**os.environ, "AV_LOG_FORCE_NOCOLOR": "1"},
        )
        self._drain = threading.Thread(target=self._read_messages, daemon=True)
        self._drain.start()

    def _read_messages(self) -> None:
        """Take every message off the pipe, so that ffmpeg never waits for a reader."""
        stream = self.process.stderr
        while stream is not None and (line := stream.readline(_LINE_BYTES)):
            text = "".join(c for c in line.decode("utf-8", "replace") if c.isprintable())
            (self._head if len(self._head) < _HEAD_LINES else self._tail).append(text)

    @property
    def messages(self) -> list[str]:
        """What it has said: the first lines and the last."""
        return [*self._head, *self._tail]

    @property
    def last_words(self) -> str:
        """The last message that says something of its own; "" for none."""
        lines = [_PREFIX.sub("", line).strip() for line in self.messages]
        lines = [line for line in lines if line]
        telling = [line for line in lines if not _GENERIC.match(line)]
        if telling:
            return telling[-1].rstrip(".")
        return lines[-1].rpartition(": ")[2].rstrip(".") if lines else ""

    def finish(self, path: Path, what: str, timeout: float | None = None) -> None:
        """Wait for its end.

        Raises:
            DataError: it failed; its last words are in the error.
            ResourceError: the disk is full.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise DataError(f"{what}: ffmpeg does not come to an end", where=path) from error
        self._drain.join(_PATIENCE)
        if code != 0:
            raise self.failure(path, what)

    def failure(self, path: Path, what: str) -> C2fdftError:
        """The one-line error after it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        self._drain.join(_PATIENCE)
        if any(_DISK_FULL in line for line in self.messages):
            hint = "free some space or choose another disk"
            return ResourceError("disk full", where=path, hint=hint)
        reason = self.last_words or f"exit status {self.process.returncode}"
        return DataError(f"{what}: {reason}", where=path)

    def __enter__(self) -> Ffmpeg:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._drain.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not written yet has no reader now
                    stream.close()
