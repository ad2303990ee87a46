"""Reads the frames of a video, one in memory at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy.typing as npt

from c2fdft_cli.data.images.samples import to_8bit
from c2fdft_cli.data.symmetries import turned
from c2fdft_cli.data.video.conversion import (
    SCALING,
    Converter,
    to_rgb,
    whole_chroma,
    with_whole_chroma,
)
from c2fdft_cli.data.video.parts import continuous
from c2fdft_cli.data.video.probe import (
    ONE_TIME,
    VideoInfo,
    is_damage,
    library_errors,
    main_stream,
    open_video,
    orientation,
    origin,
)
from c2fdft_cli.errors import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MOST_DELAYED = 64
"""More packets than a decoder keeps before it returns the first frame; H.264 has at most 17."""


class Frame(NamedTuple):
    """A frame of a video with its time.

    Args:
        pts: timestamp in ticks of the video's time base, counted from the start of the file.
        duration: in ticks; 0 if the file does not state it.
        pixels: RGB [h, w, 3], uint8, or uint16 for videos with more than 8 bits.
    """

    pts: int
    duration: int
    pixels: npt.NDArray[Any]


class VideoReader:
    """Iterates over the upright frames of a video; leaving the `with` block closes the file.

    One thread may iterate and another leave the block: leaving waits for the frame in progress.

    Args:
        info: properties of the video.
        deep: whether frames have 16 bits.
    """

    def __init__(self, info: VideoInfo, deep: bool) -> None:
        self._info, self._deep = info, deep
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._closed = False
        self._damaged = 0
        self._is_end = False  # whether all packets have been given to the decoder
        # Of containers with one time per packet: the times of the last packets, from a key frame
        # on, and how many of them the decoder was given after the one that it returns next.
        self._stamps: deque[int | None] = deque(maxlen=_MOST_DELAYED)
        self._delay: int | None = None

    @property
    def complaint(self) -> str:
        """A description of the damage from which decoding has recovered; "" if there was none."""
        return f"{self._damaged} damaged packets or frames" if self._damaged else ""

    def __iter__(self) -> Iterator[Frame]:
        frames, last = self._frames(), None
        while True:
            with self._lock, library_errors(self._info.path, "cannot decode the video"):
                frame = None if self._closed else next(frames, None)
            if frame is None:
                break
            if last is not None and frame.pts <= last:  # two frames cannot have the same time
                frame = frame._replace(pts=last + 1)
            last = frame.pts
            yield frame
        if last is None and not self._closed:
            raise DataError("no frame in this video", where=self._info.path)

    def _frames(self) -> Iterator[Frame]:
        info, crop = self._info, self._info.crop
        container = self._stack.enter_context(open_video(info.path))
        stream = main_stream(container, info.path)
        # PyAV's default, threads within a frame, is kept: with a thread for each of several frames,
        # damage in the last ones loses intact frames, which depends on the number of threads.
        stream.codec_context.options |= {"max_frame_delay": "1"}  # as above, for the decoder of AV1
        zero = round(origin(container) / info.time_base)
        # The size at the start: the stream reports another one once its pictures change their size.
        own_width, own_height = stream.width, stream.height
        width, height = whole_chroma(own_width, own_height, info.pixel_format)
        scaled = f"scale={width}:{height}:{SCALING}:out_range=pc"
        convert = Converter(lambda frame: scaled + to_rgb(frame, self._deep))
        step = round(1 / (info.rate * info.time_base))
        has_one_time = container.format.name in ONE_TIME
        pts = 0
        for frame in self._decoded(container, stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            if has_one_time:
                stamp = self._undelayed(frame)
            pts = pts if stamp is None else stamp - zero
            whole = convert(with_whole_chroma(frame)).to_ndarray()
            pixels = whole[crop.top : own_height - crop.bottom, crop.left : own_width - crop.right]
            pixels = pixels if self._deep else to_8bit(pixels)
            yield Frame(pts, frame.duration, turned(pixels, orientation(frame)))
            pts += frame.duration or step

    def _undelayed(self, frame: VideoFrame) -> int | None:
        """Return the time of a frame whose packets have the times of decoding only.

        The decoder returns frames in order, and begins after some packets: from then on the frame
        that it returns has the time of the packet so many before the last one. A packet that gives
        no frame, because it is damaged, leaves a gap.
        """
        if not self._stamps:
            return frame.dts
        if self._delay is None:
            self._delay = len(self._stamps) - 1
        elif self._is_end:
            self._delay = max(0, self._delay - 1)
        return self._stamps[-1 - self._delay]

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Yield frames; damaged ones are counted, and skipped if they cannot be shown."""
        import av

        packets = continuous(container, self._info.joins, stream)
        while not self._is_end:
            try:
                packet = next(packets, None)
                self._is_end = packet is None
                if packet is not None and not packet.size:
                    continue  # a repeated frame of AVI, or the end, for which None is used below
                if packet is not None and (packet.is_keyframe or self._stamps):
                    self._stamps.append(packet.dts)
                frames = stream.decode(packet)
            except av.FFmpegError as error:
                if not is_damage(error):
                    raise
                self._damaged += 1
                if self._delay is None and self._stamps:  # else it would count as kept
                    self._stamps.pop()
                continue
            self._damaged += sum(frame.is_corrupt for frame in frames)
            yield from frames

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._closed = True
            self._stack.close()
