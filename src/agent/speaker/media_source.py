"""One sound file as a stream of 24 kHz mono samples that begins before the download has ended."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import av
import numpy as np
import structlog
from av.container import InputContainer

from agent.errors import MediaError
from agent.speaker import mp3_frames
from agent.speaker.media_bytes import ByteSource, Closed, DiskBytes, HttpBytes, MediaLimits
from agent.speaker.media_decode import AvFile, Format, Resampler, sniff
from agent.speaker.media_http import MediaHttp
from agent.speaker.media_url import FileLocation, HttpLocation, Location
from agent.speaker.pcm import SAMPLE_RATE, Samples

_CAPACITY: Final = 3 * SAMPLE_RATE
_MARK_EVERY: Final = SAMPLE_RATE // 2
_MARKS: Final = 64
_PREROLL: Final = SAMPLE_RATE // 3
# A tag up to this size is read with the sound; a larger one, which holds pictures, is passed over.
_SMALL_TAG: Final = 16_384
_MAX_BAD_PACKETS: Final = 200
_NOTHING: Final[Samples] = np.zeros(0, np.int16)
# The decoder starts on the first bytes: whatever else the file could tell is not worth waiting for.
_OPTIONS: Final = {"probesize": "2048", "analyzeduration": "0"}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where in the file a moment begins: what makes coming back to it exact and quick. `sample` at 24 kHz."""

    byte: int
    sample: int


class MediaSource:
    """A file being decoded. Non-blocking for the event loop: a thread decodes, a task fetches, both bounded.

    `start` is the first sample wanted (24 kHz); `marks` are those of an earlier source of the same file. `on_data` is
    called in the loop when samples, the end or an error come after `read` had none.
    """

    def __init__(
        self,
        location: Location,
        http: MediaHttp | None = None,
        *,
        start: int = 0,
        marks: tuple[Mark, ...] = (),
        limits: MediaLimits | None = None,
        on_data: Callable[[], None] | None = None,
    ) -> None:
        self._location = location
        self._http = http
        self._first = max(start, 0)
        self._given_marks = marks
        self._limits = limits or MediaLimits()
        self._on_data = on_data
        self._bytes: ByteSource | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._thread_ended = asyncio.Event()
        self._ready = asyncio.Event()
        # Shared with the decoder's thread and guarded by `_changed`.
        self._changed = threading.Condition()
        self._blocks: deque[Samples] = deque()
        self._buffered = 0
        self._ended = False
        self._error: MediaError | None = None
        self._closed = False
        self._wake_at = 1
        self._marks: deque[Mark] = deque(marks, maxlen=_MARKS)
        self._position = self._first
        self._produced = 0
        self._duration: float | None = None
        self.most_buffered = 0

    @classmethod
    def open(cls, location: Location, http: MediaHttp | None = None, **options: Any) -> Self:
        """A source that has begun to load. Close it with `aclose`, or use it as an asynchronous context."""
        source = cls(location, http, **options)
        source.start()
        return source

    def start(self) -> None:
        """Begin to load; needs a running loop."""
        self._loop = asyncio.get_running_loop()
        if isinstance(self._location, HttpLocation):
            if self._http is None:
                raise MediaError("no client for the media server")
            remote = HttpBytes(self._location, self._http, self._limits)
            self._bytes = remote
            self._fetching = asyncio.create_task(remote.run(), name="media-fetch")
        self._thread = threading.Thread(target=self._run, name="media-decode", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> Self:
        if self._thread is None:
            self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def ready(self) -> None:
        """Wait for the first samples. Raises MediaError."""
        await self._ready.wait()
        if self._error is not None and not self._buffered:
            raise self._error

    def read(self, samples: int, at_least: int = 0) -> Samples | None:
        """The next 1 to `samples` samples; none of them at the end; None while there are none yet. Never blocks.

        None too while fewer than `at_least` (a second at most) are buffered and more are coming: `on_data` tells when
        they are there.
        Raises MediaError when the file is broken or its source has failed for good.
        """
        with self._changed:
            short = self._buffered < at_least and not self._ended and self._error is None
            if short or not self._blocks:
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return _NOTHING
                self._wake_at = max(at_least, 1)
                return None
            block = self._blocks.popleft()
            if len(block) > samples:
                self._blocks.appendleft(block[samples:])
                block = block[:samples]
            self._buffered -= len(block)
            self._position += len(block)
            if self._buffered < _CAPACITY // 2:
                self._changed.notify_all()
            return block

    @property
    def position(self) -> int:
        """The sample `read` returns next, counted from the file's start at 24 kHz."""
        return self._position

    @property
    def duration(self) -> float | None:
        """The file's length in seconds, None where it does not say."""
        return self._duration

    @property
    def buffered(self) -> int:
        """Samples that can be read at once."""
        return self._buffered

    @property
    def complete(self) -> bool:
        """Whether everything up to the end, or to an error, is decoded and buffered."""
        return self._ended or self._error is not None

    def marks(self) -> tuple[Mark, ...]:
        """Places near the position, for another source of the same file to start at."""
        with self._changed:
            return tuple(self._marks)

    async def aclose(self) -> None:
        """Stop at once: no thread, task or connection is left when it returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._bytes is not None:
            self._bytes.close()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
            if not self._fetching.cancelled() and (error := self._fetching.exception()) is not None:
                _log.error("media_fetch_failed", exc_info=error)
        if self._thread is not None:
            try:
                async with asyncio.timeout(5):
                    await self._thread_ended.wait()
                # It is past its last statement: this takes microseconds.
                self._thread.join(1)
            except TimeoutError:
                _log.warning("media_decoder_hangs")
        self._blocks.clear()
        self._buffered = 0

    # The decoder's thread

    def _run(self) -> None:
        error: MediaError | None = None
        try:
            if isinstance(self._location, FileLocation):
                self._bytes = DiskBytes(self._location, self._limits)
            assert self._bytes is not None
            if self._closed:
                raise Closed
            self._decode(self._bytes)
        except Closed:
            pass
        except MediaError as problem:
            error = problem
        except (av.FFmpegError, ValueError, OverflowError) as problem:
            error = MediaError(f"not a sound file that can be played: {type(problem).__name__}")
        except Exception as problem:  # noqa: BLE001 — the listener must learn that no sound will come
            _log.exception("media_decoder_failed")
            error = MediaError(f"the decoder failed: {type(problem).__name__}")
        finally:
            if isinstance(self._bytes, DiskBytes):
                self._bytes.release()
        with self._changed:
            self._error = error
            self._ended = error is None
        with suppress(RuntimeError):  # the loop may be gone: then nobody waits
            self._loop.call_soon_threadsafe(self._announce)
            self._loop.call_soon_threadsafe(self._thread_ended.set)

    def _announce(self) -> None:
        self._ready.set()
        if self._on_data is not None and not self._closed:
            self._on_data()

    def _decode(self, source: ByteSource) -> None:
        form = sniff(source)
        origin = None
        base = form.base
        if form.name == "mp3" and self._first > 0:
            place = self._mp3_place(source, base)
            if place is not None:
                base, origin = place.byte, place.sample
        elif form.name == "mp3" and base < _SMALL_TAG:
            base = 0
        self._duration = form.duration or self._duration
        file = AvFile(source, base, self._limits, seekable=form.name != "ogg" or self._first > 0, end=form.end)
        with self._open(file, form) as container:
            if not container.streams.audio:
                raise MediaError("there is no sound in the file")
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1
            if container.duration and origin is None and self._duration is None:
                self._duration = container.duration / 1_000_000
            if self._first > 0 and origin is None:
                self._seek(container)
            self._pump(source, file, container, origin, marking=form.name == "mp3")

    @staticmethod
    def _open(file: AvFile, form: Format) -> InputContainer:
        # The format is named, so that no playlist can make the decoder open addresses of its own.
        container = av.open(
            file,
            mode="r",
            format=form.name,
            buffer_size=8192,
            options={**_OPTIONS, **dict(form.options)},
            metadata_errors="ignore",
        )
        file.opening = False
        return container

    def _mp3_place(self, source: ByteSource, base: int) -> Mark | None:
        for mark in reversed(self._given_marks):
            if mark.sample <= self._first - _PREROLL:
                return mark
        file = AvFile(source, 0 if base < _SMALL_TAG else base, self._limits, seekable=True)
        with self._open(file, Format("mp3")) as container:
            stream = container.streams.audio[0]
            rate = stream.rate
            delay = round((stream.start_time or 0) * float(stream.time_base or 0) * rate)
            self._duration = container.duration / 1_000_000 if container.duration else None
        place = mp3_frames.locate(
            source.read_at, source.size, self._first * rate // SAMPLE_RATE, delay, scan=isinstance(source, DiskBytes)
        )
        return None if place is None else Mark(place.byte, round(place.sample * SAMPLE_RATE / rate))

    def _seek(self, container: InputContainer) -> None:
        stream = container.streams.audio[0]
        base = stream.time_base
        if base is None:
            return
        wanted = max(self._first - _PREROLL, 0) / SAMPLE_RATE
        # Where the file has no index the decoder reads on from its start: slower, and as exact.
        with suppress(av.FFmpegError):
            container.seek((stream.start_time or 0) + int(wanted / base), stream=stream, backward=True)

    def _pump(
        self, source: ByteSource, file: AvFile, container: InputContainer, origin: int | None, *, marking: bool
    ) -> None:
        """Decode to the end. `origin`: the sample the first packet stands for, None where the file's times tell it."""
        stream = container.streams.audio[0]
        zero = stream.start_time or 0 if origin is None else None
        resampler = Resampler()
        skip: int | None = 0 if self._first == 0 else None
        bad = 0
        next_mark = 0
        for packet in container.demux(stream):
            if zero is None:
                zero = packet.pts or 0
            base = float(packet.time_base or 0)
            if marking and packet.pts is not None and packet.pos is not None:
                at = (origin or 0) + round((packet.pts - zero) * base * SAMPLE_RATE)
                if at >= next_mark:
                    next_mark = at + _MARK_EVERY
                    with self._changed:
                        self._marks.append(Mark(file.base + packet.pos, at))
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                bad += 1
                if bad > _MAX_BAD_PACKETS:
                    raise MediaError("what the file holds is not sound") from None
                continue
            for frame in frames:
                bad = 0
                file.barren = 0
                if skip is None:
                    at = (origin or 0) + round(((frame.pts or 0) - zero) * float(frame.time_base or base) * SAMPLE_RATE)
                    skip = max(self._first - at, 0)
                    self._position = max(at, self._first)
                for samples in resampler.feed(frame):
                    skip = self._put(samples, skip, source)
        for samples in resampler.feed(None):
            self._put(samples, skip or 0, source)
        if self._produced == 0 and self._first == 0:
            raise MediaError("there is no sound in the file")

    def _put(self, samples: Samples, skip: int, source: ByteSource) -> int:
        """Queue `samples` without their first `skip`; wait while the queue is full. Returns what is left to skip."""
        if skip >= len(samples):
            return skip - len(samples)
        samples = samples[skip:]
        self._produced += len(samples)
        if self._first + self._produced > self._limits.max_seconds * SAMPLE_RATE:
            raise MediaError("the recording is too long", "size")
        decoded = self._produced * 2
        if self._produced > 60 * SAMPLE_RATE and decoded > self._limits.max_ratio * max(source.bytes_read, 1):
            raise MediaError("the file unpacks to far more than it is", "size")
        with self._changed:
            while self._buffered >= _CAPACITY and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Closed
            self._blocks.append(samples)
            self._buffered += len(samples)
            self.most_buffered = max(self.most_buffered, self._buffered)
            enough = 0 < self._wake_at <= self._buffered
            if enough:
                self._wake_at = 0
        if enough:
            with suppress(RuntimeError):  # the loop may be gone: then nobody waits
                self._loop.call_soon_threadsafe(self._announce)
        return 0
