"""Copy everything but the pictures of a video, packet by packet, if the container can hold it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from c2fdft_cli.data.video.parts import continuous
from c2fdft_cli.data.video.probe import (
    ALPHA_TAG,
    MUXERS,
    VideoInfo,
    codec_name,
    demuxed,
    is_cover,
    length,
    library_errors,
    open_video,
    origin,
)
from c2fdft_cli.errors import DataError
from c2fdft_cli.words import many

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

_LEFT_OUT_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder", ALPHA_TAG)
_LEAD_IN = Fraction(1, 20)
"""Seconds; that of AAC has at most 2112 samples."""
_LONG_GAP = Fraction(1, 10)
"""Seconds."""
_MOST_REORDERED = 17
"""Packets; in H.264 and HEVC at most 16 are decoded before the first is shown."""
_BLOCKS = ("aac", "ac3", "flac")
_WITHOUT_CHAPTERS = ("avi", "flv", "mpegts")
_COVER_KINDS = {"png": "image/png", "mjpeg": "image/jpeg"}


class Copier:
    """Copies the packets of all streams except the main one, in file order."""

    def __init__(
        self, source: InputContainer, out: OutputContainer, info: VideoInfo, muxer: str, name: Path
    ) -> None:
        self.notes: list[str] = []
        self._source, self._out, self._info = source, out, info
        self._zero = origin(source)
        self._needs_later = _needs_later_times(out)
        self._streams: dict[int, Stream] = {}
        self._last: dict[int, int] = {}
        self._skipped = 0
        self._gaps = Fraction(0)
        self._end = Fraction(0)
        first = _first_packets(info)
        for stream in source.streams:
            packet, codec = first.get(stream.index), codec_name(stream)
            if stream.index == info.stream or _is_recreated(source, stream):
                continue
            if packet is None and stream.type != "attachment":
                self.notes.append(f"{_describe(stream)} skipped: it is empty")
            elif _is_held(stream, packet, muxer):
                self._streams[stream.index] = _add_copy(out, stream, packet)
            elif muxer == "matroska" and packet and is_cover(stream) and codec in _COVER_KINDS:
                _attach_cover(out, codec, packet)
            elif stream.type == "audio":
                raise DataError(_no_sound(muxer, [stream]), where=name)
            else:
                self.notes.append(f"{_describe(stream)} skipped: {muxer} cannot hold it")
        if source.chapters() and muxer in _WITHOUT_CHAPTERS:
            chapters = many(len(source.chapters()), "chapter")
            self.notes.append(f"{chapters} skipped: {muxer} cannot hold chapters")
        self._packets = self._demuxed()
        self._waiting: Packet[Stream] | None = None

    def copy_until(self, seconds: Fraction | None) -> None:
        """Copy the packets that are decoded up to a time, or all that remain if it is None."""
        while (packet := self._waiting or next(self._packets, None)) is not None:
            self._waiting = None
            begin = (packet.dts or 0) * packet.time_base
            if seconds is not None and begin > seconds:
                self._waiting = packet
                return
            packet.stream = self._streams[packet.stream_index]
            self._out.mux_one(packet)

    def problems(self) -> list[str]:
        """Describe the problems of the source; call this after everything has been copied."""
        notes = []
        if self._info.joins:
            times = many(len(self._info.joins), "time")
            notes.append(f"its timestamps restart {times}, as in joined files: made continuous")
        if self._skipped:
            packets = many(self._skipped, "packet")
            notes.append(f"{packets} without a usable timestamp skipped")
        if self._gaps:
            gaps = f"the sound has gaps of {float(self._gaps):.1f} s"
            notes.append(f"{gaps}, which avi closes: sound is early after them")
        # Times count from 0 even if the file starts before it, as MPEG-TS does whose clock wraps.
        before = Fraction(min(0, self._source.start_time or 0), 1_000_000)
        whole = (length(self._source) or 0) + before
        if whole - self._end > 1:
            found, announced = float(self._end), float(whole)
            notes.append(f"damage in the video: it ends after {found:.1f} of {announced:.1f} s")
        elif self._info.missing:
            what = many(self._info.missing, "frame")
            notes.append(f"damage in the video: it announces {what} more than it contains")
        return notes

    def _demuxed(self) -> Iterator[Packet[Stream]]:
        """Yield the packets of the copied streams; their times count from the start of the file."""
        import av

        # No packet follows damage from which the demuxer cannot recover; the reader counts it.
        with (
            library_errors(self._info.path, "cannot read the video"),
            suppress(av.error.InvalidDataError),
        ):
            packets = continuous(self._source, self._info.joins)
            for packet in _with_decoding_times(one for one in packets if one.size):
                self._shift(packet)
                self._end = max(self._end, _end(packet))
                if packet.stream_index in self._streams and not self._is_cut_away(packet):
                    self._gaps += self._gap(packet)
                    if self._is_in_order(packet):
                        yield packet
                    else:
                        self._skipped += 1

    def _shift(self, packet: Packet[Stream]) -> None:
        zero = round(self._zero / packet.time_base)
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None and packet.stream.disposition:  # a cover picture has no time
            stamp = zero
        if stamp is not None:
            packet.pts = stamp - zero
            packet.dts = packet.pts if packet.dts is None else packet.dts - zero

    def _is_cut_away(self, packet: Packet[Stream]) -> bool:
        """Whether an edit list omits a packet of sound, other than the lead-in for decoders."""
        if packet.stream.type != "audio" or packet.pts is None:
            return False
        begin = packet.pts * packet.time_base
        if self._out.format.name == "avi":  # it would delay the pictures by a whole frame for it
            return packet.is_discard or begin + _end(packet) < 0
        return packet.is_discard and not -_LEAD_IN <= begin < 0

    def _gap(self, packet: Packet[Stream]) -> Fraction:
        """Return the seconds of silence before a packet of sound, if AVI omits them."""
        if self._out.format.name != "avi" or packet.dts is None or packet.stream.type != "audio":
            return Fraction(0)
        last = self._last.get(packet.stream_index)
        end = 0 if last is None else last + (packet.duration or 0)
        gap = (packet.dts - end) * packet.time_base
        return gap if gap > _LONG_GAP else Fraction(0)

    def _is_in_order(self, packet: Packet[Stream]) -> bool:
        last = self._last.get(packet.stream_index)
        # FFmpeg's muxers refuse a packet without a timestamp, one that goes back in time, and for
        # most containers one with the same time as the last. The error would end the copying.
        step = self._needs_later and packet.stream.type in ("audio", "video")
        if packet.dts is None or (last is not None and packet.dts < last + step):
            return False
        self._last[packet.stream_index] = packet.dts
        return True


def _with_decoding_times(packets: Iterable[Packet[Stream]]) -> Iterator[Packet[Stream]]:
    """Add the times of decoding that the first packets of a picture stream lack in Matroska.

    FFmpeg finds them only after the delay of the decoder. They are counted back from the first one
    that it knows.
    """
    waiting: dict[int, list[Packet[Stream]]] = {}
    known: set[int] = set()
    for packet in packets:
        index = packet.stream_index
        if index not in known and packet.stream.type == "video" and packet.pts is not None:
            held = waiting.setdefault(index, [])
            if packet.dts is None and len(held) < _MOST_REORDERED:
                held.append(packet)
                continue
            known.add(index)
            for number, before in enumerate(reversed(held), 1):
                if packet.dts is not None:
                    before.dts = packet.dts - number * (before.duration or 1)
            yield from waiting.pop(index)
        yield packet
    yield from itertools.chain.from_iterable(waiting.values())


def _needs_later_times(out: OutputContainer) -> bool:
    """Whether no two packets of a picture or sound stream may have the same time."""
    from av.format import Flags

    return not Flags(out.format.flags) & Flags.ts_nonstrict


def _end(packet: Packet[Stream]) -> Fraction:
    return ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base


def _is_recreated(source: InputContainer, stream: Stream) -> bool:
    """Whether a stream holds QuickTime time codes or chapter titles: the muxer writes its own."""
    if stream.type != "data":
        return False
    is_titles = stream.name == "bin_data" and stream.frames == len(source.chapters()) > 0
    return is_titles or "timecode" in stream.metadata


def _first_packets(info: VideoInfo) -> dict[int, Packet[Stream]]:
    """Read the first packet of each stream except the main one; an empty stream has none."""
    import av

    found: dict[int, Packet[Stream]] = {}
    # The source is opened a second time, because reading from the first container would consume
    # packets that are still to be copied.
    with (
        open_video(info.path) as source,
        library_errors(info.path, "cannot read the video"),
        suppress(av.error.InvalidDataError),
    ):
        wanted = {stream.index for stream in source.streams if stream.type != "attachment"}
        for packet in demuxed(source):
            if packet.size:
                found.setdefault(packet.stream_index, packet)
            if wanted <= {info.stream, *found}:
                break
    return found


def _attach_cover(out: OutputContainer, codec: str, packet: Packet[Stream]) -> None:
    """Store a cover picture as Matroska does, as an attached file."""
    kind = _COVER_KINDS[codec]
    out.add_attachment(f"cover.{kind.removeprefix('image/')}", kind, bytes(packet))


def _describe(stream: Stream) -> str:
    kind = "picture stream" if stream.type == "video" else f"{stream.type} stream"
    return f"{kind} {stream.index} ({codec_name(stream)})"


def _no_sound(muxer: str, streams: Sequence[Stream]) -> str:
    codecs = ", ".join(codec_name(stream) for stream in streams)
    return f"{muxer} cannot hold this video's sound: {codecs}"


def _is_held(stream: Stream, packet: Packet[Stream] | None, muxer: str) -> bool:
    """Whether a container can hold a stream: tried by writing its first packet to memory.

    The result is read again, because MPEG-TS accepts any codec, but many as unknown data only.
    """
    import av

    if muxer == "avi" and stream.type != "audio":
        return False  # it accepts the headers, but its packets have no timestamps for such streams
    if packet is None:  # an attached file, such as a font
        return muxer == "matroska"
    try:
        with av.open(_trial(stream, packet, muxer)) as written:
            return [_kind(one) for one in written.streams] == [_kind(stream)]
    except (av.FFmpegError, ValueError):
        return False


def _trial(stream: Stream, packet: Packet[Stream], muxer: str) -> io.BytesIO:
    """Write a file with one packet to memory."""
    import av

    data = io.BytesIO()
    with av.open(data, "w", format=muxer) as trial:
        packet.stream = _add_copy(trial, stream, packet)
        packet.pts = packet.dts = 0
        trial.start_encoding()
        trial.mux_one(packet)
    return io.BytesIO(data.getvalue())


def _kind(stream: Stream) -> tuple[str, str]:
    # FFmpeg reads MP2 sound in MP4 and MPEG-TS as MP3, which has the same identifier there.
    return stream.type, codec_name(stream).replace("mp2", "mp3")


def audio_problem(info: VideoInfo, suffix: str) -> str | None:
    """Return why a container cannot hold the sound of a video unchanged; None if it can."""
    muxer, first = MUXERS[suffix], _first_packets(info)
    with open_video(info.path) as source:
        others = [
            stream
            for stream in source.streams.audio
            if stream.index in first and not _is_held(stream, first[stream.index], muxer)
        ]
        return _no_sound(muxer, others) if others else None


def _add_copy(out: OutputContainer, stream: Stream, packet: Packet[Stream] | None) -> Stream:
    import av

    if out.format.name == "avi" and packet is not None and codec_name(stream) in _BLOCKS:
        # The block size that a stream has in AVI leads FFmpeg's muxer to wrong times for these
        # codecs. In Matroska it has none.
        with av.open(_trial(stream, packet, "matroska")) as other:
            copy = out.add_stream_from_template(other.streams[0], opaque=True)
    else:
        copy = out.add_stream_from_template(stream, opaque=True)
    copy.disposition = stream.disposition
    copy.metadata.update(_texts(stream.metadata))
    return copy


def copy_texts(
    source: InputContainer, out: OutputContainer, stream: VideoStream, info: VideoInfo
) -> None:
    """Copy titles, languages, time codes and chapters."""
    main = source.streams[info.stream]
    out.metadata.update(_texts(source.metadata))
    stream.metadata.update(_texts(main.metadata))
    stream.disposition = main.disposition
    zero = origin(source)
    chapters = []
    for chapter in source.chapters():
        ticks = round(zero / (chapter["time_base"] or Fraction(1)))
        start, end = chapter["start"] - ticks, chapter["end"] - ticks
        if start >= 0 or end > 0:  # else it is over before the first picture or sound
            chapter["start"], chapter["end"] = max(0, start), end
            chapters.append(chapter)
    out.set_chapters(chapters)


def _texts(metadata: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in metadata.items() if key.lower() not in _LEFT_OUT_TAGS}
