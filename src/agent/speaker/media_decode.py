"""What the decoder stands on: which format a file has, its bytes as ffmpeg's file, its samples as 24 kHz mono."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import av
import numpy as np
from av.audio.frame import AudioFrame

from agent.errors import MediaError
from agent.speaker import mp3_frames
from agent.speaker.media_bytes import ByteSource, MediaLimits
from agent.speaker.pcm import SAMPLE_RATE, Samples

_SHIELDED_TAIL: Final = 128
_WAV_HEADER: Final = 65_536


@dataclass(frozen=True, slots=True)
class Format:
    """A format as ffmpeg knows it: the demuxer's `name` and `options`, and the bytes from `base` to `end` it is for.

    `duration` in seconds where the header told it.
    """

    name: str
    base: int = 0
    end: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    duration: float | None = None


def sniff(source: ByteSource) -> Format:
    """The format, by the file's first bytes. Raises MediaError."""
    head = b""
    while len(head) < 12 and (more := source.read_at(len(head), 4096)):
        head += more
    base = mp3_frames.id3_length(head)
    if base:
        return Format("flac" if source.read_at(base, 4) == b"fLaC" else "mp3", base)
    if head[:4] == b"OggS":
        return Format("ogg")
    if head[:4] == b"fLaC":
        return Format("flac")
    if head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE":
        return _wav(source)
    if head[4:8] == b"ftyp":
        return Format("mov")
    found = 0 if mp3_frames.parse_frame(head) else mp3_frames.find_frame(source.read_at, 0)
    if found is None:
        raise MediaError("not a sound file that can be played")
    return Format("mp3", found)


def _wav(source: ByteSource) -> Format:
    """Plain 16-bit sound is read as such: ffmpeg would look through 64 KiB of a WAV file for something else in it."""
    whole = Format("wav")
    at, shape = 12, None
    while at < _WAV_HEADER:
        chunk = mp3_frames.read_fully(source.read_at, at, 8)
        if len(chunk) < 8:
            return whole
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        at += 8
        if kind == b"fmt ":
            body = mp3_frames.read_fully(source.read_at, at, 16)
            if len(body) < 16:
                return whole
            tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body)
            if tag != 1 or bits != 16 or channels not in {1, 2} or not rate:
                return whole
            shape = (rate, channels)
        elif kind == b"data":
            if shape is None:
                return whole
            rate, channels = shape
            known = None if source.size is None else source.size - at
            if 0 < size < 0xFFFF_FF00:
                known = size if known is None else min(size, known)
            options = (("sample_rate", str(rate)), ("ch_layout", "mono" if channels == 1 else "stereo"))
            end = None if known is None else at + known
            return Format("s16le", at, end, options, None if known is None else known / (rate * channels * 2))
        at += size + size % 2
    return whole


class Resampler:
    """Whatever the decoder gives, as 24 kHz mono; follows changes of format within a file."""

    def __init__(self) -> None:
        self._inner: av.AudioResampler | None = None
        self._shape: tuple[int, str, str] | None = None

    def feed(self, frame: AudioFrame | None) -> Iterator[Samples]:
        """The samples that are ready after `frame`; None flushes. Raises MediaError for an absurd format."""
        if frame is not None:
            if not 4_000 <= frame.sample_rate <= 384_000 or not 1 <= frame.layout.nb_channels <= 8:
                raise MediaError("the sound has an absurd sampling rate or number of channels", "size")
            shape = (frame.sample_rate, frame.layout.name, frame.format.name)
            if shape != self._shape:
                yield from self.feed(None)
                self._inner = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
                self._shape = shape
            frame.pts = None
        if self._inner is None:
            return
        for out in self._inner.resample(frame):
            yield np.array(out.to_ndarray()[0], dtype=np.int16)
        if frame is None:
            self._inner = None


class AvFile:
    """A byte source as ffmpeg's file, from byte `base` to `end` (None: to the source's own).

    `opening` is True until the file is open, `barren` counts the bytes read since somebody set it to 0.
    """

    def __init__(
        self, source: ByteSource, base: int, limits: MediaLimits, *, seekable: bool, end: int | None = None
    ) -> None:
        self.base = base
        self._end = end
        self.opening = True
        self.barren = 0
        self._source = source
        self._limits = limits
        self._seekable = seekable
        self._position = 0

    def seekable(self) -> bool:
        return self._seekable

    def read(self, count: int) -> bytes:
        at = self.base + self._position
        size = self._size()
        if self._end is not None:
            count = min(count, max(self._end - at, 0))
            if not count:
                return b""
        if self.opening and size is not None and 65536 < size - _SHIELDED_TAIL <= at < size:
            # While opening, ffmpeg peeks at the end for an ID3v1 tag: not worth a round trip to the server.
            data = bytes(min(count, size - at))
        else:
            data = self._source.read_at(at, count)
        self._position += len(data)
        self.barren += len(data)
        if self.barren > self._limits.max_barren_bytes:
            raise MediaError("there is no sound in the file")
        return data

    def _size(self) -> int | None:
        return self._source.size if self._end is None else self._end

    def seek(self, offset: int, whence: int = 0) -> int:
        size = self._size()
        if whence == 2 and size is None:
            return -1
        start = {0: 0, 1: self._position, 2: (size or 0) - self.base}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position
