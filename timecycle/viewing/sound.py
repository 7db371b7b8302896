"""The sound of a video file, copied into a video that is being written. Does not import torch."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from timecycle.data.video import opened, pyav

COPIED = ("aac", "mp3", "opus", "flac")
"""Codecs that browsers play in MP4; sound of others is encoded as AAC."""
AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)  # samples per second
AAC_FRAME = 1024  # samples


class Sound:
    """Copies the best sound stream of `source` into an output container, up to any time on request.

    `start` and `end` are seconds from the source's first frame; `start` becomes 0, and nothing is copied from `end` on.
    Sound in one of the `COPIED` codecs is copied as it is, so that it may end up to a packet late.

    Raises InputError if the source is no video file. A source without sound, or with sound that can be neither copied
    nor decoded, adds no stream; sound that turns out to be damaged ends there. `note` says so.
    """

    def __init__(self, source: Path, output: Any, start: float = 0.0, end: float | None = None) -> None:
        self.note: str | None = None
        self._source, self._output = source, output
        self._opened = ExitStack()
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None
        self._last: int | None = None  # time of the last packet
        video = self._opened.enter_context(opened(source))
        container, first = video.container, (video.stream.start_time or 0) * video.stream.time_base
        # In the source's presentation times.
        self._start = first + Fraction(start).limit_denominator(1_000_000)
        self._end = None if end is None else first + Fraction(end).limit_denominator(1_000_000)
        stream = container.streams.best("audio")
        if stream is None:
            self.close()
            return
        if stream.codec_context is None:
            self.note = f"the sound of {source} is in a format that FFmpeg does not know, and is left out"
            self.close()
            return
        if start > 0:
            with suppress(pyav().FFmpegError):  # then the packets before the start are read, too
                container.seek(int(self._start * 1_000_000))
        copied = stream.codec_context.codec.canonical_name in COPIED
        self._packets = self._copied(container, stream) if copied else self._encoded(container, stream)

    def copy_until(self, time: Fraction) -> None:
        """Write the packets that begin before a time of the output, in seconds."""
        while (packet := self._waiting or self._next()) is not None:
            self._waiting = packet
            if packet.pts * packet.time_base >= time:
                return
            self._waiting = None
            try:
                self._output.mux(packet)
            except pyav().FFmpegError as error:
                if isinstance(error, OSError):  # of the output
                    raise
                self._leave_out()

    def _next(self) -> Any:
        """The next packet; None at the end of the sound, or where it is damaged."""
        try:
            for packet in self._packets:
                if self._last is None or packet.pts > self._last:  # else its time is wrong, and MP4 refuses it
                    self._last = packet.pts
                    return packet
            return None
        # ValueError: the sound changes its format. LookupError: PyAV's, for a damaged file with a further stream.
        except (pyav().FFmpegError, ValueError, LookupError):
            self.note = f"the sound of {self._source} is damaged, and ends early"
            return None

    def _leave_out(self) -> None:
        self.note = f"the sound of {self._source} is damaged, and parts of it are left out"

    def close(self) -> None:
        """Close the source."""
        self._packets, self._waiting = iter(()), None
        self._opened.close()

    def _copied(self, container: Any, stream: Any) -> Iterator[Any]:
        """Packets as they are, with times of the output."""
        target = self._output.add_stream_from_template(stream)
        shift = round(self._start / stream.time_base)

        def packets() -> Iterator[Any]:
            for packet in container.demux(stream):
                if not packet.size or packet.pts is None:
                    continue
                if packet.pts + 2 * (packet.duration or 0) <= shift:
                    continue  # decoding needs one packet before the first, which is not played
                if self._end is not None and packet.pts * packet.time_base >= self._end:
                    return
                packet.pts = packet.dts = packet.pts - shift
                packet.stream = target
                yield packet

        return packets()

    def _encoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """The decoded sound as packets of AAC, with times of the output."""
        wanted = stream.codec_context.sample_rate
        rate = min(AAC_RATES, key=lambda known: abs(known - wanted))
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        target = self._output.add_stream("aac", rate=rate, layout=layout)
        resampler = pyav().AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=AAC_FRAME)

        def packets() -> Iterator[Any]:
            for frame in self._decoded(container, stream):
                time = frame.pts * frame.time_base
                if time < self._start:
                    continue
                if self._end is not None and time >= self._end:
                    break
                frame.pts -= round(self._start / frame.time_base)
                for part in resampler.resample(frame):
                    yield from target.encode(part)
            for part in resampler.resample(None):
                yield from target.encode(part)
            yield from target.encode()

        return packets()

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded frames that have a time; damaged packets are left out."""
        for packet in container.demux(stream):
            try:
                yield from (frame for frame in packet.decode() if frame.pts is not None)
            except pyav().FFmpegError:
                self._leave_out()
