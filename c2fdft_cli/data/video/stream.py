"""Read and write video frames, one in memory at a time; all else is copied packet by packet."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from c2fdft_cli.data.images.samples import to_8bit
from c2fdft_cli.data.symmetries import turned
from c2fdft_cli.data.video.parts import continuous
from c2fdft_cli.data.video.probe import (
    FULL_RANGE,
    GREY_FORMATS,
    LIMITED_RANGE,
    MUXERS,
    ONE_TIME,
    UNKNOWN_RANGE,
    UNSPECIFIED,
    VideoInfo,
    is_damage,
    library_errors,
    main_stream,
    open_video,
    orientation,
    origin,
    text_options,
)
from c2fdft_cli.data.video.remux import Copier, copy_texts
from c2fdft_cli.errors import DataError
from c2fdft_cli.files.failures import write_error

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_SCALING = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
# the scale filter's names of the matrices to which it converts; RGB itself becomes BT.709
_MATRICES = {0: "bt709", 1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m",
             9: "bt2020"}  # fmt: skip


_MOST_REPEATS = 250_000
"""Limit for one frame: over an hour at 60 frames per second."""
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


class _Converter:
    """Runs frames through filters, which are built again if the kind of frame changes.

    Args:
        filters: returns the filters for frames like the given one: "name=arguments,name".
    """

    def __init__(self, filters: Callable[[VideoFrame], str]) -> None:
        self._filters = filters
        self._kind: tuple[Any, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        if frame.colorspace not in _MATRICES:
            frame.colorspace = UNSPECIFIED
        kind = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range)
        if self._graph is None or kind != self._kind:
            self._graph, self._kind = self._build(frame), kind
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build(self, frame: VideoFrame) -> Graph:
        from av.filter import Graph

        graph = Graph()
        # Any time base will do: timestamps bypass the filters, both callers get them elsewhere.
        source = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
            f":pixel_aspect=1/1:colorspace={frame.colorspace}:range={frame.color_range}"
        )
        nodes = [graph.add("buffer", source)]
        for one in self._filters(frame).split(","):
            name, _, arguments = one.partition("=")
            nodes.append(graph.add(name, arguments))
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph


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
        width, height = _whole_chroma(own_width, own_height, info.pixel_format)
        scaled = f"scale={width}:{height}:{_SCALING}:out_range=pc"
        convert = _Converter(lambda frame: scaled + _to_rgb(frame, self._deep))
        step = round(1 / (info.rate * info.time_base))
        has_one_time = container.format.name in ONE_TIME
        pts = 0
        for frame in self._decoded(container, stream):
            stamp = frame.pts if frame.pts is not None else frame.dts
            if has_one_time:
                stamp = self._undelayed(frame)
            pts = pts if stamp is None else stamp - zero
            whole = convert(_with_whole_chroma(frame)).to_ndarray()
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


class VideoWriter:
    """Encodes frames, and copies all other streams, chapters and texts of the source video.

    One thread may write and another leave the `with` block: leaving waits for the frame in
    progress.

    Args:
        path: where to write; the suffix decides the container, an existing file is replaced.
        info: properties of the source.
        deep: whether frames have 16 bits.
        crf: constant rate factor: 0 (lossless at 8 bits) to 51.
        name: the output's path in error messages.

    Raises:
        DataError: the container cannot hold the sound, or all streams together, or the source
            cannot be read.
        ResourceError: the file cannot be written.
    """

    def __init__(self, path: Path, info: VideoInfo, deep: bool, crf: int, name: Path) -> None:
        self._path, self._info, self._name = path, info, name
        self._muxer = MUXERS[path.suffix.lower()]
        self._pixels = "rgb48le" if deep else "rgb24"
        filters = _colour_filters(info, self._muxer, deep)
        self._convert = _Converter(lambda _: filters)
        self._lock = threading.Lock()
        self._finished = False
        self._rates = _ConstantRate(info) if self._muxer == "avi" else None
        with contextlib.ExitStack() as stack, _writing(name):
            source = stack.enter_context(open_video(info.path))
            self._out = _open_output(path, self._muxer)
            # Registered before anything is written: the file is removed if anything below fails.
            stack.callback(self._abandon)
            self._stream = _add_encoder(self._out, info, self._muxer, deep, crf)
            self._copier = Copier(source, self._out, info, self._muxer, name)
            copy_texts(source, self._out, self._stream, info)
            self._write_header()
            self.notes = [*self._copier.notes, *_losses(info, self._muxer)]
            self._stack = stack.pop_all()

    def _write_header(self) -> None:
        import av

        try:
            self._out.start_encoding()
        except av.FFmpegError as error:
            if not is_damage(error):
                raise
            # Each stream was tried alone, but some containers refuse several of a kind.
            what = f"{self._muxer} cannot hold all streams of this video together"
            raise DataError(what, where=self._name, hint="use .mkv") from error

    def write(self, frame: Frame) -> None:
        """Encode a frame, and copy the other streams up to its time.

        Raises:
            DataError: FFmpeg cannot encode it, or the source cannot be read.
            ResourceError: the file cannot be written.
        """
        with self._lock, _writing(self._name):
            if self._finished:
                return
            for one in [frame] if self._rates is None else self._rates.add(frame):
                self._encode(one)
            # In step with the pictures, because the muxer orders packets by time and would keep
            # those that arrive long before their turn in memory.
            self._copier.copy_until(frame.pts * self._info.time_base)

    def finish(self) -> None:
        """Write everything that remains; afterwards the file is complete. Errors as in `write`."""
        with self._lock, _writing(self._name):
            for one in [] if self._rates is None else self._rates.rest():
                self._encode(one)
            self._out.mux(self._stream.encode(None))
            self._copier.copy_until(None)
            self.notes += self._copier.problems()
            self._finished = True
            self._out.close()

    def _encode(self, frame: Frame) -> None:
        from av.video.frame import VideoFrame

        picture = self._convert(VideoFrame.from_ndarray(frame.pixels, self._pixels))
        picture.pts, picture.duration = frame.pts, frame.duration
        picture.time_base = _time_base(self._info, self._muxer)
        self._out.mux(self._stream.encode(picture))

    def _abandon(self) -> None:
        """Delete the incomplete file, then close it, so that it is not rearranged for streaming."""
        import av

        if self._finished:
            return
        self._finished = True
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(av.FFmpegError):
            self._out.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._stack.close()


class _ConstantRate:
    """Repeats and skips frames so that they follow each other at a constant rate, as AVI requires.

    Raises:
        DataError: a frame would be repeated too often, because a timestamp is far after the others.
    """

    def __init__(self, info: VideoInfo) -> None:
        self._path = info.path
        self._rate = info.rate
        self._ticks = info.time_base * info.rate
        self._next = 0
        self._held: Frame | None = None
        self._end = 0

    def add(self, frame: Frame) -> Iterator[Frame]:
        """Add a frame; yield the output frames, one per tick, up to its start."""
        yield from self._until(round(frame.pts * self._ticks))
        self._held = frame
        self._end = round((frame.pts + frame.duration) * self._ticks)

    def rest(self) -> Iterator[Frame]:
        """Yield the last frame, as often as it is shown."""
        yield from self._until(max(self._end, self._next + 1))

    def _until(self, end: int) -> Iterator[Frame]:
        if end - self._next > _MOST_REPEATS:
            what = f"a frame is shown for {float((end - self._next) / self._rate):.0f} s"
            hint = "the timestamps may be damaged; .mkv keeps them, .avi has to repeat frames"
            raise DataError(what, where=self._path, hint=hint)
        while self._held is not None and self._next < end:
            yield Frame(self._next, 1, self._held.pixels)
            self._next += 1


def output_pixel_format(info: VideoInfo, deep: bool) -> str:
    """Return the output's pixel format: the source's chroma if the encoders support it.

    4:1:1 becomes 4:2:2, which keeps the chroma of each row. If a side is odd and 4:2:0 or 4:2:2
    therefore impossible, the chroma is 4:4:4.
    """
    from av.video.format import VideoFormat

    own = VideoFormat(info.pixel_format)
    across, down = 8 // own.chroma_width(8), 8 // own.chroma_height(8)
    is_full = across == 1 and not info.is_grey
    is_tall = across > 1 and down == 1
    if is_full or info.width % 2 or (info.height % 2 and not is_tall):
        chroma = "yuv444p"
    else:
        chroma = "yuv422p" if is_tall else "yuv420p"
    return f"{chroma}10le" if deep else chroma


def keeps_10_bits(path: Path) -> bool:
    """Whether the encoder for a file of this suffix has 10 bits; libvpx is often built without."""
    import av

    formats = av.Codec(_codec(MUXERS[path.suffix.lower()]), "w").video_formats or []
    return any(one.name == "yuv420p10le" for one in formats)


def _codec(muxer: str) -> str:
    return "libvpx-vp9" if muxer == "webm" else "libx264"


@contextlib.contextmanager
def _writing(name: Path) -> Iterator[None]:
    """Turn FFmpeg's exceptions while a video is written into errors that name the file.

    Raises:
        DataError: FFmpeg cannot encode the video.
        ResourceError: the file cannot be written.
    """
    with library_errors(name, "cannot encode the video"):
        try:
            yield
        except OSError as error:  # of PyAV's errors these are the system's
            raise write_error(error, name) from error


def _open_output(path: Path, muxer: str) -> OutputContainer:
    import av

    options = {"movflags": "+faststart"} if muxer in ("mp4", "mov", "3gp") else {}
    opened: OutputContainer = av.open(
        f"file:{path.absolute()}",
        "w",
        format=muxer,
        container_options=options,
        **text_options(),
    )
    return opened


def _add_encoder(
    out: OutputContainer, info: VideoInfo, muxer: str, deep: bool, crf: int
) -> VideoStream:
    """Add the stream of the restored pictures, with the colour flags of the source."""
    from av.codec.context import Flags

    if muxer == "webm":
        options = {"crf": str(crf), "deadline": "good", "cpu-used": "4", "row-mt": "1"}
    else:
        options = {"crf": str(crf), "preset": "medium"}
    stream = cast("VideoStream", out.add_stream(_codec(muxer), info.rate, options))
    stream.width, stream.height = info.width, info.height
    stream.pix_fmt = output_pixel_format(info, deep)
    stream.time_base = _time_base(info, muxer)
    context = stream.codec_context
    context.time_base = _time_base(info, muxer)
    context.sample_aspect_ratio = info.aspect
    context.thread_count = 0
    # Otherwise the encoder ignores how long each frame is shown, which differs if the rate varies.
    context.flags |= Flags.frame_duration
    if muxer in ONE_TIME:  # so no frame may be out of order
        context.max_b_frames = 0
    depth = _output_range(info, muxer)
    context.color_range = UNKNOWN_RANGE if info.colours.range == UNKNOWN_RANGE else depth
    context.colorspace = info.colours.matrix or 1
    context.color_primaries = info.colours.primaries
    context.color_trc = info.colours.transfer
    return stream


def _losses(info: VideoInfo, muxer: str) -> list[str]:
    """Describe what of the pictures' properties is not kept."""
    notes = [f"{what} in the pictures skipped" for what in info.extras]
    if info.is_interlaced:
        notes.append(
            "interlaced pictures are marked progressive: both fields are restored together"
        )
    matrix = info.colours.matrix
    if matrix not in (*_MATRICES, UNSPECIFIED):
        what = f"the colour matrix {matrix} of H.273 is not supported"
        notes.append(f"{what}: the network sees other colours")
    if muxer == "webm" and info.aspect != 1:
        notes.append(f"the pixels' aspect ratio {info.aspect} is not kept in webm")
    return notes


def _time_base(info: VideoInfo, muxer: str) -> Fraction:
    return 1 / info.rate if muxer == "avi" else info.time_base


def _whole_chroma(width: int, height: int, pixel_format: str) -> tuple[int, int]:
    """Round sides up to whole samples of chroma, which several pixels share."""
    from av.video.format import VideoFormat

    kind = VideoFormat(pixel_format)
    across, down = 8 // kind.chroma_width(8), 8 // kind.chroma_height(8)
    return -(-width // across) * across, -(-height // down) * down


def _with_whole_chroma(frame: VideoFrame) -> VideoFrame:
    """Pad a frame whose sides end within a sample of chroma; the caller crops the result.

    Without padding the scaler would stretch the chroma, which is visible in small pictures.
    """
    from av.video.frame import VideoFrame

    width, height = _whole_chroma(frame.width, frame.height, frame.format.name)
    if (width, height) == (frame.width, frame.height):
        return frame
    whole = VideoFrame(width, height, frame.format.name)
    whole.colorspace, whole.color_range = frame.colorspace, frame.color_range
    for old, new in zip(frame.planes, whole.planes, strict=True):
        rows = np.frombuffer(old, np.uint8).reshape(-1, old.line_size)[: old.height]
        target = np.frombuffer(new, np.uint8).reshape(-1, new.line_size)
        count = min(old.line_size, new.line_size)
        target[: len(rows), :count] = rows[:, :count]
    return whole


def _to_rgb(frame: VideoFrame, deep: bool) -> str:
    """Return the filters after the scale filter: to RGB with black and white at its ends.

    Frames of more than 8 bits become 16 bits, even if not `deep`: FFmpeg's step to 8 bits does not
    round to the nearest.
    """
    kind = frame.format
    bits = max(part.bits for part in kind.components)
    unit, top, rgb = (256, 65535, "rgb48le") if deep or bits > 8 else (1, 255, "rgb24")
    if kind.is_rgb:
        return f",format={rgb}"
    # The scale filter shifts samples of more than 8 bits to 16 instead of multiplying them, so that
    # white is less than 65535, and takes all grey for full range.
    is_grey = kind.name.startswith(GREY_FORMATS)
    black, white = 0.0, 255.0  # in units of 8 bits
    if is_grey and frame.color_range == LIMITED_RANGE:
        black, white = 16.0, 235.0
    elif bits > 8 and (is_grey or frame.color_range == FULL_RANGE):
        white = 256 - 2.0 ** (8 - bits)
    if (black * unit, white * unit) == (0, top):
        return f",format={rgb}"
    value = f"round((val-{black * unit})*{top / ((white - black) * unit)})"
    return f",format={rgb},lutrgb={value}:{value}:{value}"


def _output_range(info: VideoInfo, muxer: str) -> int:
    return FULL_RANGE if info.colours.range == FULL_RANGE and muxer != "avi" else LIMITED_RANGE


def _colour_filters(info: VideoInfo, muxer: str, deep: bool) -> str:
    """Return the filters that convert RGB to the source's matrix and range.

    If the source states no matrix, or one that is not supported, both conversions use FFmpeg's
    default, so they cancel.
    """
    matrix = _MATRICES.get(info.colours.matrix)
    conversion = "" if matrix is None else f":out_color_matrix={matrix}"
    kind = output_pixel_format(info, deep)
    limited = f"setparams=range=pc:colorspace=gbr,scale={_SCALING}:out_range=tv{conversion}"
    is_full = _output_range(info, muxer) == FULL_RANGE
    if not is_full and not deep:
        return f"{limited},format={kind}"
    # The scale filter's own full range puts the neutral chroma half a level too low, and it takes
    # 65280 for the white of 16 bits. So it converts to limited range, with 16 bits, and a table
    # does the rest. Without dithering, the step to the output's bits rounds.
    bits = 10 if deep else 8
    gain = 65280 / 65535 if deep else 1.0
    whole = (1 << 16) - (1 << 16 - bits)  # the range of `bits` bits, shifted to 16
    luma, chroma = (whole / (219 << 8), whole / (224 << 8)) if is_full else (1.0, 1.0)
    y = f"round((val-{16 << 8})*{luma * gain}+{0 if is_full else 16 << 8})"
    c = f"round((val-{128 << 8})*{chroma * gain}+{128 << 8})"
    wide = f"{kind.removesuffix('10le')}16le"
    return (
        f"{limited},format={wide},lutyuv={y}:{c}:{c},scale={_SCALING}:sws_dither=none,format={kind}"
    )
