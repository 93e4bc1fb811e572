"""The bytes of one sound file for the thread that decodes it: from disk, or fetched by the event loop when needed."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from dataclasses import dataclass
from typing import Final, Protocol

from agent.errors import MediaError
from agent.speaker.media_http import BeyondEnd, MediaHttp, Part, TemporaryMediaError
from agent.speaker.media_url import FileLocation, HttpLocation

_HEAD: Final = 256 * 1024
_BEHIND: Final = 64 * 1024
_AHEAD: Final = 384 * 1024
# A small first range frees its connection early should the decoder want to jump; later ones spare round trips.
_RANGES: Final = (32 * 1024, 128 * 1024, 256 * 1024)
# Reading on over this gap is cheaper than another request.
_GAP: Final = 32 * 1024


class Closed(Exception):
    """The source was closed while the decoder waited for bytes."""


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What a sound file may be, and how long its source may fail. Sizes in bytes, times in seconds."""

    max_bytes: int = 512 * 1024 * 1024
    max_seconds: float = 6 * 3600.0
    max_ratio: float = 400.0
    """Decoded bytes (24 kHz mono) for each byte read, after the first minute."""
    max_barren_bytes: int = 16 * 1024 * 1024
    """Bytes read without one decoded sample between them."""
    start: float = 12.0
    """How long the source may fail before its first byte."""
    stall: float = 5.0
    """How long the server may send nothing."""
    attempts: int = 5
    """Failures in a row, without a byte between them, until the source counts as broken."""
    total_attempts: int = 40
    """Failures in all."""
    backoff: float = 0.15
    """Wait after the first failure; doubles, up to `max_backoff`."""
    max_backoff: float = 2.0


class ByteSource(Protocol):
    """Random access to the file. `read_at` is called by the decoder's thread alone."""

    bytes_read: int

    @property
    def size(self) -> int | None:
        """The file's length, None while unknown."""
        ...

    def read_at(self, position: int, count: int) -> bytes:
        """1 to `count` bytes, or none at the end. Blocks until there are some. Raises MediaError, Closed."""
        ...

    def close(self) -> None:
        """Wake a waiting reader with Closed. Callable from any thread."""
        ...


class DiskBytes:
    """A file on local disk."""

    def __init__(self, location: FileLocation, limits: MediaLimits) -> None:
        self.bytes_read = 0
        self._closed = False
        self._descriptor = location.open()
        self._size = os.fstat(self._descriptor).st_size
        if self._size > limits.max_bytes:
            os.close(self._descriptor)
            raise MediaError("the file is too large", "size")

    @property
    def size(self) -> int | None:
        """The file's length."""
        return self._size

    def read_at(self, position: int, count: int) -> bytes:
        """See ByteSource."""
        if self._closed:
            raise Closed
        try:
            data = os.pread(self._descriptor, count, position)
        except OSError as error:
            raise MediaError(f"the file cannot be read: {error.strerror}") from error
        self.bytes_read += len(data)
        return data

    def close(self) -> None:
        """See ByteSource."""
        self._closed = True

    def release(self) -> None:
        """Give the descriptor back; the decoder's thread does it last."""
        os.close(self._descriptor)


@dataclass(slots=True)
class _Segment:
    start: int
    data: bytearray

    @property
    def end(self) -> int:
        return self.start + len(self.data)

    def holds(self, position: int) -> bool:
        return self.start <= position < self.end


class HttpBytes:
    """A file on the media server, in bounded memory: its head, and a window that slides with the reader.

    `run` is the fetching half: a task of the event loop that asks for ranges a little ahead of the reader, pauses
    while the reader does, and goes on where it stopped when the source fails.
    """

    def __init__(self, location: HttpLocation, http: MediaHttp, limits: MediaLimits) -> None:
        self.bytes_read = 0
        self.requests = 0
        self.retries = 0
        self.most_held = 0
        self._url = location.url
        self._http = http
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._changed = threading.Condition()
        # Everything below is shared with the reader's thread and guarded by `_changed`.
        self._head = _Segment(0, bytearray())
        self._window = _Segment(0, bytearray())
        self._reader = 0
        self._size: int | None = None
        self._tag: str | None = None
        self._error: MediaError | None = None
        self._closed = False

    @property
    def size(self) -> int | None:
        """The file's length as the server says it, None while unknown."""
        return self._size

    def read_at(self, position: int, count: int) -> bytes:
        """See ByteSource."""
        with self._changed:
            self._reader = position
            self._wake()
            while True:
                if self._closed:
                    raise Closed
                if self._size is not None and position >= self._size:
                    return b""
                segment = self._segment_of(position)
                if segment is not None:
                    offset = position - segment.start
                    data = bytes(segment.data[offset : offset + count])
                    self._reader = position + len(data)
                    self.bytes_read += len(data)
                    return data
                if self._error is not None:
                    raise self._error
                self._changed.wait()

    def close(self) -> None:
        """See ByteSource."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _segment_of(self, position: int) -> _Segment | None:
        return next((part for part in (self._window, self._head) if part.holds(position)), None)

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._moved.set)

    # The event loop's half

    async def run(self) -> None:
        """Fetch until cancelled, or until the source has failed for good: the reader is told then."""
        failures = 0
        begun = self._loop.time()
        try:
            while True:
                position = await self._next_gap()
                before = self._stored(position)
                try:
                    await self._fetch(position)
                    failures = 0
                except BeyondEnd:
                    if self._size is not None or position == 0:
                        raise
                    self._ends_at(position)
                except TemporaryMediaError as error:
                    failures = 1 if self._stored(position) > before else failures + 1
                    self.retries += 1
                    late = self._head.end == 0 and self._loop.time() - begun > self._limits.start
                    if late or failures >= self._limits.attempts or self.retries >= self._limits.total_attempts:
                        raise MediaError(f"the source is broken: {error}", "away") from error
                    pause = min(self._limits.backoff * 2 ** (failures - 1), self._limits.max_backoff)
                    await asyncio.sleep(pause * random.uniform(0.75, 1.25))
        except MediaError as error:
            self._fail(error)
        except BaseException:  # cancelled or a bug: either way nobody fetches any more, and the reader must know
            self._fail(MediaError("fetching has ended"))
            raise

    def _fail(self, error: MediaError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _ends_at(self, size: int) -> None:
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def _stored(self, position: int) -> int:
        """Where the bytes that follow `position` without a gap end."""
        with self._changed:
            segment = self._segment_of(position)
            end = position if segment is None else segment.end
            follower = self._segment_of(end)
            return end if follower is None else follower.end

    async def _next_gap(self) -> int:
        """Wait until the reader is near a byte that is missing, and return its position."""
        while True:
            self._moved.clear()
            reader = self._reader
            gap = self._stored(reader)
            ended = self._size is not None and gap >= self._size
            if not ended and gap - reader < _AHEAD // 2:
                return gap
            await self._moved.wait()

    async def _fetch(self, position: int) -> None:
        length = _RANGES[min(self.requests, len(_RANGES) - 1)]
        end = position + length
        if self._size is not None:
            end = min(end, self._size)
        self.requests += 1
        async with self._http.get(self._url, position, end, self._tag) as part:
            if part.size is not None and part.size > self._limits.max_bytes:
                raise MediaError("the file is too large", "size")
            with self._changed:
                self._tag = self._tag or part.tag
                self._size = part.size if part.size is not None else self._size
                self._changed.notify_all()
            await self._receive(part, position, end)

    async def _receive(self, part: Part, position: int, end: int) -> None:
        """Store what comes from `position` on; bytes before it (a server that cannot begin there) are passed over."""
        at, begin = part.start, position
        while True:
            try:
                async with asyncio.timeout(self._limits.stall):
                    chunk = await part.body.readany()
            except TimeoutError:
                raise TemporaryMediaError("the media server has stalled") from None
            if not chunk:
                break
            start, at = at, at + len(chunk)
            if at > self._limits.max_bytes:
                raise MediaError("the file does not end", "size")
            if at > position:
                self._store(position, chunk[max(position - start, 0) :])
                position = at
            if not await self._wanted(position):
                return
        if self._size is None and at >= begin and (part.whole or at < end):
            self._ends_at(at)
        elif position == begin:
            raise TemporaryMediaError("the media server sends nothing")

    async def _wanted(self, position: int) -> bool:
        """Wait while the reader has enough; False once it has gone elsewhere."""
        while True:
            self._moved.clear()
            reader = self._reader
            gap = self._stored(reader)
            if gap != position and not position <= reader <= position + _GAP:
                return False
            if gap - reader < _AHEAD:
                return True
            await self._moved.wait()

    def _store(self, position: int, data: bytes) -> None:
        with self._changed:
            if position <= self._head.end < _HEAD:
                self._head.data += data[self._head.end - position :][: _HEAD - len(self._head.data)]
            window = self._window
            if position != window.end:
                window.start, window.data = position, bytearray()
            window.data += data
            surplus = min(self._reader, window.end) - _BEHIND - window.start
            if surplus > 0:
                del window.data[:surplus]
                window.start += surplus
            self.most_held = max(self.most_held, len(self._head.data) + len(window.data))
            self._changed.notify_all()
