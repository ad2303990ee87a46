"""Videos that were joined byte by byte (`cat a.ts b.ts`): timestamps restart in each part.

MPEG-TS and MPEG-PS may be joined in this way. A part is identified by the byte at which it starts,
which separates its packets from those of the part before even if the demuxer reorders some.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from c2fdft_cli.data.video.probe import (
    ONE_TIME,
    Join,
    VideoInfo,
    demuxed,
    library_errors,
    main_stream,
    open_video,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream


class _Stretch(NamedTuple):
    """A packet or a part: its first byte in the file, and its time span in seconds."""

    position: int
    begin: Fraction
    end: Fraction

    def extended(self, packet: _Stretch) -> _Stretch:
        """Extend the time span by a packet, which may come before the first byte."""
        return self._replace(begin=min(self.begin, packet.begin), end=max(self.end, packet.end))


@dataclass
class Parts:
    """Finds the parts of a file from its packets, in the order of the demuxer.

    A part starts if two pictures in a row are earlier than the last one by more than the duration
    of a picture. Sound whose timestamps went back since that last picture belongs to the new part;
    if only sound goes back, it is treated as damage.

    Args:
        main: index of the main picture stream.
        step: duration of a picture in seconds.
    """

    main: int
    step: Fraction
    _found: list[_Stretch] = field(default_factory=list)
    _last: dict[int, Fraction] = field(default_factory=dict)
    _back: dict[int, list[_Stretch]] = field(default_factory=dict)

    def add(self, packet: Packet[Stream], position: int | None) -> None:
        """Process the next packet of pictures or sound, which starts at a byte of the file."""
        if packet.dts is None or position is None:
            return
        stamp = packet.dts if packet.pts is None else packet.pts
        begin, length = stamp * packet.time_base, (packet.duration or 0) * packet.time_base
        seen = _Stretch(position, begin, begin + (length or self.step))
        stream, time = packet.stream_index, packet.dts * packet.time_base
        if time < self._last.get(stream, time) - self.step:
            self._back.setdefault(stream, []).append(seen)
            if stream == self.main and len(self._back[stream]) > 1:
                self._begin_part()
            return
        self._found[-1:] = [self._found[-1].extended(seen) if self._found else seen]
        self._last[stream] = time
        if stream == self.main:
            self._back.clear()

    def _begin_part(self) -> None:
        back = sorted(seen for packets in self._back.values() for seen in packets)
        self._found.append(reduce(_Stretch.extended, back))
        self._last.clear()
        self._back.clear()

    def joins(self) -> tuple[Join, ...]:
        """Return where each later part starts, and the shift by which it follows the one before."""
        joins, later = [], Fraction(0)
        for before, part in itertools.pairwise(self._found):
            later += before.end - part.begin
            joins.append(Join(part.position, later))
        return tuple(joins)


def read_through(info: VideoInfo) -> VideoInfo:
    """Read the whole file without decoding it, and add its frames, missing frames and joins.

    Raises:
        DataError: the file cannot be read.
    """
    with open_video(info.path) as container, library_errors(info.path, "cannot read the video"):
        stream = main_stream(container, info.path)
        main, announced = stream.index, stream.frames  # 0 if the container has no number
        parts, frames, packets = Parts(main, 1 / info.rate), 0, 0
        is_edited, end = False, 0
        for packet, position in _placed(container):
            # The announced number includes pictures that an edit list omits, and empty packets by
            # which AVI repeats a picture, so these count too. The one at the end has no time.
            packets += packet.stream_index == main and packet.dts is not None
            is_edited |= packet.stream_index == main and packet.is_discard
            if not packet.size or packet.is_discard:
                continue
            if packet.stream_index == main:
                frames += 1
                stamp = packet.dts if container.format.name in ONE_TIME else packet.pts
                end = max(end, (stamp or 0) + (packet.duration or 0))
            if packet.stream_index == main or packet.stream.type == "audio":
                parts.add(packet, position)
        # FFmpeg omits some of these packets, so none lacks if the pictures last until the end.
        length = stream.duration
        is_whole = length is not None and end >= (stream.start_time or 0) + length
    joins, duration = parts.joins(), info.duration
    if joins and duration is not None:  # the container measures it by the last part's timestamps
        duration += float(joins[-1].later)
    missing = 0 if is_edited or is_whole else max(0, announced - packets)
    return replace(info, frames=frames, missing=missing, joins=joins, duration=duration)


def continuous(
    container: InputContainer, joins: tuple[Join, ...], *streams: Stream
) -> Iterator[Packet[Any]]:
    """Yield packets as `demuxed` does, shifted so that each part follows the one before."""
    for packet, position in _placed(container, *streams):
        if joins and position is not None:
            starts = (one.later for one in reversed(joins) if position >= one.position)
            ticks = round(next(starts, Fraction(0)) / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        yield packet


def _placed(
    container: InputContainer, *streams: Stream
) -> Iterator[tuple[Packet[Any], int | None]]:
    """Yield packets, each with the byte of the file at which it starts.

    Of several packets in one unit of the container (the PES packet of MPEG), FFmpeg knows the
    place of the first; the others get the same. It is None for packets without a place before.
    """
    last: dict[int, int] = {}
    for packet in demuxed(container, *streams):
        if packet.pos is not None:
            last[packet.stream_index] = packet.pos
        yield packet, last.get(packet.stream_index)
