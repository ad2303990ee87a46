"""Files that were put together byte by byte (`cat a.ts b.ts`): their times begin anew in each part.

MPEG-TS and MPEG-PS may be joined so. Where a part begins is known by its place in the file, which
tells its packets from those of the part before even where the demuxer exchanges some.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from c2fdft_cli.data.video.probe import (
    Join,
    VideoInfo,
    demuxed,
    library_errors,
    main_stream,
    open_video,
)

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream


class _Stretch(NamedTuple):
    """A packet or a part: its first byte in the file, and when it is shown, in seconds."""

    position: int
    begin: Fraction
    end: Fraction

    def extended(self, packet: _Stretch) -> _Stretch:
        """Over the time of one more packet, which may lie in front of its first byte."""
        return self._replace(begin=min(self.begin, packet.begin), end=max(self.end, packet.end))


@dataclass
class Parts:
    """Finds the parts, packet by packet in the order of the demuxer.

    A part begins where two pictures in a row lie before the last one by more than the time of one.
    Sound that went back since that last one belongs to it; alone, it is taken for damage.

    Args:
        main: index of the main picture stream.
        step: seconds that a picture is shown.
    """

    main: int
    step: Fraction
    _found: list[_Stretch] = field(default_factory=list)
    _last: dict[int, Fraction] = field(default_factory=dict)
    _back: dict[int, list[_Stretch]] = field(default_factory=dict)

    def add(self, packet: Packet[Stream]) -> None:
        """Take the next packet of pictures or sound."""
        if packet.dts is None or packet.pos is None:
            return
        stamp = packet.dts if packet.pts is None else packet.pts
        begin, length = stamp * packet.time_base, (packet.duration or 0) * packet.time_base
        seen = _Stretch(packet.pos, begin, begin + (length or self.step))
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
        """Where each part but the first begins, so that it follows the one before it."""
        joins, later = [], Fraction(0)
        for before, part in itertools.pairwise(self._found):
            later += before.end - part.begin
            joins.append(Join(part.position, later))
        return tuple(joins)


def read_through(info: VideoInfo) -> VideoInfo:
    """With what only the whole file tells: frames, those missing, and joins; nothing is decoded.

    Raises:
        DataError: the file cannot be read.
    """
    with open_video(info.path) as container, library_errors(info.path, "cannot read the video"):
        stream = main_stream(container, info.path)
        main, announced = stream.index, stream.frames  # 0 where the container does not say
        parts, frames, packets = Parts(main, 1 / info.rate), 0, 0
        for packet in demuxed(container):
            # Announced are also pictures that an edit leaves out, and those of AVI that only repeat
            # the one before; the empty packet at the end has no time.
            packets += packet.stream_index == main and packet.dts is not None
            if not packet.size or packet.is_discard:
                continue
            frames += packet.stream_index == main
            if packet.stream_index == main or packet.stream.type == "audio":
                parts.add(packet)
    joins, duration = parts.joins(), info.duration
    if joins and duration is not None:  # of which the container knows the last part's times
        duration += float(joins[-1].later)
    missing = max(0, announced - packets)
    return replace(info, frames=frames, missing=missing, joins=joins, duration=duration)


def make_continuous(packet: Packet[Any], joins: tuple[Join, ...]) -> None:
    """Move a packet's times so that its part follows the one before."""
    position = packet.pos
    if not joins or position is None:
        return
    later = next((one.later for one in reversed(joins) if position >= one.position), Fraction(0))
    ticks = round(later / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts + ticks
    packet.dts = None if packet.dts is None else packet.dts + ticks
