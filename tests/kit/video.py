"""Small videos, made with PyAV on demand, and readers of the contents of a video."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av")

import av as _av

from c2fdft_cli.data.video.parts import read_through
from c2fdft_cli.data.video.probe import probe_video, text_options
from c2fdft_cli.data.video.reader import VideoReader
from c2fdft_cli.data.video.writer import VideoWriter

av: Any = _av
"""PyAV without types, since its stubs are incomplete; for tests that make their own videos."""


def filtered(source: str, filters: str = "null", sink: str = "buffersink") -> Iterator[Any]:
    """Yield frames of an FFmpeg test source, filtered by `filters`: "name=arguments,name"."""
    graph = av.filter.Graph()
    nodes = []
    commas = r",(?=(?:[^']*'[^']*')*[^']*$)"  # outside quotes
    for one in [*re.split(commas, f"{source},{filters}"), sink]:
        name, _, arguments = one.partition("=")
        nodes.append(graph.add(name, arguments))
    graph.link_nodes(*nodes).configure()
    while True:
        try:
            yield nodes[-1].pull()
        except av.error.EOFError:
            return


def make_clip(
    path: Path,
    *,
    size: str = "64x48",
    rate: str = "10",
    seconds: float = 0.5,
    sound: bool = True,
    filters: str = "format=yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    aspect: Fraction = Fraction(1),
    sound_codec: str = "aac",
) -> Path:
    """Write a video of a slowly rotating colour gradient, with a sine tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # All values that the filter would choose at random are given, and the number of threads, on
    # which the encoder's output depends, is fixed: the packets are the same on every machine.
    gradients = f"gradients=s={size}:r={rate}:d={seconds}:seed=3:c0=0x3f7ad2:c1=0xe0a030"
    frames = list(filtered(gradients, filters))
    with av.open(str(path), "w", **text_options()) as out:
        add_pictures(out, frames, Fraction(rate), codec, options)
        out.streams.video[0].codec_context.sample_aspect_ratio = aspect
        if sound:
            tone = out.add_stream(sound_codec, rate=48000, bit_rate=64000)
        out.start_encoding()
        if sound:
            for packet in tone_packets(tone, seconds):
                out.mux(packet)
        picture = out.streams.video[0]
        for frame in frames:
            frame.pict_type = 0
            out.mux(picture.encode(frame))
        out.mux(picture.encode(None))
    return path


def make_raw(
    path: Path, kind: str, planes: list[np.ndarray], range_: int = 0, matrix: int = 2
) -> Path:
    """Write a lossless video of one frame, with the given planes [h, w] of a pixel format."""
    height, width = planes[0].shape
    picture = av.VideoFrame(width, height, kind)
    picture.pts, picture.time_base = 0, Fraction(1, 10)
    picture.color_range, picture.colorspace = range_, matrix
    for plane, values in zip(picture.planes, planes, strict=True):
        rows = np.ascontiguousarray(values.astype("u1" if values.max() < 256 else "<u2")).view("u1")
        whole = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        whole[: len(rows), : rows.shape[1]] = rows
        plane.update(whole.tobytes())
    with av.open(str(path), "w") as out:
        stream = add_pictures(out, [picture], Fraction(10), "ffv1", {"level": "1"})
        out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def planes(path: Path) -> list[np.ndarray]:
    """The planes [h, w] of the first frame as they are coded, without a conversion."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    sample = "<u2" if frame.format.components[0].bits > 8 else "u1"
    return [
        np.frombuffer(one, "u1")
        .reshape(-1, one.line_size)[: one.height]
        .view(sample)[:, : one.width]
        for one in frame.planes
    ]


def add_pictures(
    out: Any, frames: list[Any], rate: Fraction, codec: str, options: dict[str, str] | None = None
) -> Any:
    """Add a video stream with the size, format and flags of the frames."""
    first = frames[0]
    stream = out.add_stream(codec, rate, options or {})
    stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
    context = stream.codec_context
    context.time_base, context.thread_count = first.time_base, 2
    context.color_range, context.colorspace = first.color_range, first.colorspace
    context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
    context.flags |= av.codec.context.Flags.frame_duration
    return stream


def tone_packets(stream: Any, seconds: float) -> Iterator[Any]:
    """Yield the packets of an encoded sine tone."""
    for frame in filtered(f"sine=duration={seconds}:sample_rate=48000", "anull", "abuffersink"):
        yield stream.encode(frame)
    yield stream.encode(None)


def remux(source: Path, target: Path, **changes: Any) -> Path:
    """Copy all packets; options: `turn`, `start`, `chapters`, `subtitles`, `title`, `timecode`.

    With `cut` the first seconds are kept in the file, but an edit list omits them.
    """
    start = changes.get("cut", changes.get("start", 0))
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        pairs = {one.index: new.add_stream_from_template(one, opaque=True) for one in old.streams}
        if "turn" in changes:
            new.streams.video[0].set_display_rotation(changes["turn"])
        new.set_chapters(changes.get("chapters", []))
        new.metadata.update({k: changes[k] for k in ("title", "timecode") if k in changes})
        if "subtitles" in changes:
            texts = new.add_mux_stream(changes["subtitles"], time_base=Fraction(1, 1000))
        if "start" in changes:
            old.seek(max(0, round(changes["start"] * 1e6)))
        for packet in old.demux():
            if not packet.size:
                continue
            if start:
                ticks = round(Fraction(start) / packet.time_base)
                packet.pts -= ticks
                packet.dts = None if packet.dts is None else packet.dts - ticks
            packet.stream = pairs[packet.stream_index]
            new.mux(packet)
        if "subtitles" in changes:
            packet = av.Packet(b"\x00\x05hello" if changes["subtitles"] == "mov_text" else b"hello")
            packet.stream, packet.time_base = texts, Fraction(1, 1000)
            packet.pts, packet.dts, packet.duration = 0, 0, 900
            new.mux(packet)
    return target


def changed(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Copy all packets of a video to Matroska; `change` modifies each in place."""
    with av.open(str(source)) as old, av.open(str(target), "w", format="matroska") as new:
        pairs = {one.index: new.add_stream_from_template(one, opaque=True) for one in old.streams}
        for packet in old.demux():
            if packet.size:
                change(packet)
                packet.stream = pairs[packet.stream_index]
                new.mux_one(packet)
    return target


def begin(path: Path) -> Fraction:
    """Seconds from the start of the file to its first frame."""
    info = probe_video(path)
    with VideoReader(info, info.is_deep) as reader:
        return next(iter(reader)).pts * info.time_base


def subtitles(path: Path) -> list[str]:
    """Codecs of the subtitle streams."""
    with av.open(str(path)) as container:
        return [one.codec_context.codec.canonical_name for one in container.streams.subtitles]


def stamps(path: Path) -> tuple[Fraction, list[int]]:
    """(time base, timestamps) of the frames."""
    info = probe_video(path)
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams[info.stream]))
        return info.time_base, [frame.pts for frame in frames]


def sound(path: Path) -> list[str]:
    """A hash of the packets of each audio stream."""
    return [packets(path, one.index) for one in av.open(str(path)).streams.audio]


def packets(path: Path, index: int) -> str:
    """A hash of the packets of one stream."""
    with av.open(str(path)) as container:
        data = b"".join(bytes(one) for one in container.demux(container.streams[index]))
        return hashlib.sha256(data).hexdigest()


def frames(path: Path) -> np.ndarray:
    """All frames [n, h, w, 3]."""
    info = probe_video(path)
    with VideoReader(info, info.is_deep) as reader:
        return np.stack([frame.pixels for frame in reader])


def difference(a: Path, b: Path) -> float:
    """Return the mean absolute difference of the pixels of two videos."""
    return float(np.abs(frames(a).astype(float) - frames(b)).mean())


def count_frames(path: Path) -> int:
    """The number of frames according to the packets."""
    return read_through(probe_video(path)).frames


def copy(source: Path, target: Path, crf: int = 18) -> Path:
    """Decode and encode a video without a change."""
    notes_of(source, target, crf)
    return target


def notes_of(source: Path, target: Path, crf: int = 18) -> list[str]:
    """Decode and encode a video without a change; return the notes of the writer."""
    info = read_through(probe_video(source))
    with (
        VideoReader(info, info.is_deep) as reader,
        VideoWriter(target, info, info.is_deep, crf, target) as writer,
    ):
        for frame in reader:
            writer.write(frame)
        writer.finish()
    return writer.notes
