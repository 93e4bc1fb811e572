"""The media player of a room: songs and stories, pulled by the speaker, controlled by child, parent and model."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray

from agent.errors import MediaError
from agent.library.titles import Title
from agent.speaker.delivery import Deliveries, Delivery
from agent.speaker.gain import falling
from agent.speaker.levels import FADE, Levels
from agent.speaker.media_source import Mark
from agent.speaker.news import News
from agent.speaker.pcm import SAMPLE_RATE, Samples
from agent.speaker.play_queue import Entry, PlayQueue
from agent.speaker.player_types import Hold, OpenSource, PlayerEvents, PlayerSnapshot, State, StopReason
from agent.speaker.track import Track

_RESTART_AFTER: Final = 3 * SAMPLE_RATE
_START_PATIENCE: Final = 15 * SAMPLE_RATE
_GIVE_UP_AFTER: Final = 3

_log = structlog.get_logger(__name__)


class MediaPlayer:
    """Plays titles one after the other into blocks the speaker pulls. Everything is called in the room's loop.

    Nothing blocks and nothing is awaited but `aclose`. `on_wake` is called whenever `pull` may have sound again after
    it returned None. `clock` (seconds) drives the sleep timer, `rng` the shuffling.
    """

    def __init__(
        self,
        open_source: OpenSource,
        events: PlayerEvents,
        *,
        on_wake: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.on_wake = on_wake
        self._open = open_source
        self._events = events
        self._clock = clock
        self._queue = PlayQueue(rng)
        self._track: Track | None = None
        self._prefetched: Track | None = None
        self._holds: set[Hold] = set()
        self._settling = False
        self._tail: NDArray[np.float32] | None = None
        self._delivered = Deliveries()
        self._levels = Levels()
        self._sleep_at: float | None = None
        self._sleep_after_title = False
        self._failures = 0
        self._stopped_at: PlayerSnapshot | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._news = News(_log, "player_listener_failed")
        self._closed = False

    # What it does

    @property
    def state(self) -> State:
        """What it does now."""
        if self._track is None:
            return State.IDLE
        if self._holds:
            return State.PAUSED
        return State.PLAYING if self._track.begun else State.STARTING

    @property
    def active(self) -> bool:
        """Whether a visit must not end for lack of activity: something plays, or is only held by speech or a drop."""
        return self._track is not None and Hold.USER not in self._holds

    @property
    def resumable(self) -> bool:
        """Whether `resume` would find something: a title, or what `stop` has ended."""
        return self._track is not None or self._stopped_at is not None

    @property
    def current(self) -> Title | None:
        """The title that plays, starts or is paused."""
        return self._track.entry.title if self._track is not None else None

    @property
    def upcoming(self) -> tuple[Title, ...]:
        """What plays next, in order."""
        return self._queue.upcoming

    @property
    def position_ms(self) -> int:
        """How far the current title is."""
        return self._track.position * 1000 // SAMPLE_RATE if self._track is not None else 0

    @property
    def duration_ms(self) -> int | None:
        """The current title's length, None while unknown."""
        duration = self._track.source.duration if self._track is not None else None
        return None if duration is None else round(duration * 1000)

    @property
    def volume(self) -> int:
        """0 to 100."""
        return self._levels.volume

    @property
    def sleep_left(self) -> float | None:
        """Seconds until the sleep timer ends playing, None without one."""
        return None if self._sleep_at is None else max(self._sleep_at - self._clock(), 0.0)

    # The speaker's side

    def pull(self, samples: int) -> Samples | None:
        """Exactly `samples` of 24 kHz mono with all gains applied, or None when nothing sounds. Never blocks."""
        self._check_sleep()
        out = np.zeros(samples, np.float32)
        delivery = Delivery(samples)
        sounding = self._mix_tail(out)
        if self._track is not None and (not self._holds or self._settling):
            sounding |= self._fill(out, delivery)
        self._news.tell()
        if not sounding:
            return None
        self._delivered.add(delivery)
        return np.clip(np.rint(out), -32768, 32767).astype(np.int16)

    def give_back(self, samples: int) -> None:
        """The last `samples` pulled never sounded: the title goes on where the child heard it last."""
        track = self._track
        lost = self._delivered.take_back(samples, track)
        if track is not None and lost and not track.rewind(lost):
            self._reload(max(track.position - lost, 0))
        self._wake()

    def duck(self, on: bool) -> None:
        """Make room for speech, or take it back."""
        self._levels.duck(on)

    # Controls

    def play(self, titles: Iterable[Title], *, start_ms: int = 0) -> None:
        """Play these instead of whatever played; the first from `start_ms`. A pause by the user ends."""
        self._end(StopReason.SKIPPED)
        self._holds.discard(Hold.USER)
        self._failures = 0
        self._stopped_at = None
        self._levels.wake()
        self._load(self._queue.replace(titles), max(start_ms, 0) * SAMPLE_RATE // 1000)
        self._news.tell()
        self._wake()

    def add(self, titles: Iterable[Title], *, first: bool = False) -> int:
        """Play these after the rest, or right after the current title; returns how many the queue took."""
        added = self._queue.add(titles, first=first)
        if self._track is None:
            self._load(self._queue.advance())
        self._drop_stale_prefetch()
        self._news.tell()
        self._wake()
        return added

    def pause(self, hold: Hold = Hold.USER) -> bool:
        """Hold; False when nothing plays. The title stays at its second until nobody holds it."""
        if self._track is None:
            return False
        if not self._holds and self._track.begun:
            self._settling = True
        self._holds.add(hold)
        return True

    def resume(self, hold: Hold = Hold.USER) -> bool:
        """End a hold; after `stop`, go on where it stopped. False when there is nothing to go on with."""
        if self._track is None:
            if hold is not Hold.USER:
                self._holds.discard(hold)
                return False
            if self._stopped_at is None:
                return False
            self.restore(self._stopped_at, paused=False)
            return True
        if hold in self._holds:
            self._holds.remove(hold)
            if not self._holds:
                if not self._settling:
                    self._levels.fade_in()
                self._settling = False
                self._wake()
        return True

    def stop(self, *, fade: bool = True) -> bool:
        """End playing and forget the queue; False when nothing played. Without `fade` it is silent at once."""
        playing = self._track is not None
        if playing:
            self._stopped_at = self.snapshot()
        self._end(StopReason.STOPPED)
        self._queue.clear()
        self._drop_stale_prefetch()
        self._holds.discard(Hold.USER)
        self._sleep_at, self._sleep_after_title = None, False
        self._levels.wake()
        if not fade:
            self._tail = None
        self._news.tell()
        self._wake()
        return playing

    def next(self) -> bool:
        """Skip to the next title; False when there is none, and playing ends."""
        self._end(StopReason.SKIPPED)
        self._holds.discard(Hold.USER)
        self._load(self._queue.advance())
        self._news.tell()
        self._wake()
        return self._track is not None

    def previous(self) -> bool:
        """Back to the start of the title, or, within its first three seconds, to the one before."""
        track = self._track
        if track is not None and track.position > _RESTART_AFTER:
            return self.seek(0)
        entry = self._queue.back()
        if entry is None:
            return self.seek(0)
        self._end(StopReason.SKIPPED)
        self._holds.discard(Hold.USER)
        self._load(entry)
        self._news.tell()
        self._wake()
        return True

    def again(self) -> bool:
        """Play the current title, or else the last one, from its start; False when there was none."""
        if self._track is not None:
            return self.seek(0)
        last = self._queue.last
        if last is None:
            return False
        self.play([last])
        return True

    def seek(self, position_ms: int) -> bool:
        """Go to a moment of the current title; False when nothing plays. Beyond its end the next title plays."""
        if self._track is None:
            return False
        duration = self.duration_ms
        self._holds.discard(Hold.USER)
        if duration is not None and position_ms >= duration:
            self._finish(tail=True)
        else:
            self._reload(max(position_ms, 0) * SAMPLE_RATE // 1000)
        self._news.tell()
        self._wake()
        return True

    def seek_by(self, milliseconds: int) -> bool:
        """Go forward, or back; False when nothing plays."""
        return self.seek(self.position_ms + milliseconds)

    def shuffle(self, on: bool) -> None:
        """Mix what waits in the queue, or put it in order again."""
        self._queue.shuffle(on)
        self._drop_stale_prefetch()

    def set_volume(self, percent: int) -> int:
        """Change the loudness of media; returns what it is now, 0 to 100."""
        return self._levels.set_volume(percent)

    def sleep_in(self, seconds: float | None) -> None:
        """End playing softly after so long; None: no more."""
        self._sleep_at = None if seconds is None else self._clock() + max(seconds, 0.0)
        self._sleep_after_title = False
        self._levels.stay_awake()

    def sleep_after_title(self) -> None:
        """End playing with the current title."""
        self.sleep_in(None)
        self._sleep_after_title = True

    # Coming back

    def snapshot(self) -> PlayerSnapshot | None:
        """What plays and what waits, for `restore`, here or in another visit; None when nothing does."""
        track = self._track
        if track is None:
            return None
        return PlayerSnapshot(
            title=track.entry.title,
            position=track.position,
            marks=tuple(mark for mark in track.source.marks() if mark.sample <= track.position)[-8:],
            upcoming=self._queue.upcoming,
            paused=Hold.USER in self._holds,
            volume=self.volume,
        )

    def restore(self, snapshot: PlayerSnapshot, *, paused: bool | None = None) -> None:
        """Go on as in the snapshot; `paused` overrides whether the user held it."""
        self._end(StopReason.SKIPPED)
        self._failures = 0
        self._stopped_at = None
        self._levels.wake()
        self.set_volume(snapshot.volume)
        entry = self._queue.replace([snapshot.title])
        self._queue.add(snapshot.upcoming)
        self._load(entry, snapshot.position, snapshot.marks)
        if self._track is not None and (snapshot.paused if paused is None else paused):
            self._holds.add(Hold.USER)
        else:
            self._holds.discard(Hold.USER)
        self._news.tell()
        self._wake()

    async def aclose(self) -> None:
        """End playing; every source, thread and task of it is gone when it returns."""
        self._closed = True
        self._end(StopReason.CLOSED)
        self._queue.clear()
        self._drop_stale_prefetch()
        self._tail = None
        self._news.tell()
        while self._closing:
            await asyncio.wait(set(self._closing))

    # Inside

    def _fill(self, out: NDArray[np.float32], delivery: Delivery) -> bool:
        """Put samples of the current title, and of those after it, into `out`; whether there were any."""
        settling = self._settling
        filled, size = 0, min(len(out), FADE) if settling else len(out)
        while filled < size and self._track is not None and (self._settling or not self._holds):
            track = self._track
            try:
                block = track.take(size - filled)
            except MediaError as error:
                self._fail(track, error)
                continue
            if block is None:
                self._soften_gap(out, filled)
                break
            if not len(block):
                self._finish()
                continue
            self._announce(track)
            out[filled : filled + len(block)] += block * self._levels.take(len(block))
            delivery.parts.append((track, len(block)))
            filled += len(block)
        if settling:
            out[:filled] *= falling(filled)
            self._settling = False
        self._prefetch()
        return filled > 0

    def _mix_tail(self, out: NDArray[np.float32]) -> bool:
        if self._tail is None:
            return False
        tail, self._tail = self._tail[: len(out)], None
        out[: len(tail)] += tail
        return True

    def _soften_gap(self, out: NDArray[np.float32], filled: int) -> None:
        """The source is late: let what there is fade, and what comes fade in."""
        if filled:
            soft = min(filled, FADE // 2)
            out[filled - soft : filled] *= falling(soft)
        if self._track is not None and self._track.begun:
            self._levels.fade_in()

    def _announce(self, track: Track) -> None:
        if track.announced:
            return
        track.announced = True
        self._failures = 0
        title = track.entry.title
        self._news.add(lambda: self._events.started(title))

    def _finish(self, *, tail: bool = False) -> None:
        """The current title is over; so is playing where the sleep timer has begun to end it, or ends it with it."""
        asleep = self._levels.falling_asleep
        self._end(StopReason.STOPPED if asleep else StopReason.ENDED, tail=tail)
        if asleep or self._sleep_after_title:
            self._sleep_after_title = False
            self._levels.wake()
            self._queue.clear()
            self._drop_stale_prefetch()
            return
        self._load(self._queue.advance())

    def _fail(self, track: Track, error: MediaError) -> None:
        if self._levels.falling_asleep:
            self._finish()
            return
        title = track.entry.title
        self._end(StopReason.BROKEN, tail=False)
        self._report(title, error)
        self._load(self._queue.advance())

    def _report(self, title: Title, error: MediaError) -> None:
        self._failures += 1
        _log.warning("media_failed", kind=title.kind, title_id=title.id, problem=str(error))
        self._news.add(lambda: self._events.problem(title, error))

    def _load(self, entry: Entry | None, start: int = 0, marks: tuple[Mark, ...] = ()) -> None:
        """Make `entry` the current title, or the first after it that can be opened."""
        while entry is not None and not self._closed:
            if self._failures >= _GIVE_UP_AFTER:
                # A whole queue that fails is the server's trouble: no need to hear it title by title.
                self._queue.clear()
                break
            if self._prefetched is not None and self._prefetched.entry is entry and not start:
                self._track, self._prefetched = self._prefetched, None
                self._levels.full()
                return
            track = self._open_track(entry, start, marks)
            if track is not None:
                self._track = track
                self._levels.full()
                if start:
                    self._levels.fade_in()
                break
            entry, start, marks = self._queue.advance(), 0, ()
        self._drop_stale_prefetch()

    def _open_track(
        self, entry: Entry, start: int = 0, marks: tuple[Mark, ...] = (), *, sounded: bool = False
    ) -> Track | None:
        try:
            source = self._open(entry.title, start, marks, self._wake)
        except MediaError as error:
            self._report(entry.title, error)
            return None
        return Track(entry, source, start, sounded=sounded, patience=_START_PATIENCE)

    def _reload(self, position: int) -> None:
        """Play the current title from another sample; for everybody else it has not stopped."""
        track = self._track
        if track is None:
            return
        marks = tuple(mark for mark in track.source.marks() if mark.sample <= position)
        self._take_tail(track)
        self._close(track)
        self._track = self._open_track(track.entry, position, marks, sounded=track.announced)
        self._levels.fade_in()
        if self._track is None:
            if track.announced:
                self._news.add(lambda: self._events.stopped(track.entry.title, StopReason.BROKEN))
            self._load(self._queue.advance())

    def _end(self, reason: StopReason, *, tail: bool = True) -> None:
        """The current title sounds no more, for whatever reason. The one place that says so."""
        track, self._track = self._track, None
        if track is None:
            return
        if tail:
            self._take_tail(track)
        self._settling = False
        self._close(track)
        if track.announced:
            title = track.entry.title
            self._news.add(lambda: self._events.stopped(title, reason))

    def _take_tail(self, track: Track) -> None:
        """Keep a few milliseconds of a title that ends in the middle, to fade out in the next pull."""
        if (self._holds and not self._settling) or not track.begun:
            return
        try:
            block = track.take(FADE)
        except MediaError:
            return
        if block is not None and len(block):
            self._tail = block * falling(len(block)) * np.float32(self._levels.now)

    def _prefetch(self) -> None:
        """Load the next title once the current one needs its source no more."""
        following = self._queue.next
        if self._prefetched is None and following is not None and self._track is not None and self._track.ending:
            try:
                source = self._open(following.title, 0, (), self._wake)
            except MediaError:
                return  # its turn comes: then it is opened again, and said
            self._prefetched = Track(following, source, 0, patience=_START_PATIENCE)

    def _drop_stale_prefetch(self) -> None:
        if self._prefetched is not None and self._prefetched.entry is not self._queue.next:
            self._close(self._prefetched)
            self._prefetched = None

    def _close(self, track: Track) -> None:
        task = asyncio.get_running_loop().create_task(track.source.aclose(), name="media-close")
        self._closing.add(task)
        task.add_done_callback(self._closed_source)

    def _closed_source(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("media_close_failed", exc_info=error)

    def _check_sleep(self) -> None:
        if self._track is None:
            return
        if self._levels.asleep:
            self.stop(fade=False)
        elif self._sleep_at is not None and self._clock() >= self._sleep_at:
            self._sleep_at = None
            if self._holds:
                self.stop()
            else:
                self._levels.fall_asleep()

    def _wake(self) -> None:
        if self.on_wake is not None and not self._closed:
            self.on_wake()
